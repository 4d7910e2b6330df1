"""Groups, halves of an all-reduce, and a combined algorithm, for the tests of definitions."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from math import prod

from hypothesis import strategies as st

from simulator.cluster import Cluster
from simulator.cost.collectives import Collective
from simulator.cost.collectives.messages import (
    Steps,
    in_switch_then,
    split,
    together,
)
from simulator.cost.collectives.trees import tree_over, two_trees
from tests.cost.networks import fast_tier, machine_of


def counts(*choices: int) -> st.SearchStrategy[list[int]]:
    """Parts that each tier joins; a group may have one rank in each domain of the innermost."""
    inner, outer = st.sampled_from([1, *choices]), st.lists(st.sampled_from(choices), max_size=2)
    return st.builds(lambda first, rest: [first, *rest], inner, outer).filter(
        lambda counts: 1 < prod(counts) <= MOST_RANKS
    )


MOST_RANKS = 12
COUNTS = counts(2, 3, 4)
POWERS = counts(2, 4)
HALVES = st.sampled_from([(True, False), (False, True), (True, True)])
COLLECTIVE_OF = {
    (True, False): Collective.REDUCE_SCATTER,
    (False, True): Collective.ALL_GATHER,
    (True, True): Collective.ALL_REDUCE,
}


def domains(counts: Sequence[int]) -> list[range]:
    """Ranks by innermost domain."""
    return [range(start, start + counts[0]) for start in range(0, prod(counts), counts[0])]


def machine(counts: Sequence[int], *, reducing: bool = False) -> Cluster:
    """One switch a tier; domains of one rank are there too."""
    sizes = list(itertools.accumulate(counts, lambda a, b: a * b))
    more = {"in_network_reduction": "true"} if reducing else {}
    return machine_of(*(fast_tier(f"tier{index}", size, **more) for index, size in enumerate(sizes)))


def switches_and_trees(domains: list[range], payload_bytes: int) -> Steps:
    """Each member of a domain owns two chunks, one for each of the two trees over its rail."""
    inside = len(domains[0])
    sizes = split(payload_bytes, 2 * inside)
    between = rail_trees(domains, payload_bytes)
    switches = [sum(len(domain) for domain in domains) + number for number in range(len(domains))]
    return in_switch_then(domains, switches, between, sizes, [[2 * rail, 2 * rail + 1] for rail in range(inside)])


def rail_trees(domains: list[range], payload_bytes: int) -> Steps:
    sizes = split(payload_bytes, 2 * len(domains[0]))
    return together(
        *(
            tree_over([domain[rail] for domain in domains], above, chunk, sizes[chunk])
            for rail in range(len(domains[0]))
            for chunk, above in zip((2 * rail, 2 * rail + 1), two_trees(len(domains)), strict=True)
        )
    )
