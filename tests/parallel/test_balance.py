"""Balanced stages: the best of all splits, and the even one where that is as good."""

from __future__ import annotations

from itertools import combinations_with_replacement

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.parallel.balance import LayerTimes, balanced_layers, times_of_stages
from simulator.parallel.stages import layers_per_stage


def times_of(layers: list[float], *, embedding: float = 0.0, head: float = 0.0) -> LayerTimes:
    return LayerTimes(layers=np.array(layers), embedding=embedding, head=head, again=np.zeros(len(layers)))


def balanced(times: LayerTimes, num_stages: int) -> tuple[int, ...]:
    return balanced_layers(times, num_stages, preferred=layers_per_stage(len(times.layers), num_stages))


def all_splits(num_layers: int, num_stages: int) -> list[tuple[int, ...]]:
    cuts = combinations_with_replacement(range(num_layers + 1), num_stages - 1)
    splits = [tuple(np.diff([0, *cut, num_layers]).tolist()) for cut in cuts]
    return [split for split in splits if all(split[1:-1])]


def test_llama_3_1_405b_stays_as_it_was_laid_out() -> None:
    # Section 3.3.2 of arXiv 2407.21783, and E5.6: its head costs 0.61 of a layer.
    assert balanced(times_of([1.0] * 126, head=0.61), 16) == (7, *[8] * 14, 7)


def test_a_heavy_head_has_a_stage_of_its_own() -> None:
    assert balanced(times_of([1.0] * 26, head=9.3), 4) == (9, 9, 8, 0)


def test_a_head_of_three_layers_takes_the_place_of_three() -> None:
    assert balanced(times_of([1.0] * 29, head=3.0), 4) == (8, 8, 8, 5)


def test_dense_layers_before_experts_lie_closer() -> None:
    # Three dense layers of a half before ten of one, as DeepSeek-V3 has three before 58.
    assert balanced(times_of([0.5] * 3 + [1.0] * 10), 4) == (4, 3, 3, 3)


def test_layers_that_are_recomputed_count_more() -> None:
    recomputed = LayerTimes(layers=np.full(12, 3.0), embedding=0.0, head=2.0, again=np.full(12, 1.0), num_again=2)
    # Each stage runs its first two layers again: 3 n + min(n, 2), the last one 2 more.
    assert times_of_stages((4, 4, 4), recomputed).tolist() == [14.0, 14.0, 16.0]
    assert times_of_stages((11, 0, 1), recomputed).tolist() == [35.0, 0.0, 6.0]


@given(
    layers=st.lists(st.integers(1, 5), min_size=1, max_size=9),
    num_stages=st.integers(1, 5),
    embedding=st.integers(0, 6),
    head=st.integers(0, 12),
    num_again=st.integers(0, 3),
    again=st.integers(0, 3),
)
def test_no_split_has_a_shorter_longest_stage_or_with_it_a_smaller_sum_of_squares(
    layers: list[int], num_stages: int, embedding: int, head: int, num_again: int, again: int
) -> None:
    num_stages = min(num_stages, len(layers))
    times = LayerTimes(
        layers=np.array(layers, dtype=np.float64),
        embedding=embedding,
        head=head,
        again=np.full(len(layers), float(again)),
        num_again=num_again,
    )

    def goodness(counts: tuple[int, ...]) -> tuple[float, float]:
        found = times_of_stages(counts, times)
        return found.max(), np.square(found).sum()

    split = balanced(times, num_stages)
    assert len(split) == num_stages and sum(split) == len(layers) and all(split[1:-1])
    even = layers_per_stage(len(layers), num_stages)
    assert goodness(split) == pytest.approx(min(map(goodness, all_splits(len(layers), num_stages))))
    assert goodness(even) > goodness(split) or split == even
