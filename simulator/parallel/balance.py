"""Stages that are equally long: how many layers each gets, if layers, embedding and head are not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from simulator.errors import SimulatorFault

Times = NDArray[np.float64]
ROUNDING = 1e-9
"""Relative difference of times that counts as none."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LayerTimes:
    """Forward and backward of one microbatch through each part of the model, in any one unit."""

    layers: Times
    """Each transformer layer, [layers]."""
    embedding: float
    """The embedding, which the first stage has beside its layers."""
    head: float
    """The head with the loss, which the last stage has."""
    again: Times
    """What each layer takes longer where it is recomputed in full, [layers]."""
    num_again: int = 0
    """How many layers of each stage, its first ones, are."""


def times_of_stages(counts: Sequence[int], times: LayerTimes) -> Times:
    """Returns how long each stage takes, [stages].

    Args:
        counts: Layers of each stage.
        times: Times of the layers.
    """
    ends = np.cumsum(counts)
    return _Spans(times, len(counts)).between(np.arange(len(counts)), ends - np.asarray(counts), ends)


def balanced_layers(times: LayerTimes, num_stages: int, *, preferred: Sequence[int]) -> tuple[int, ...]:
    """Returns the layers of each stage for which the longest stage is shortest, then the sum of squares smallest.

    Stages are rows of layers; only the first and the last may have none. Of splits that are equally good it is
    `preferred`, else the one with the most layers in the last stages.

    Args:
        times: Times of the layers.
        num_stages: Stages.
        preferred: A split, such as the even one; the result is never worse.

    Source: the chains-on-chains partitioning problem (Pinar and Aykanat 2004), by dynamic programming over
    (stages, layers). Derived.
    """
    spans = _Spans(times, num_stages)
    known = times_of_stages(preferred, times)
    widest = spans.most_layers_within(float(known.max()))
    longest, _ = _cheapest(spans, np.maximum, lambda time: time, within=np.inf, widest=widest)
    within = longest * (1 + ROUNDING)
    squares, counts = _cheapest(spans, np.add, np.square, within=within, widest=widest)
    is_best = known.max() <= within and np.square(known).sum() <= squares * (1 + ROUNDING)
    return tuple(preferred) if is_best else counts


class _Spans:
    """Times of rows of layers, from sums over all layers before them."""

    def __init__(self, times: LayerTimes, num_stages: int) -> None:
        self.times = times
        self.num_stages = num_stages
        self.num_layers = len(times.layers)
        self._before = np.concatenate([[0.0], np.cumsum(times.layers)])
        self._again_before = np.concatenate([[0.0], np.cumsum(times.again)])

    def between(self, stage: NDArray[np.int64] | int, begin: NDArray[np.int64], end: NDArray[np.int64]) -> Times:
        """Returns the time of a stage that has the layers from `begin` up to `end`."""
        again = np.minimum(begin + self.times.num_again, end)
        time = self._before[end] - self._before[begin] + self._again_before[again] - self._again_before[begin]
        first, last = np.equal(stage, 0), np.equal(stage, self.num_stages - 1)
        result: Times = time + first * self.times.embedding + last * self.times.head
        return result

    def most_layers_within(self, time: float) -> int:
        """Returns the most layers in a row that take no longer than a time; no stage of use has more."""
        begin, most = np.arange(self.num_layers), 0
        while most < self.num_layers:
            fits = begin[: self.num_layers - most]
            # A stage in the middle: it has neither embedding nor head.
            if self.between(-1, fits, fits + most + 1).min() > time * (1 + ROUNDING):
                break
            most += 1
        return most


def _cheapest(
    spans: _Spans,
    join: Callable[[Times, Times], Times],
    price: Callable[[Times], Times],
    *,
    within: float,
    widest: int,
) -> tuple[float, tuple[int, ...]]:
    """Returns the least price of a split, and the split.

    Args:
        spans: Times of rows of layers.
        join: How the prices of stages make up the price of a split.
        price: Price of a stage by its time.
        within: Longest time of a stage.
        widest: Most layers of a stage.
    """
    num_stages, num_layers = spans.num_stages, spans.num_layers
    least = np.full(num_layers + 1, np.inf)
    least[0] = 0.0
    chosen = np.zeros((num_stages, num_layers + 1), dtype=np.int64)
    for stage in range(num_stages):
        fewest = 0 if stage in (0, num_stages - 1) else 1
        following = np.full(num_layers + 1, np.inf)
        for count in range(fewest, widest + 1):
            ends = np.arange(count, num_layers + 1)
            time = spans.between(stage, ends - count, ends)
            total = np.where(time <= within, join(least[ends - count], price(time)), np.inf)
            # Later counts must be better by more than rounding, so that the same split comes out everywhere.
            better = total < following[ends] * (1 - ROUNDING)
            following[ends[better]] = total[better]
            chosen[stage, ends[better]] = count
        least = following
    if not np.isfinite(least[-1]):
        raise SimulatorFault(
            f"no split of {num_layers} layers into {num_stages} stages is as short as one that is known"
        )
    counts: list[int] = []
    end = num_layers
    for stage in range(num_stages - 1, -1, -1):
        counts.insert(0, int(chosen[stage, end]))
        end -= counts[0]
    return float(least[-1]), tuple(counts)
