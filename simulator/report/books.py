"""The entries of the books of the network: who puts which exchange on it, how often."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from simulator.lowering.builder import Exchange
from simulator.lowering.step import LoweredStep


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """An exchange of a routine, as often as the ranks at one place of the pipeline run it in a step."""

    pipeline_rank: int
    """Of the ranks."""
    num_ranks: int
    """How many they are."""
    calls: int
    """How often each of them runs it."""
    exchange: Exchange
    """What each puts on the network each time."""

    @property
    def times(self) -> int:
        """How often all of them run it."""
        return self.calls * self.num_ranks


def entries_of(step: LoweredStep) -> Iterator[Entry]:
    """Yields every exchange of a step, by pipeline rank and routine."""
    ranks: Counter[int] = Counter()
    calls_of: dict[int, npt.NDArray[np.int32]] = {}
    for rank, rank_class in zip(step.pipeline_ranks, step.program.classes, strict=True):
        ranks[rank] += rank_class.count
        calls_of[rank] = rank_class.calls  # all classes of a pipeline rank make the same calls
    for rank, count in ranks.items():
        times_called = np.bincount(calls_of[rank][:, 0], minlength=len(step.program.routines)).tolist()
        for routine, calls in enumerate(times_called):
            for exchange in step.exchanges[routine] if calls else ():
                yield Entry(pipeline_rank=rank, num_ranks=count, calls=calls, exchange=exchange)
