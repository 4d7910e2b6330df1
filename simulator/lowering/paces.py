"""The pace of every call: what slow ranks, short microbatches and jitter make of compute times.

The pace of a call is the product of the slowdown of its rank, the share of tokens that its microbatch has, and what
jitter draws for it, in 1/1024 and rounded once. It holds for compute only: transfers move the bytes of full
microbatches at the speed of their links. Compute time is taken to be in proportion to tokens, that of attention too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from simulator.engine.program import OWN_PACE
from simulator.errors import SimulatorFault
from simulator.lowering.members import Membership, pipeline_rank_of
from simulator.lowering.step import LoweredStep, require_countable
from simulator.lowering.variation import JITTER_DRAWS, Shares, Variation, random_stream, stands_for
from simulator.parallel.chosen_ranks import along
from simulator.parallel.groups import Ranks
from simulator.parallel.layout import Axis
from simulator.parallel.variability import Distribution, Fold, Jitter
from simulator.schedule import PipelineSchedule

MAX_PACE = (1 << 31) - 1
LEAST_FACTOR = 0.1
"""Where the normal distribution is cut off."""
Paces = npt.NDArray[np.int32]
NO_RANKS: Ranks = np.zeros(0, dtype=np.int64)
NOT_A_PASS = -1
"""Column of a call that works on no microbatch."""


def lognormal(stream: np.random.Generator, deviation: float, shape: tuple[int, ...]) -> Shares:
    """Returns factors with mean 1: exp(s z - s^2 / 2), s^2 = ln(1 + deviation^2)."""
    scale = np.sqrt(np.log1p(deviation**2))
    return np.asarray(np.exp(scale * stream.standard_normal(shape) - scale**2 / 2))


def normal(stream: np.random.Generator, deviation: float, shape: tuple[int, ...]) -> Shares:
    """Returns factors with mean 1, cut off at a tenth."""
    return np.asarray(np.maximum(LEAST_FACTOR, 1.0 + deviation * stream.standard_normal(shape)))


def exponential(stream: np.random.Generator, deviation: float, shape: tuple[int, ...]) -> Shares:
    """Returns factors from 1 up, with mean 1 + deviation."""
    return np.asarray(1.0 + deviation * stream.standard_exponential(shape))


DISTRIBUTIONS: dict[Distribution, Callable[[np.random.Generator, float, tuple[int, ...]], Shares]] = {
    Distribution.LOGNORMAL: lognormal,
    Distribution.NORMAL: normal,
    Distribution.EXPONENTIAL: exponential,
}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Position:
    """The ranks at one position of the pipeline."""

    classes: Ranks
    """Numbers of their classes."""
    stands_for: Ranks
    """`[class, ranks]`: the ranks whose slowest sets the pace of each class."""
    places: Ranks
    """`[class, ranks]`: the same as places among the ranks of this position."""
    num_ranks: int
    """Ranks at this position."""
    columns: Ranks
    """`[call, 2]`: the microbatches that a call works on, by column of the table of tokens; twice the same if one."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Pacer:
    """Sets the pace of a step, as often as steps are drawn; the step is lowered once."""

    step: LoweredStep
    """As lowered, without paces."""
    variation: Variation
    """What differs between ranks in every step."""
    jitter: Jitter | None
    """What is drawn for each step."""
    seed: int
    """Of what is drawn."""
    replicas: Ranks
    """`[ranks]`: data-parallel replica of each rank."""
    positions: tuple[_Position, ...]
    """By pipeline rank; none where all calls have the pace of their own."""

    def paced(self, number: int = 0) -> LoweredStep:
        """Returns the step with the pace of every call.

        Args:
            number: of the step: its jitter is that of (seed, number).

        Raises:
            ScenarioError: at this pace the step is longer than the engine can count.
        """
        if not self.positions:
            return self.step
        of_rank = np.ones(len(self.replicas)) if self.variation.slowdown is None else self.variation.slowdown
        stream = random_stream(self.seed, JITTER_DRAWS, number)
        if self.jitter is not None and self.jitter.ranks:
            of_rank = of_rank * DISTRIBUTIONS[self.jitter.distribution](stream, self.jitter.ranks, of_rank.shape)
        classes = list(self.step.program.classes)
        for position in self.positions:
            paces = self._paces(position, of_rank, stream)
            for own, pace in zip(position.classes.tolist(), paces, strict=True):
                classes[own] = replace(classes[own], pace=pace)
        program = replace(self.step.program, classes=tuple(classes))
        require_countable(program)
        return replace(self.step, program=program)

    def _paces(self, position: _Position, of_rank: Shares, stream: np.random.Generator) -> Paces:
        """Returns the pace of each call of each class at one position of the pipeline, `[class, call]`."""
        num_calls = len(position.columns)
        found = np.broadcast_to(of_rank[position.stands_for][:, :, np.newaxis], (*position.stands_for.shape, num_calls))
        if self.variation.tokens is not None:
            # Calls without a microbatch, at the begin and the end of a step, have the share of a full one.
            full = np.full((len(self.variation.tokens), 1), self.variation.full_tokens)
            shares = np.hstack([self.variation.tokens, full]) / self.variation.full_tokens
            rows = self.replicas[position.stands_for]
            found = found * shares[rows][:, :, position.columns].mean(axis=-1)
        if self.jitter is not None and self.jitter.compute:
            draw = DISTRIBUTIONS[self.jitter.distribution]
            found = found * draw(stream, self.jitter.compute, (position.num_ranks, num_calls))[position.places]
        paces: Paces = np.rint(found.max(axis=1) * OWN_PACE).clip(1, MAX_PACE).astype(np.int32)
        return paces


def pacer_of(
    step: LoweredStep,
    members: Membership,
    variation: Variation,
    schedule: PipelineSchedule,
    *,
    jitter: Jitter | None = None,
    seed: int = 0,
) -> Pacer:
    """Returns what sets the paces of a step.

    Args:
        step: as lowered for these classes.
        members: the classes; with jitter those of `drawn_members`.
        variation: what differs between ranks in every step.
        schedule: says which microbatch a call works on.
        jitter: what is drawn for each step; None: nothing.
        seed: of what is drawn.
    """
    mesh = variation.mesh
    if jitter is None and variation.slowdown is None and variation.tokens is None:
        return Pacer(step=step, variation=variation, jitter=None, seed=seed, replicas=NO_RANKS, positions=())
    ranks = np.arange(int(mesh.degrees.devices), dtype=np.int64)
    by_position = np.argsort(pipeline_rank_of(ranks, mesh), kind="stable").reshape(schedule.pp, -1)
    rank_of_class = np.array(members.pipeline_ranks, dtype=np.int64)
    together = stands_for(members, mesh, Fold.NONE if jitter is None else jitter.fold)
    positions = []
    for pipeline_rank, here in enumerate(by_position):
        classes = np.flatnonzero(rank_of_class == pipeline_rank)
        positions.append(
            _Position(
                classes=classes,
                stands_for=together[classes],
                places=np.searchsorted(here, together[classes]),
                num_ranks=len(here),
                columns=_columns(schedule, pipeline_rank, len(step.program.classes[classes[0]].calls)),
            )
        )
    return Pacer(
        step=step,
        variation=variation,
        jitter=jitter,
        seed=seed,
        replicas=along(ranks, Axis.DATA, mesh.axes),
        positions=tuple(positions),
    )


def _columns(schedule: PipelineSchedule, rank: int, num_calls: int) -> Ranks:
    """Returns the microbatches of each call of a pipeline rank: the begin of the step, its passes, its end.

    Two joined actions are one call or two, as the lowering has it; as one, it has the mean of their paces.

    Raises:
        SimulatorFault: the calls are not those of this schedule.
    """
    _, stages, microbatches, joined = schedule.ranks[rank].astype(np.int64).T
    own = stages // schedule.chain * schedule.microbatches_per_direction + microbatches
    columns = np.stack([own, own], axis=1)
    if num_calls != len(own) + 2:
        columns[:-1, 1] = np.where(joined[:-1] == 1, own[1:], own[:-1])
        columns = columns[np.append(True, joined[:-1] == 0)]
    if num_calls != len(columns) + 2:
        raise SimulatorFault(f"{num_calls} calls for {len(own)} actions of pipeline rank {rank}")
    return np.pad(columns, ((1, 1), (0, 0)), constant_values=NOT_A_PASS)
