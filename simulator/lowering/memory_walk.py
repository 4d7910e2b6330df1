"""The memory of a step without its time: the swings of a rank's actions, added up in the order of the program."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from simulator.cost.memory import MEMORY, ZERO, Levels, along
from simulator.cost.shares import StageShare
from simulator.cost.stage_memory import MemoryRules
from simulator.schedule import PipelineSchedule
from simulator.schedule.actions import BACKWARD_CODE


@dataclass(frozen=True, slots=True, kw_only=True)
class RankMemory:
    """The memory of the ranks at one place of the pipeline."""

    at_peak: Levels
    """Bytes of each category at the highest point of the step."""
    final: Levels
    """The same at its end: what it was at the beginning."""

    @property
    def peak_bytes(self) -> int:
        """The highest point."""
        return sum(self.at_peak)


def walk_step(
    rules: MemoryRules, shares: Sequence[StageShare], schedule: PipelineSchedule, initial: Sequence[Levels]
) -> tuple[RankMemory, ...]:
    """Returns the memory of every pipeline rank; ranks whose stages and order are alike are walked once.

    Args:
        rules: what the passes of a stage do to memory.
        shares: what a rank holds of each stage.
        schedule: the order of actions.
        initial: of each pipeline rank, the level before the step.
    """
    passes = _Passes(rules=rules, last_stage=schedule.num_stages - 1, known={})
    return tuple(
        _walk_rank(passes, [shares[stage] for stage in schedule.stages_of(rank)], schedule, rank, initial[rank])
        for rank in range(schedule.pp)
    )


def _walk_rank(
    passes: _Passes, chunks: list[StageShare], schedule: PipelineSchedule, rank: int, initial: Levels
) -> RankMemory:
    kinds, stages, microbatches = schedule.ranks[rank].T
    chunk_of = np.searchsorted(np.array(schedule.stages_of(rank)), stages)
    last = schedule.microbatches - 1
    # One row for each (kind, chunk, first, last) that occurs: its highest point and its net change.
    places = (
        ((kinds == BACKWARD_CODE) * len(chunks) + chunk_of) * 4 + (microbatches == 0) * 2 + (microbatches == last)
    ).astype(np.int64)
    used = np.unique(places)
    rows = np.zeros((2, int(used[-1]) + 1, len(MEMORY)), dtype=np.int64)
    for place in used.tolist():
        kind, chunk = divmod(place // 4, len(chunks))
        rows[:, place] = passes.levels(
            chunks[chunk], is_backward=bool(kind), first=bool(place & 2), last=bool(place & 1)
        )
    nets = rows[1, places]
    before = np.cumsum(nets, axis=0) - nets + np.array(initial, dtype=np.int64)
    highest = before + rows[0, places]
    at = int(highest.sum(axis=1).argmax())
    level = tuple((before[-1] + nets[-1]).tolist())
    best = max(tuple(highest[at].tolist()), initial, key=sum)
    swings = [at.swing for chunk, share in enumerate(chunks) for at in passes.rules.end_of_step(share, chunk=chunk)]
    swings += [at.swing for part in passes.rules.update(chunks) for at in part]
    end_peak, level = along(level, swings)
    return RankMemory(at_peak=max(best, end_peak, key=sum), final=level)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Passes:
    rules: MemoryRules
    last_stage: int
    known: dict[object, tuple[Levels, Levels]]

    def levels(self, share: StageShare, *, is_backward: bool, first: bool, last: bool) -> tuple[Levels, Levels]:
        """Returns the change up to the highest point of a pass, and its net change; equal passes are walked once."""
        keeps = not self.rules.assumptions.free_sent_activations and share.stage.index < self.last_stage
        key = (share.stage.key, share.stage.tied_copy is not None, keeps, is_backward, first, last)
        if key not in self.known:
            if is_backward:
                memory = self.rules.backward(share, first=first, last=last, keeps_output=keeps)
            else:
                memory = self.rules.forward(share, first=first, keeps_output=keeps)
            self.known[key] = along(ZERO, (at.swing for at in memory))
        return self.known[key]
