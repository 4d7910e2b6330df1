"""The order of a pipeline rank as its kinds of passes: what repeats is lowered, and walked, once."""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from simulator.cost.pass_memory import Turn
from simulator.schedule import ActionKind, PipelineSchedule

MARKS = tuple(mark.name for mark in fields(Turn))
TURNS = 1 << len(MARKS)
"""Passes of one kind through a stage that may differ: each mark of a turn is there or not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pass:
    """One kind of pass on a rank."""

    action: ActionKind
    """What it computes."""
    chunk: int
    """Its stage, by number on the rank."""
    turn: Turn
    """What sets it apart from others of the stage."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RankOrder:
    """The passes and joined pairs of a pipeline rank in order."""

    stages: tuple[int, ...]
    """Stages of the model that the rank holds, by chunk."""
    kinds: npt.NDArray[np.int32]
    """Kind of each pass or pair, as its place among those used; shape [passes and pairs]."""
    microbatches: npt.NDArray[np.int32]
    """Microbatch of each pass, twice, or of the forward and of the backward of a pair; shape [passes and pairs, 2]."""
    used: tuple[int, ...]
    """Kinds that occur; ranks with as many chunks have equal numbers for equal kinds."""
    counts: tuple[int, ...]
    """How often each does."""

    def passes(self) -> tuple[tuple[Pass, ...], ...]:
        """Returns the used kinds: one pass each, or the forward and the backward of a joined pair."""
        return tuple(passes_of_kind(number, len(self.stages)) for number in self.used)


def rank_order(schedule: PipelineSchedule, rank: int) -> RankOrder:
    """Returns the order of a pipeline rank."""
    own, actions, marks = schedule.stages_of(rank), schedule.ranks[rank], schedule.firsts_and_lasts(rank)
    codes, stages, microbatches, joined = actions.T
    turns = np.zeros(len(actions), dtype=np.int64)
    for place, name in enumerate(MARKS):
        turns |= getattr(marks, name).astype(np.int64) << place
    passes = (codes * len(own) + np.searchsorted(np.array(own), stages)) * TURNS + turns
    # A pair is one kind: its backward comes with its forward, which may stand behind it.
    pairs = np.flatnonzero(joined)
    forwards = pairs + (passes[pairs] > passes[pairs + 1])
    backwards = 2 * pairs + 1 - forwards
    kinds = passes * _base(len(own))
    kinds[pairs] = passes[forwards] * _base(len(own)) + passes[backwards] + 1
    both = np.stack([microbatches, microbatches], axis=1)
    both[pairs] = np.stack([microbatches[forwards], microbatches[backwards]], axis=1)
    used, places, counts = np.unique(np.delete(kinds, pairs + 1), return_inverse=True, return_counts=True)
    return RankOrder(
        stages=tuple(stage % schedule.chain for stage in own),
        kinds=places.reshape(-1).astype(np.int32),
        microbatches=np.delete(both, pairs + 1, axis=0),
        used=tuple(used.tolist()),
        counts=tuple(counts.tolist()),
    )


@lru_cache(maxsize=1024)
def passes_of_kind(number: int, num_chunks: int) -> tuple[Pass, ...]:
    """Returns what a kind is: one pass, or the forward and the backward of a joined pair.

    Args:
        number: (pass · base) + (joined pass + 1, or 0).
        num_chunks: stages of the rank.
    """
    first, second = divmod(number, _base(num_chunks))
    found = []
    for each in (first, second - 1)[: 1 + (second > 0)]:
        place, marks = divmod(each, TURNS)
        code, chunk = divmod(place, num_chunks)
        turn = Turn(**{name: bool(marks >> bit & 1) for bit, name in enumerate(MARKS)})
        found.append(Pass(action=tuple(ActionKind)[code], chunk=chunk, turn=turn))
    return tuple(found)


def _base(num_chunks: int) -> int:
    """Returns how many passes there may be, and none, as the backward of a pair."""
    return len(ActionKind) * num_chunks * TURNS + 1
