"""When every action of a pipeline ran: what pictures, tables and traces of a schedule are made from.

The times come from a simulated step (`actions_of_step`) or, for a schedule alone, from given times of its passes
(`actions_of_schedule`). In a step an action lasts from the first to the last task of its call on the compute stream;
messages of the pipeline that stand on that stream are not part of it.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from simulator.engine.program import PICOSECONDS_PER_SECOND, Program
from simulator.engine.timeline import Timeline
from simulator.errors import SimulatorFault
from simulator.lowering.builder import CATEGORIES, Category
from simulator.schedule import ActionKind, PipelineSchedule

if TYPE_CHECKING:
    from simulator.report.simulated import Simulated

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]

KINDS = tuple(ActionKind)
COMPUTE = 0
"""Number of the compute stream."""
_PAIR = 2


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RankActions:
    """The actions of one pipeline rank in their order; each array has an entry for each."""

    rank: int
    """The pipeline rank."""
    kind: IntArray
    """Code of the action's kind, its place in `ActionKind`."""
    stage: IntArray
    """Virtual stage."""
    chunk: IntArray
    """Which of the rank's stages that is, from 0."""
    microbatch: IntArray
    """Number in the step, from 0; a second direction counts on from the first."""
    joined: npt.NDArray[np.bool_]
    """Whether the action runs overlapped with the next one."""
    begin: FloatArray
    """When it begins."""
    end: FloatArray
    """When it ends."""
    update: tuple[float, float] | None = None
    """Begin and end of the rank's optimizer update, if it is known."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PipelineActions:
    """The actions of one pipeline in one step."""

    schedule: str
    """Name of the schedule."""
    pp: int
    """Pipeline ranks."""
    num_chunks: int
    """Stages of a rank."""
    microbatches: int
    """Microbatches of the step."""
    in_seconds: bool
    """Whether times are seconds; else they are in the unit of the times that were given."""
    end: float
    """When the step ends."""
    ranks: tuple[RankActions, ...]
    """By pipeline rank, those that are known."""

    @property
    def passes_end(self) -> float:
        """When the last action ends."""
        return max((float(each.end.max(initial=0.0)) for each in self.ranks), default=0.0)

    @property
    def idle_fraction(self) -> float:
        """Share of the ranks' time, until the last action ends, in which they run no action."""
        whole = self.passes_end * len(self.ranks)
        return 1.0 - sum(_busy(each) for each in self.ranks) / whole if whole else 0.0


def _busy(actions: RankActions) -> float:
    """Time of the actions of a rank; a joined pair counts once."""
    second = np.append(False, actions.joined[:-1])
    return float((actions.end - actions.begin)[~second].sum())


def actions_of_schedule(
    schedule: PipelineSchedule, begins: Sequence[FloatArray], ends: Sequence[FloatArray]
) -> PipelineActions:
    """Returns the actions of a schedule at given times.

    Args:
        schedule: the order.
        begins: for each pipeline rank, when its actions begin, in their order; any one unit.
        ends: when they end.
    """
    ranks = tuple(
        rank_actions(schedule, rank, np.asarray(begin, dtype=np.float64), np.asarray(end, dtype=np.float64))
        for rank, (begin, end) in enumerate(zip(begins, ends, strict=True))
    )
    end = max((float(each.end.max(initial=0.0)) for each in ranks), default=0.0)
    return _pipeline(schedule, ranks, end=end, in_seconds=False)


def actions_of_step(simulated: Simulated) -> PipelineActions:
    """Returns when one pipeline of a simulated step ran its actions, of the ranks whose spans were recorded.

    Of several pipelines that differ it is the one that `pipeline_classes` chooses.

    Raises:
        SimulatorFault: no spans were recorded.
    """
    schedule, timeline, step = simulated.schedule, simulated.timeline, simulated.step
    if timeline.spans is None:
        raise SimulatorFault("a picture needs a timeline with spans; run the engine with record_spans")
    recorded = set(np.unique(timeline.spans["class"]).tolist())
    ranks = [
        class_actions(schedule, step.program, timeline, number, rank=step.pipeline_ranks[number])
        for number in pipeline_classes(step.program, step.pipeline_ranks)
        if number in recorded
    ]
    end = timeline.makespan_ps / PICOSECONDS_PER_SECOND
    return _pipeline(schedule, tuple(ranks), end=end, in_seconds=True)


def class_actions(
    schedule: PipelineSchedule, program: Program, timeline: Timeline, number: int, *, rank: int
) -> RankActions:
    """Returns when one rank class ran its actions, in seconds.

    Args:
        schedule: the order.
        program: what ran.
        timeline: what ran when, with the spans of this class.
        number: which class.
        rank: its pipeline rank.
    """
    begin_ps, end_ps = action_bounds(schedule, program, timeline, number, rank=rank)
    update = _update(program, timeline, number)
    return rank_actions(
        schedule, rank, begin_ps / PICOSECONDS_PER_SECOND, end_ps / PICOSECONDS_PER_SECOND, update=update
    )


def action_bounds(
    schedule: PipelineSchedule, program: Program, timeline: Timeline, number: int, *, rank: int
) -> tuple[IntArray, IntArray]:
    """Returns begin and end of each action of a rank class in picoseconds, in the order of its schedule.

    Both actions of a joined pair begin with the first and end with the last of them.

    Raises:
        SimulatorFault: the calls of the class are not those of its schedule.
    """
    calls = call_of_action(schedule, rank, len(program.classes[number].calls))
    begins, ends = (times[calls] for times in call_bounds(program, timeline, number))
    first = np.flatnonzero(schedule.ranks[rank][:, 3])
    begins[first + 1] = begins[first] = np.minimum(begins[first], begins[first + 1])
    ends[first + 1] = ends[first] = np.maximum(ends[first], ends[first + 1])
    return begins, ends


def call_of_action(schedule: PipelineSchedule, rank: int, num_calls: int) -> IntArray:
    """Returns which call of a class runs each action of its pipeline rank, in their order.

    The first call is the begin of the step and the last one its end. A joined pair is one call, or two in a row.

    Raises:
        SimulatorFault: there are not as many calls as that takes.
    """
    joined = schedule.ranks[rank][:, 3].astype(np.bool_)
    num_passes = num_calls - 2
    if num_passes == len(joined):
        return np.arange(1, num_calls - 1)
    second = np.append(False, joined[:-1])
    if num_passes != np.count_nonzero(~second):
        raise SimulatorFault(f"{num_calls} calls for {len(joined)} actions of pipeline rank {rank}")
    calls: IntArray = np.cumsum(~second)
    return calls


def call_bounds(program: Program, timeline: Timeline, number: int) -> tuple[IntArray, IntArray]:
    """Returns when each call of a rank class begins and ends on the compute stream, picoseconds.

    Messages of the pipeline and tasks that take no time do not count; a call of such only lasts no time.
    """
    calls = program.classes[number].calls[:, 0]
    spans = compute_spans(timeline, number)
    call = call_of_span(program, calls, stream=COMPUTE)
    if len(call) != len(spans):
        raise SimulatorFault(f"{len(spans)} spans on the compute stream of class {number}, not {len(call)}")
    pipeline = CATEGORIES.index(Category.PIPELINE)
    counts = (category_of(program, spans) != pipeline) & (spans["end_ps"] > spans["begin_ps"])
    begin_ps = np.full(len(calls), np.iinfo(np.int64).max)
    end_ps = np.full(len(calls), -1, dtype=np.int64)
    np.minimum.at(begin_ps, call[counts], spans["begin_ps"][counts])
    np.maximum.at(end_ps, call[counts], spans["end_ps"][counts])
    empty = end_ps < 0
    end_ps = np.maximum(np.maximum.accumulate(end_ps), 0)
    begin_ps[empty] = end_ps[empty]
    return begin_ps, end_ps


def call_of_span(program: Program, routines: npt.NDArray[np.integer[Any]], *, stream: int) -> IntArray:
    """Returns which call each span of a stream belongs to.

    Args:
        program: what ran.
        routines: the routine of each call of the class.
        stream: number of the stream.
    """
    sizes = [sum(task.stream == stream for task in routine.tasks) for routine in program.routines]
    return np.repeat(np.arange(len(routines)), np.array(sizes, dtype=np.int64)[routines])


def compute_spans(timeline: Timeline, number: int) -> npt.NDArray[np.void]:
    """Returns the spans of a class on its compute stream, in their order."""
    spans = timeline.spans
    if spans is None:
        raise SimulatorFault("the timeline was recorded without spans")

    def place(row: int) -> tuple[int, int]:
        return int(spans["class"][row]), int(spans["stream"][row])

    rows = range(len(spans))  # in the order (class, stream)
    first, after = (bisect_left(rows, key, key=place) for key in ((number, COMPUTE), (number, COMPUTE + 1)))
    return spans[first:after]


def category_of(program: Program, spans: npt.NDArray[np.void]) -> IntArray:
    """Returns the number of the category of each span."""
    first = np.cumsum([0, *(len(routine.tasks) for routine in program.routines)])
    categories = np.array([task.category for routine in program.routines for task in routine.tasks], dtype=np.int64)
    found: IntArray = categories[first[spans["routine"]] + spans["task"]]
    return found


def pipeline_classes(program: Program, pipeline_ranks: Sequence[int]) -> tuple[int, ...]:
    """Returns one rank class for each pipeline rank, all of one pipeline.

    It is the pipeline of the class that stands for fewest ranks, as that is the one with something special about it;
    the first of equal ones. Whoever shares a communicator of two with a class is of the same pipeline.
    """
    members: defaultdict[int, list[int]] = defaultdict(list)
    for number, rank_class in enumerate(program.classes):
        for communicator in set(rank_class.communicators):
            members[communicator].append(number)
    start = min(range(len(program.classes)), key=lambda number: (program.classes[number].count, number))
    found = {pipeline_ranks[start]: start}
    ways = [start]
    while ways:
        for communicator in program.classes[ways.pop()].communicators:
            for other in members[communicator] if len(members[communicator]) == _PAIR else ():
                if pipeline_ranks[other] not in found:
                    found[pipeline_ranks[other]] = other
                    ways.append(other)
    for number, rank in enumerate(pipeline_ranks):
        found.setdefault(rank, number)
    return tuple(found[rank] for rank in sorted(found))


def _update(program: Program, timeline: Timeline, number: int) -> tuple[float, float] | None:
    spans = compute_spans(timeline, number)
    updates = spans[category_of(program, spans) == CATEGORIES.index(Category.OPTIMIZER)]
    if not len(updates):
        return None
    return (
        int(updates["begin_ps"].min()) / PICOSECONDS_PER_SECOND,
        int(updates["end_ps"].max()) / PICOSECONDS_PER_SECOND,
    )


def rank_actions(
    schedule: PipelineSchedule,
    rank: int,
    begin: FloatArray,
    end: FloatArray,
    *,
    update: tuple[float, float] | None = None,
) -> RankActions:
    """Returns the actions of a pipeline rank at given times, in any one unit."""
    kind, stage, microbatch, joined = schedule.ranks[rank].astype(np.int64).T
    if len(begin) != len(kind) or len(end) != len(kind):
        raise SimulatorFault(f"{len(begin)} begins and {len(end)} ends for {len(kind)} actions of rank {rank}")
    return RankActions(
        rank=rank,
        kind=kind,
        stage=stage,
        chunk=np.searchsorted(np.array(schedule.stages_of(rank)), stage),
        microbatch=microbatch + stage // schedule.chain * schedule.microbatches_per_direction,
        joined=joined.astype(np.bool_),
        begin=begin,
        end=end,
        update=update,
    )


def _pipeline(
    schedule: PipelineSchedule, ranks: Iterable[RankActions], *, end: float, in_seconds: bool
) -> PipelineActions:
    return PipelineActions(
        schedule=schedule.name,
        pp=schedule.pp,
        num_chunks=schedule.num_stages // schedule.pp,
        microbatches=schedule.microbatches,
        in_seconds=in_seconds,
        end=end,
        ranks=tuple(ranks),
    )
