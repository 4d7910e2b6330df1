"""Colour refinement over the mesh: the coarsest classes of ranks that a simulation cannot tell apart.

Ranks begin with a colour that says what they do: their pipeline rank, and what is special about them. Then each takes
a new colour from its own, the colours of every device group that it belongs to, and those of its pipeline, until no
class splits any more: an equitable partition. Two ranks of a class then run the same program, at the same pace, over
the same links, and every collective of the one meets as many ranks of each class as that of the other. By induction
over the order of events all their times are equal, so one of them can stand for all.

A group's colours enter as a sum of 64-bit hashes modulo 2^64: the same for the same colours in any order. Two
different sums are equal by chance with a probability below N^2 / 2^64, 6e-8 for a million ranks.

Source: Weisfeiler and Leman 1968 (colour refinement); Paige and Tarjan 1987 (coarsest stable partition); Steele, Lea
and Flood 2014 (SplitMix64, the hash). Derived: that equal colours mean equal times, by the semantics of
`simulator.engine.program`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

from simulator.parallel.groups import Digits, count_of

Hashes = npt.NDArray[np.uint64]
Colours = npt.NDArray[np.int64]
_GOLDEN = 0x9E3779B97F4A7C15
_ROUNDS = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB))
_LAST_SHIFT = 31
"""Constants of SplitMix64."""


def refined(colours: Colours, groups: Sequence[Digits], runs: Sequence[int] = ()) -> Colours:
    """Returns the coarsest stable refinement of some colours: classes numbered by their lowest ranks.

    Args:
        colours: `[ranks]`: colour of each rank, any integers.
        groups: kinds of groups, each a division of all ranks.
        runs: lengths of runs of ranks that share something, such as uplinks; the last run may be shorter.
    """
    wide = [digits for digits in dict.fromkeys(groups) if count_of(digits) > 1]
    found = hashed(colours.astype(np.uint64), salt=0)
    num_colours = _num_distinct(found)
    while num_colours < len(found):
        mixed = found.copy()
        for number, digits in enumerate(wide, start=1):
            mixed += hashed(group_sums(found, digits), salt=number)
        for number, size in enumerate(runs, start=len(wide) + 1):
            mixed += hashed(run_sums(found, size), salt=number)
        found = hashed(mixed, salt=0)
        before, num_colours = num_colours, _num_distinct(found)
        if num_colours == before:
            break
    return numbered(found)


def hashed(values: Hashes, *, salt: int) -> Hashes:
    """Returns a 64-bit hash of each value; different salts give unrelated hashes."""
    mixed: Hashes = values + np.uint64((salt + 1) * _GOLDEN % 2**64)
    for shift, factor in _ROUNDS:
        mixed ^= mixed >> np.uint64(shift)
        mixed *= np.uint64(factor)
    mixed ^= mixed >> np.uint64(_LAST_SHIFT)
    return mixed


def group_sums(values: Hashes, digits: Digits) -> Hashes:
    """Returns for each rank the sum of the values of its group, modulo 2^64.

    Args:
        values: `[ranks]`.
        digits: (count, stride) of the group, strides rising.
    """
    shape: list[int] = []
    axes: list[int] = []
    inner = 1
    for count, stride in digits:
        shape += [stride // inner, count]
        axes.append(len(shape) - 1)
        inner = stride * count
    shape.append(len(values) // inner)
    last = len(shape) - 1
    # numpy's slowest axis comes first.
    grid = values.reshape(shape[::-1])
    sums = grid.sum(axis=tuple(last - axis for axis in axes), keepdims=True, dtype=np.uint64)
    return np.ascontiguousarray(np.broadcast_to(sums, grid.shape)).reshape(-1)


def run_sums(values: Hashes, size: int) -> Hashes:
    """Returns for each rank the sum of the values of its run of `size` ranks, modulo 2^64."""
    sums: Hashes = np.repeat(np.add.reduceat(values, np.arange(0, len(values), size)), size)[: len(values)]
    return sums


def numbered(values: npt.NDArray[np.generic]) -> Colours:
    """Returns 0, 1, 2... for the distinct values, in the order in which they occur first."""
    _, first, inverse = np.unique(values, return_index=True, return_inverse=True)
    number = np.empty(len(first), dtype=np.int64)
    number[np.argsort(first)] = np.arange(len(first))
    colours: Colours = number[inverse.reshape(-1)]
    return colours


def combined(columns: Iterable[npt.NDArray[np.generic]]) -> Colours:
    """Returns a colour for each rank that is equal where all columns are."""
    colours = None
    for column in columns:
        own = numbered(column)
        colours = own if colours is None else numbered(colours * (int(own.max(initial=0)) + 1) + own)
    if colours is None:
        raise ValueError("ranks need at least one column to tell their colours by")
    return colours


def _num_distinct(values: Hashes) -> int:
    return len(np.unique(values))
