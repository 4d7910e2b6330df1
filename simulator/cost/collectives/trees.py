"""Definitions of collectives, part 2: two complementary binary trees (E4.3).

Source: Sanders, Speck, Träff, Two-tree algorithms for full bandwidth broadcast, reduction and scan, Parallel Computing
35 (2009); the in-order tree of NCCL (src/graph/trees.cc), in which odd places are leaves.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np
from numpy.typing import NDArray

from simulator.cost.collectives.messages import Message, Step, Steps, in_turn, split, together


@cache
def parents(count: int) -> NDArray[np.int64]:
    """Returns the parent of each place in the in-order binary tree over `count` places; -1 for the root, place 0.

    A place with lowest set bit b hangs below one of its neighbours at distance b, the one with bit 2b, or the one
    before where that does not exist.
    """
    place = np.arange(count, dtype=np.int64)
    lowest = place & -place
    above = (place ^ lowest) | (lowest << 1)
    found = np.where(above < count, above, place ^ lowest)
    found[0] = -1
    found.flags.writeable = False
    return found


def two_trees(count: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Returns parents in two trees: an inner place of one is a leaf of the other (mirrored; shifted if odd)."""
    place = np.arange(count, dtype=np.int64)
    moved = count - 1 - place if count % 2 == 0 else (place - 1) % count
    back = np.argsort(moved)
    above = parents(count)[moved]
    return parents(count), np.where(above < 0, -1, back[above])


@cache
def crossings(count: int, block: int) -> int:
    """Returns how many edges of the two trees over `count` places join different runs of `block` places."""
    place = np.arange(count)
    return sum(
        int(np.count_nonzero(above[above >= 0] // block != place[above >= 0] // block)) for above in two_trees(count)
    )


def depth(count: int) -> int:
    """Returns the longest way from a leaf to the root: log2 of the places, rounded up."""
    above = parents(count)
    levels = np.zeros(count, dtype=np.int64)
    at = np.arange(count)
    while (at > 0).any():
        levels += at > 0
        at = np.where(at > 0, above[at], 0)
    return int(levels.max(initial=0))


def tree_all_reduce(domains: Sequence[Sequence[int]], payload_bytes: int) -> Steps:
    """Returns NCCL's tree: a chain inside each domain, two trees over the domains, one pair of trees a rail.

    Args:
        domains: ranks by domain, equally many (G) in each; domains of one rank: trees over all ranks.
        payload_bytes: S; each of 2G trees carries S / (2G).
    """
    rails = len(domains[0])
    sizes = split(payload_bytes, 2 * rails)
    runs = [
        in_turn(
            _chains(domains, rail, chunk, sizes[chunk], down=False),
            tree_over([domain[rail] for domain in domains], above, chunk, sizes[chunk]),
            _chains(domains, rail, chunk, sizes[chunk], down=True),
        )
        for rail in range(rails)
        for chunk, above in zip((2 * rail, 2 * rail + 1), two_trees(len(domains)), strict=True)
    ]
    return together(*runs)


def _chains(domains: Sequence[Sequence[int]], rail: int, chunk: int, size: int, *, down: bool) -> Steps:
    """All ranks of a domain, one after the other, to its member on the rail, or back."""
    orders = [[*domain[rail + 1 :], *domain[: rail + 1]] for domain in domains]
    if down:
        orders = [order[::-1] for order in orders]
    return tuple(
        tuple(Message(order[place], order[place + 1], size, chunk, not down) for order in orders)
        for place in range(len(orders[0]) - 1)
    )


def tree_over(members: Sequence[int], above: NDArray[np.int64], chunk: int, size: int) -> Steps:
    """Returns the sum of one chunk up a tree over `members` and back down, level by level."""
    levels: dict[int, list[int]] = {}
    for place in range(len(members)):
        level, at = 0, place
        while above[at] >= 0:
            level, at = level + 1, int(above[at])
        levels.setdefault(level, []).append(place)
    up: list[Step] = []
    down: list[Step] = []
    for level in range(max(levels), 0, -1):
        pairs = [(members[place], members[above[place]]) for place in levels[level]]
        up.append(tuple(Message(low, high, size, chunk, True) for low, high in pairs))
        down.append(tuple(Message(high, low, size, chunk, False) for low, high in pairs))
    return (*up, *down[::-1])
