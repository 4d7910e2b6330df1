"""The memory of a step without its time: the swings of a rank's actions, added up in the order of the program.

What repeats is walked once: equal stages, equal passes of a stage, equal layers in the middle of a stage.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import groupby

import numpy as np
import numpy.typing as npt

from simulator.cost.memory import MEMORY, ZERO, Levels
from simulator.cost.pass_memory import At, PassMemory, paired
from simulator.cost.shares import LayerShare, StageShare
from simulator.cost.stage_memory import MemoryRules
from simulator.lowering.order import Pass, RankOrder, passes_of_kind, rank_order
from simulator.parallel.training import FullRecompute
from simulator.schedule import PipelineSchedule

IntArray = npt.NDArray[np.int64]
EDGE_LAYERS = 2
"""Layers at each end of a row of equal ones that may differ from those in its middle, beside those gathered ahead."""


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
        shares: what a rank holds of each stage of the model.
        schedule: the order of actions.
        initial: of each pipeline rank, the level before the step.
    """
    passes = _Passes(rules=rules, last_stage=schedule.chain - 1)
    alike: dict[object, list[tuple[int, RankOrder]]] = {}
    for rank, order in enumerate(_orders(schedule)):
        chunks = tuple(passes.key(shares[stage]) for stage in order.stages)
        alike.setdefault((chunks, order.used, order.counts, initial[rank]), []).append((rank, order))
    found: dict[int, RankMemory] = {}
    for ranks in alike.values():
        first, order = ranks[0]
        walked = _walk_ranks(
            passes, [shares[stage] for stage in order.stages], [order for _, order in ranks], initial[first]
        )
        found |= zip((rank for rank, _ in ranks), walked, strict=True)
    return tuple(found[rank] for rank in range(schedule.pp))


def stages_of_ranks(schedule: PipelineSchedule) -> tuple[tuple[int, ...], ...]:
    """Returns the stages of the model that every pipeline rank holds, by chunk."""
    return tuple(order.stages for order in _orders(schedule))


@lru_cache(maxsize=64)
def _orders(schedule: PipelineSchedule) -> tuple[RankOrder, ...]:
    """Returns the order of every rank; a schedule is compared by identity."""
    return tuple(rank_order(schedule, rank) for rank in range(schedule.pp))


def _walk_ranks(
    passes: _Passes, chunks: list[StageShare], orders: list[RankOrder], initial: Levels
) -> Iterator[RankMemory]:
    """Yields the memory of ranks whose stages are alike, each in its own order of the same passes."""
    peaks, nets = passes.table(chunks, orders[0].used)
    end_peak, end_net = passes.end(chunks)
    start = np.array(initial, dtype=np.int64)
    kinds = np.stack([order.kinds for order in orders])
    net = nets.sum(axis=1)[kinds]
    highest = net.cumsum(axis=1) - net + peaks.sum(axis=1)[kinds]
    level = start + np.bincount(kinds[0], minlength=len(nets)) @ nets
    outside = max(initial, tuple((level + end_peak).tolist()), key=sum)
    final = tuple((level + end_net).tolist())
    for own, at in zip(kinds, highest.argmax(axis=1).tolist(), strict=True):
        inside = start + np.bincount(own[:at], minlength=len(nets)) @ nets + peaks[own[at]]
        yield RankMemory(at_peak=max(tuple(inside.tolist()), outside, key=sum), final=final)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Passes:
    """The passes of stages, each walked once."""

    rules: MemoryRules
    last_stage: int
    known: dict[object, tuple[IntArray, IntArray]] = field(default_factory=dict)

    def table(self, chunks: list[StageShare], used: tuple[int, ...]) -> tuple[IntArray, IntArray]:
        """Returns for each kind of pass its change up to the highest point and its net change: [kinds, categories]."""
        key = ("table", used, *(self.key(share) for share in chunks))
        if key not in self.known:
            rows = np.zeros((2, len(used), len(MEMORY)), dtype=np.int64)
            for row, number in enumerate(used):
                rows[:, row] = self._levels(chunks, passes_of_kind(number, len(chunks)))
            self.known[key] = (rows[0], rows[1])
        return self.known[key]

    def end(self, chunks: list[StageShare]) -> tuple[IntArray, IntArray]:
        """Returns the same of the end of the step, which begins where the last pass has ended."""
        key = ("end", *(self.key(share) for share in chunks))
        if key not in self.known:
            rules = self.rules
            short = [(share, {}) if rules.frees_gradients_in_buckets else self._shortened(share) for share in chunks]
            swings = [at for chunk, (share, _) in enumerate(short) for at in rules.end_of_step(share, chunk=chunk)]
            swings += [at for part in rules.update([share for share, _ in short]) for at in part]
            self.known[key] = _end_extremes(swings, [left_out for _, left_out in short])
        return self.known[key]

    def _levels(self, chunks: list[StageShare], kind: tuple[Pass, ...]) -> tuple[IntArray, IntArray]:
        """Returns the same of a pass or of a joined pair."""
        turns = [self.rules.turn(each.action, each.turn) for each in kind]
        shares = [chunks[each.chunk] for each in kind]
        key = tuple((self.key(share), each.action, turn) for share, each, turn in zip(shares, kind, turns, strict=True))
        if key in self.known:
            return self.known[key]
        # Beside each other the layers of two stages do not repeat in one step; buckets are of all layers of a stage.
        whole = len(kind) > 1 or any(turn.last_gradients for turn in turns)
        short = [(share, {}) if whole else self._shortened(share) for share in shares]
        memory = [
            self.rules.passed(share, each.action, turn, keeps_output=self._keeps_output(share))
            for (share, _), each, turn in zip(short, kind, turns, strict=True)
        ]
        both = memory[0] if len(kind) == 1 else paired(*memory, chunks=(kind[0].chunk, kind[1].chunk))
        self.known[key] = _pass_extremes(both, short[0][1])
        return self.known[key]

    def key(self, share: StageShare) -> object:
        """Returns what tells the passes of a stage from those of others."""
        return share.stage.key, share.stage.tied_copy is not None, self._keeps_output(share)

    def _keeps_output(self, share: StageShare) -> bool:
        return not self.rules.assumptions.free_sent_activations and share.stage.index < self.last_stage

    def _shortened(self, share: StageShare) -> tuple[StageShare, dict[int, int]]:
        """Returns the stage with fewer equal layers, and how many are left out beside which one that stays."""
        rules = self.rules
        if isinstance(rules.training.recompute, FullRecompute):
            return share, {}
        edge = EDGE_LAYERS + (rules.assumptions.fsdp_prefetch_layers if rules.zero >= 3 else 0)
        layers: list[LayerShare] = []
        left_out: dict[int, int] = {}
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


def _end_extremes(swings: Iterable[At], left_out: Sequence[dict[int, int]]) -> tuple[IntArray, IntArray]:
    """Returns the extremes of the end of the step, where each layer's tensors come, or go, one after the other."""
    meter = _Meter()
    for at in swings:
        meter.pass_by((at,))
        times = 0 if at.chunk is None or at.place is None else left_out[at.chunk].get(at.place, 0)
        if times:
            meter.skip((at,), times=times - 1)
            meter.pass_by((at,))
    return meter.extremes()


class _Meter:
    """The level along swings in a row, from zero."""

    def __init__(self) -> None:
        self._nets: list[Levels] = [ZERO]
        self._total = self._highest = 0
        self._peak: tuple[int, Levels] = (0, ZERO)
        """How many net changes come before the highest point, and the change from there."""

    def pass_by(self, swings: Iterable[At]) -> None:
        """Adds swings."""
        for at in swings:
            peak, net = at.swing.extremes
            highest = self._total + sum(peak)
            if highest > self._highest:
                self._highest = highest
                self._peak = (len(self._nets), peak)
            self._nets.append(net)
            self._total += sum(net)

    def skip(self, swings: Iterable[At], *, times: int) -> None:
        """Adds swings so many times, none of which is a new peak."""
        for at in swings:
            self._nets.append(tuple(times * net for net in at.swing.net))
            self._total += sum(self._nets[-1])

    def extremes(self) -> tuple[IntArray, IntArray]:
        """Returns the level at the highest point, and the level now."""
        nets = np.array(self._nets, dtype=np.int64)
        count, peak = self._peak
        return nets[:count].sum(axis=0) + np.array(peak, dtype=np.int64), nets.sum(axis=0)
