"""Colour refinement: the same classes as a plain search with dictionaries finds, and quickly."""

from __future__ import annotations

from time import process_time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.lowering.colours import combined, group_sums, refined
from simulator.parallel.groups import Digits, merge, ranks_of_group

AXES = ((2, 1), (3, 2), (2, 6), (4, 12))
"""A mesh of 48 ranks: (degree, stride)."""


def plainly_refined(colours: list[int], groups: list[Digits]) -> list[int]:
    """The same by dictionaries: signature of a rank = its colour and the sorted colours of each of its groups."""
    ranks = np.arange(len(colours))
    members = [ranks_of_group(ranks, digits).tolist() for digits in groups]
    while True:
        signatures = [
            (colours[rank], *(tuple(sorted(colours[other] for other in of_kind[rank])) for of_kind in members))
            for rank in range(len(colours))
        ]
        numbers: dict[object, int] = {}
        fresh = [numbers.setdefault(signature, len(numbers)) for signature in signatures]
        if len(numbers) == len(set(colours)):
            return fresh
        colours = fresh


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    marks=st.dictionaries(st.integers(0, 47), st.integers(1, 2), max_size=6),
    groups=st.lists(st.lists(st.sampled_from(AXES), min_size=1, max_size=3, unique=True), min_size=1, max_size=4),
)
def test_refinement_finds_the_coarsest_equitable_partition(marks: dict[int, int], groups: list[list[Digits]]) -> None:
    digits = [merge(tuple(group)) for group in groups]
    colours = [marks.get(rank, 0) for rank in range(48)]
    assert refined(np.array(colours), digits).tolist() == plainly_refined(colours, digits)


@pytest.mark.parametrize("digits", [((48, 1),), ((2, 1), (2, 6)), ((3, 2),), ((4, 12),), ((1, 4),)])
def test_a_group_sum_is_the_sum_over_the_ranks_of_the_group(digits: Digits) -> None:
    values = np.random.default_rng(0).integers(0, 2**64, size=48, dtype=np.uint64)
    with np.errstate(over="ignore"):
        expected = [values[members].sum(dtype=np.uint64) for members in ranks_of_group(np.arange(48), digits)]
    assert group_sums(values, digits).tolist() == expected


def test_ranks_that_are_alike_stay_one_class() -> None:
    assert refined(np.zeros(48, dtype=np.int64), [((2, 1),), ((48, 1),)]).max() == 0


def test_one_mark_splits_a_mesh_by_the_axes_that_a_rank_shares_with_it() -> None:
    """Each of four axes is shared or not: 16 classes."""
    mark = np.zeros(48, dtype=np.int64)
    mark[17] = 1
    classes = refined(mark, [(axis,) for axis in AXES])
    shares = sum(
        (np.arange(48) // stride % count == 17 // stride % count) << at for at, (count, stride) in enumerate(AXES)
    )
    assert classes.max() + 1 == 16
    assert len(set(zip(classes.tolist(), shares.tolist(), strict=True))) == 16


def test_a_million_ranks_are_refined_within_three_seconds() -> None:
    """Measured: 0.25 s on one core; in time of the processor, as the machine may be busy."""
    ranks = np.arange(1 << 20)
    begun = process_time()
    classes = refined(combined([ranks >> 14, ranks == 17]), [((8, 1),), ((2048, 8),), ((64, 1 << 14),)])
    assert process_time() - begun < 3
    assert classes.max() + 1 == 64 * 4
