"""The memory of a step without its time: the swings of a rank's actions, added up in the order of the program.

What repeats is walked once: equal stages, equal passes of a stage, equal layers in the middle of a stage.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import groupby

import numpy as np
import numpy.typing as npt

from simulator.cost.memory import MEMORY, ZERO, Levels, Swing
from simulator.cost.shares import StageShare
from simulator.cost.stage_memory import At, MemoryRules, PassMemory
from simulator.parallel.training import FullRecompute
from simulator.schedule import PipelineSchedule
from simulator.schedule.actions import BACKWARD_CODE

IntArray = npt.NDArray[np.int64]
EDGE_LAYERS = 2
"""Layers at each end of a row of equal ones that may differ from those in its middle, beside those gathered ahead."""
PLACES = 4
"""First and last microbatch of a step or not: passes of a stage in one direction that may differ."""


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
    orders = _orders(schedule)
    passes = _Passes(rules=rules, last_stage=schedule.num_stages - 1)
    ranks = []
    for rank in range(schedule.pp):
        chunks = [shares[stage] for stage in schedule.stages_of(rank)]
        ranks.append(_walk_rank(passes, chunks, orders[rank], initial[rank]))
    return tuple(ranks)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Order:
    """The passes of a pipeline rank, each as the number of its kind."""

    kinds: IntArray
    """Kind of each action in order: (direction, chunk, first, last) as one number; shape [actions]."""
    used: tuple[int, ...]
    """Kinds that occur."""


@lru_cache(maxsize=64)
def _orders(schedule: PipelineSchedule) -> tuple[_Order, ...]:
    """Returns the order of every rank; a schedule is compared by identity."""
    found = []
    for rank, actions in enumerate(schedule.ranks):
        codes, stages, microbatches = actions.T
        own = schedule.stages_of(rank)
        chunk_of = np.searchsorted(np.array(own), stages)
        is_first, is_last = microbatches == 0, microbatches == schedule.microbatches - 1
        kinds = ((codes == BACKWARD_CODE) * len(own) + chunk_of) * PLACES + is_first * 2 + is_last
        found.append(_Order(kinds=kinds.astype(np.int64), used=tuple(np.unique(kinds).tolist())))
    return tuple(found)


def _walk_rank(passes: _Passes, chunks: list[StageShare], order: _Order, initial: Levels) -> RankMemory:
    peaks, nets = passes.table(chunks, order.used)
    net = nets.sum(axis=1)[order.kinds]
    highest = np.cumsum(net) - net + peaks.sum(axis=1)[order.kinds]
    at = int(highest.argmax())
    before = np.bincount(order.kinds[:at], minlength=len(nets)) @ nets
    start = np.array(initial, dtype=np.int64)
    best = max(tuple((start + before + peaks[order.kinds[at]]).tolist()), initial, key=sum)
    level = start + np.bincount(order.kinds, minlength=len(nets)) @ nets
    end_peak, end_net = passes.end(chunks)
    at_end = tuple((level + end_peak).tolist())
    return RankMemory(at_peak=max(best, at_end, key=sum), final=tuple((level + end_net).tolist()))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Passes:
    """The passes of stages, each walked once."""

    rules: MemoryRules
    last_stage: int
    known: dict[object, tuple[IntArray, IntArray]] = field(default_factory=dict)

    def table(self, chunks: list[StageShare], used: tuple[int, ...]) -> tuple[IntArray, IntArray]:
        """Returns for each kind of pass its change up to the highest point and its net change: [kinds, categories]."""
        key = ("table", used, *(self._key(share) for share in chunks))
        if key not in self.known:
            rows = np.zeros((2, used[-1] + 1, len(MEMORY)), dtype=np.int64)
            for kind in used:
                direction, chunk = divmod(kind // PLACES, len(chunks))
                rows[:, kind] = self._levels(
                    chunks[chunk], is_backward=bool(direction), first=bool(kind & 2), last=bool(kind & 1)
                )
            self.known[key] = (rows[0], rows[1])
        return self.known[key]

    def end(self, chunks: list[StageShare]) -> tuple[IntArray, IntArray]:
        """Returns the same of the end of the step, which begins where the last pass has ended."""
        key = ("end", *(self._key(share) for share in chunks))
        if key not in self.known:
            meter = _Meter()
            for chunk, share in enumerate(chunks):
                meter.pass_by(self.rules.end_of_step(share, chunk=chunk))
            for part in self.rules.update(chunks):
                meter.pass_by(part)
            self.known[key] = meter.extremes()
        return self.known[key]

    def _levels(self, share: StageShare, *, is_backward: bool, first: bool, last: bool) -> tuple[IntArray, IntArray]:
        key = (self._key(share), is_backward, first, last)
        if key not in self.known:
            keeps = self._keeps_output(share)
            in_buckets = is_backward and last and self.rules.frees_gradients_in_buckets
            short, left_out = (share, {}) if in_buckets else self._shortened(share)
            if is_backward:
                memory = self.rules.backward(short, first=first, last=last, keeps_output=keeps)
            else:
                memory = self.rules.forward(short, first=first, keeps_output=keeps)
            self.known[key] = _pass_extremes(memory, left_out)
        return self.known[key]

    def _key(self, share: StageShare) -> object:
        return share.stage.key, share.stage.tied_copy is not None, self._keeps_output(share)

    def _keeps_output(self, share: StageShare) -> bool:
        return not self.rules.assumptions.free_sent_activations and share.stage.index < self.last_stage

    def _shortened(self, share: StageShare) -> tuple[StageShare, dict[int, int]]:
        """Returns the stage with fewer equal layers, and how many are left out beside which one that stays."""
        rules = self.rules
        if isinstance(rules.training.recompute, FullRecompute):
            return share, {}
        edge = EDGE_LAYERS + (rules.assumptions.fsdp_prefetch_layers if rules.zero >= 3 else 0)
        layers = []
        left_out = {}
        for _, run in groupby(share.layers, key=id):
            same = list(run)
            surplus = len(same) - 2 * edge - 1
            if surplus > 0:
                left_out[len(layers) + edge] = surplus
                same = same[:-surplus]
            layers += same
        return (replace(share, layers=tuple(layers)), left_out) if left_out else (share, {})


def _pass_extremes(memory: PassMemory, left_out: dict[int, int]) -> tuple[IntArray, IntArray]:
    """Returns the extremes of a pass; layers that are left out are as the one beside them.

    Of equal layers in a row the first or the last is the highest, as each changes the level by as much.
    """
    meter = _Meter()
    meter.pass_by(memory.begin)
    for position, layer in memory.layers.items():
        swings = (*layer.before, layer.during, *layer.after)
        meter.pass_by(swings)
        if position in left_out:
            meter.skip(swings, times=left_out[position] - 1)
            meter.pass_by(swings)
    meter.pass_by(memory.end)
    return meter.extremes()


class _Meter:
    """The level along swings in a row, from zero."""

    def __init__(self) -> None:
        self._peak, self._level = ZERO, ZERO
        self._total = self._highest = 0

    def pass_by(self, swings: Iterable[At]) -> None:
        """Adds swings."""
        for at in swings:
            swing = at.swing
            if self._total + sum(swing.peak) > self._highest:
                self._peak = _plus(self._level, swing.peak)
                self._highest = sum(self._peak)
            self._add(swing, times=1)

    def skip(self, swings: Iterable[At], *, times: int) -> None:
        """Adds swings so many times, none of which is a new peak."""
        for at in swings:
            self._add(at.swing, times=times)

    def extremes(self) -> tuple[IntArray, IntArray]:
        """Returns the level at the highest point, and the level now."""
        return np.array(self._peak, dtype=np.int64), np.array(self._level, dtype=np.int64)

    def _add(self, swing: Swing, *, times: int) -> None:
        change = swing.net if times == 1 else tuple(times * net for net in swing.net)
        self._level = _plus(self._level, change)
        self._total = sum(self._level)


def _plus(level: Levels, change: Levels) -> Levels:
    return tuple(now + more for now, more in zip(level, change, strict=True))
