"""From routines to segments: what one routine comes to on the hardware of one class.

A routine is shared between classes, but how long its transfers take, and whether they can meet other traffic, depends
on the class's resources. A `Variant` is a routine with that settled; classes with equal resources share it.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

from simulator.engine.events import COMPUTE_STREAM, EventPlaces, needed_waits
from simulator.engine.program import ENDING, Program, Task, pace_units
from simulator.engine.tables import CONTENDED, FIXED, MEETING


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """What a routine's segments depend on, apart from the routine; the key under which classes share them."""

    routine: int
    """Index into `Program.routines`."""
    events: EventPlaces
    """Where its events are kept."""
    resources: tuple[tuple[int, int, float, bool, int], ...]
    """For each resource slot of the routine: slot, first slot of the same resource, bytes per second, contended,
    sharers."""
    lone_communicators: tuple[int, ...]
    """Communicator slots of the routine whose only participant is the class: their meetings are plain tasks."""
    is_logged: bool
    """Whether every segment's times are kept, for spans."""


@dataclass(slots=True, kw_only=True)
class Segment:
    """Tasks of one routine on one stream that run in one step."""

    kind: int
    """`FIXED`: any number of tasks of known duration; `CONTENDED`, `MEETING`: one task."""
    waits: tuple[int, ...]
    """Event slots of its first task."""
    duration_ps: int = 0
    """Of a fixed segment at its own pace; else the latency."""
    units: int = 0
    """What one unit of pace adds to the duration, picoseconds."""
    tasks: list[tuple[int, int, int, int, int]] = field(default_factory=list)
    """(position in the routine, begin, units before, end, units up to it) from the begin of the segment; the end is
    open unless it is fixed."""
    changes: list[tuple[int, int, bool, int, int]] = field(default_factory=list)
    """Counter changes: (time from the begin of the segment, units before, at start, counter, delta)."""
    records: int | None = None
    """Event slot that its last task records."""
    category: int = 0
    """Of its last task."""
    communicator: int = 0
    """Slot, if it is a meeting."""
    demands: list[tuple[int, int, int]] = field(default_factory=list)
    """(resource slot, bytes of all flows, bytes of the task's largest flow), if it is not fixed."""

    @property
    def is_open(self) -> bool:
        """Return whether a task without waits may be added."""
        return self.kind == FIXED and self.records is None


@dataclass(slots=True, kw_only=True)
class SegmentedRoutine:
    """A variant's segments, and what one call of it adds to the sums whatever happens."""

    segments: list[list[Segment]]
    """For each stream."""
    num_tasks: int
    compute_ps: dict[int, int]
    """By category: time of the fixed tasks on the compute stream, at their own pace."""
    compute_units: dict[int, int]
    """By category: what one unit of pace adds to that."""
    busy_ps: dict[int, int]
    """By category: time of the fixed tasks on any stream, at their own pace."""
    busy_units: dict[int, int]
    """By category: what one unit of pace adds to that."""
    resource_bytes: dict[int, int]
    """By resource slot: bytes of all tasks."""
    resource_busy_ps: dict[int, int]
    """By resource slot: time in which the fixed tasks use it."""


def segment_routine(program: Program, variant: Variant) -> SegmentedRoutine:
    """Return the segments of a variant.

    Args:
        program: The program.
        variant: One of its routines and the hardware of a class.

    Returns:
        Segments by stream, and constant sums.
    """
    tasks = program.routines[variant.routine].tasks
    kept = {slot for slot, _ in variant.events.places}
    resources = {
        slot: (first, capacity, contended, sharers) for slot, first, capacity, contended, sharers in variant.resources
    }
    result = SegmentedRoutine(
        segments=[[] for _ in program.streams],
        num_tasks=len(tasks),
        compute_ps=defaultdict(int),
        compute_units=defaultdict(int),
        busy_ps=defaultdict(int),
        busy_units=defaultdict(int),
        resource_bytes=defaultdict(int),
        resource_busy_ps=defaultdict(int),
    )
    for position, (task, waits) in enumerate(zip(tasks, needed_waits(program, tasks), strict=True)):
        bytes_on: dict[int, int] = defaultdict(int)
        for demand in task.demands:
            if demand.bytes > 0:
                first, _, _, sharers = resources[demand.resource]
                bytes_on[first] += sharers * demand.bytes
        for slot, size in bytes_on.items():
            result.resource_bytes[slot] += size
        kind = FIXED
        if task.communicator is not None and task.communicator not in variant.lone_communicators:
            kind = MEETING
        elif any(resources[slot][2] for slot in bytes_on):
            kind = CONTENDED
        segment = _segment_for(result.segments[task.stream], waits, kind)
        begin_ps, begin_units, duration_ps, units = segment.duration_ps, segment.units, task.duration_ps, 0
        if kind == FIXED:
            if bytes_on:
                whole_s = max(float(size) / resources[slot][1] for slot, size in bytes_on.items())
                moving_ps = max(1, math.ceil(whole_s * ENDING))
                duration_ps += moving_ps
                for slot in bytes_on:
                    result.resource_busy_ps[slot] += moving_ps
            units = pace_units(task)
            result.busy_ps[task.category] += duration_ps
            result.busy_units[task.category] += units
            if task.stream == COMPUTE_STREAM:
                result.compute_ps[task.category] += duration_ps
                result.compute_units[task.category] += units
        else:
            flow = max((demand.bytes for demand in task.demands), default=0)
            segment.demands = [(slot, size, flow) for slot, size in bytes_on.items()]
            segment.communicator = task.communicator or 0
        segment.duration_ps += duration_ps
        segment.units += units
        begin, end = (begin_ps, begin_units), (segment.duration_ps, segment.units)
        segment.tasks.append((position, *begin, *end))
        segment.changes += [(*begin, True, change.counter, change.delta) for change in task.at_start]
        segment.changes += [(*end, False, change.counter, change.delta) for change in task.at_end]
        segment.category = task.category
        if task.records in kept:
            segment.records = task.records
    return result


def _segment_for(segments: list[Segment], waits: tuple[int, ...], kind: int) -> Segment:
    """Return the stream's last segment if a task can go on in it, else a new one."""
    if kind != FIXED or waits or not segments or not segments[-1].is_open:
        segments.append(Segment(kind=kind, waits=waits))
    return segments[-1]


@dataclass(frozen=True, slots=True)
class RoutineUse:
    """Who brings what to the network in a routine, for any hardware."""

    communicators: frozenset[tuple[int, int]]
    """(slot, stream)."""
    demands: frozenset[tuple[int, int | None, int]]
    """(stream, communicator slot, resource slot) of demands that are not zero."""
    widest: tuple[int, ...]
    """For each stream: the largest number of demands of a task."""


def use_of(tasks: Sequence[Task], num_streams: int) -> RoutineUse:
    """Return what a routine's tasks bring to the network."""
    widest = [0] * num_streams
    for task in tasks:
        widest[task.stream] = max(widest[task.stream], len(task.demands))
    return RoutineUse(
        frozenset((task.communicator, task.stream) for task in tasks if task.communicator is not None),
        frozenset(
            (task.stream, task.communicator, demand.resource)
            for task in tasks
            for demand in task.demands
            if demand.bytes > 0
        ),
        tuple(widest),
    )
