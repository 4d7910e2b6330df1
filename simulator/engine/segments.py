"""From routines to segments: what one routine comes to on the hardware of one class.

A routine is shared between classes, but how long its transfers take, and whether they can meet other traffic, depends
on the class's resources. A `Variant` is a routine with that settled; classes with equal resources share it.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from functools import cache

import numpy as np

from simulator.engine.program import PICOSECONDS_PER_SECOND, Program, RankClass, Task
from simulator.engine.tables import CONTENDED, FIXED, MEETING

COMPUTE_STREAM = 0
NOT_KEPT = (-1, 0, False)
"""Place of an event that no task waits for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """What a routine's segments depend on, apart from the routine; the key under which classes share them."""

    routine: int
    """Index into `Program.routines`."""
    event_places: tuple[tuple[int, int, bool], ...]
    """For each event slot: offset and stride of its events inside the class, and whether the compute stream waits for
    them; `NOT_KEPT` if no task does."""
    resources: tuple[tuple[int, int, float, bool], ...]
    """For each resource slot of the routine: slot, first slot of the same resource, bytes per second, contended."""
    lone_communicators: tuple[int, ...]
    """Communicator slots of the routine whose only participant is the class: their meetings are plain tasks."""
    is_logged: bool
    """Whether every segment's times are kept, for spans; else only those with counter changes."""


@dataclass(slots=True, kw_only=True)
class Segment:
    """Tasks of one routine on one stream that run in one step."""

    kind: int
    """`FIXED`: any number of tasks of known duration; `CONTENDED`, `MEETING`: one task."""
    waits: tuple[int, ...]
    """Event slots of its first task."""
    duration_ps: int = 0
    """Of a fixed segment; else the latency."""
    tasks: list[tuple[int, int, int]] = field(default_factory=list)
    """(position in the routine, begin, end) from the begin of the segment; the end is open unless it is fixed."""
    changes: list[tuple[int, bool, int, int]] = field(default_factory=list)
    """Counter changes: (time from the begin of the segment, at start, counter, delta)."""
    records: int | None = None
    """Event slot that its last task records."""
    category: int = 0
    """Of its last task."""
    communicator: int = 0
    """Slot, if it is a meeting."""
    demands: list[tuple[int, int]] = field(default_factory=list)
    """(resource slot, bytes), if it is not fixed."""

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
    """By category: time of the fixed tasks on the compute stream."""
    busy_ps: dict[int, int]
    """By category: time of the fixed tasks on any stream."""
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
    resources = {slot: (first, capacity, contended) for slot, first, capacity, contended in variant.resources}
    result = SegmentedRoutine(
        segments=[[] for _ in program.streams],
        num_tasks=len(tasks),
        compute_ps=defaultdict(int),
        busy_ps=defaultdict(int),
        resource_bytes=defaultdict(int),
        resource_busy_ps=defaultdict(int),
    )
    for position, task in enumerate(tasks):
        bytes_on: dict[int, int] = defaultdict(int)
        for demand in task.demands:
            if demand.bytes > 0:
                bytes_on[resources[demand.resource][0]] += demand.bytes
        for slot, size in bytes_on.items():
            result.resource_bytes[slot] += size
        kind = FIXED
        if task.communicator is not None and task.communicator not in variant.lone_communicators:
            kind = MEETING
        elif any(resources[slot][2] for slot in bytes_on):
            kind = CONTENDED
        segment = _segment_for(result.segments[task.stream], task, kind)
        begin_ps, duration_ps = segment.duration_ps, task.duration_ps
        if kind == FIXED:
            if bytes_on:
                whole_s = max(float(size) / resources[slot][1] for slot, size in bytes_on.items())
                moving_ps = max(1, math.ceil(whole_s * PICOSECONDS_PER_SECOND))
                duration_ps += moving_ps
                for slot in bytes_on:
                    result.resource_busy_ps[slot] += moving_ps
            result.busy_ps[task.category] += duration_ps
            if task.stream == COMPUTE_STREAM:
                result.compute_ps[task.category] += duration_ps
        else:
            segment.demands = list(bytes_on.items())
            segment.communicator = task.communicator or 0
        segment.duration_ps += duration_ps
        segment.tasks.append((position, begin_ps, segment.duration_ps))
        segment.changes += [(begin_ps, True, change.counter, change.delta) for change in task.at_start]
        segment.changes += [(segment.duration_ps, False, change.counter, change.delta) for change in task.at_end]
        segment.category = task.category
        if task.records is not None and variant.event_places[task.records][0] >= 0:
            segment.records = task.records
    return result


def _segment_for(segments: list[Segment], task: Task, kind: int) -> Segment:
    """Return the stream's last segment if the task can go on in it, else a new one."""
    if kind != FIXED or task.waits or not segments or not segments[-1].is_open:
        segments.append(Segment(kind=kind, waits=task.waits))
    return segments[-1]


def used_routines(rank_class: RankClass) -> list[int]:
    """Return the routines that a class calls, ascending."""
    called: list[int] = np.flatnonzero(np.bincount(rank_class.calls[:, 0])).tolist()
    return called


@dataclass(frozen=True, slots=True)
class RoutineUse:
    """What a routine touches."""

    events_waited_for: frozenset[int]
    events_accounted: frozenset[int]
    """Those that tasks on the compute stream wait for."""
    communicators: frozenset[tuple[int, int]]
    """(slot, stream)."""
    demands: frozenset[tuple[int, int | None, int]]
    """(stream, communicator slot, resource slot) of demands that are not zero."""


def use_of(tasks: Sequence[Task]) -> RoutineUse:
    """Return what a routine's tasks touch."""
    return RoutineUse(
        frozenset(slot for task in tasks for slot in task.waits),
        frozenset(slot for task in tasks for slot in task.waits if task.stream == COMPUTE_STREAM),
        frozenset((task.communicator, task.stream) for task in tasks if task.communicator is not None),
        frozenset(
            (task.stream, task.communicator, demand.resource)
            for task in tasks
            for demand in task.demands
            if demand.bytes > 0
        ),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Meetings:
    """Who takes part in what, over all classes."""

    members: list[frozenset[int]]
    """For each communicator: the streams that use it."""
    is_contended: list[bool]
    """For each resource: whether two transfers could use it at the same time."""


def find_meetings(program: Program, uses: Sequence[RoutineUse]) -> Meetings:
    """Return the streams of each communicator and the resources on which transfers could meet.

    A stream runs one task at a time, and a meeting holds all its streams. So the uses of a resource cannot overlap if
    one stream takes part in each of them.

    Args:
        program: The program.
        uses: What each routine touches.

    Returns:
        Members and contended resources.
    """
    num_streams = len(program.streams)
    members: list[set[int]] = [set() for _ in program.communicators]
    for number, rank_class in enumerate(program.classes):
        for routine in used_routines(rank_class):
            for slot, stream in uses[routine].communicators:
                members[rank_class.communicators[slot]].add(number * num_streams + stream)
    frozen_members = [frozenset(streams) for streams in members]
    in_all_uses: list[frozenset[int] | None] = [None] * len(program.resources)
    for number, rank_class in enumerate(program.classes):
        distinct_demands = {demand for routine in used_routines(rank_class) for demand in uses[routine].demands}
        for stream, communicator_slot, resource_slot in distinct_demands:
            streams = frozenset((number * num_streams + stream,))
            if communicator_slot is not None:
                streams = frozen_members[rank_class.communicators[communicator_slot]]
            resource = rank_class.resources[resource_slot]
            known = in_all_uses[resource]
            in_all_uses[resource] = streams if known is None or known == streams else known & streams
    return Meetings(
        members=frozen_members,
        is_contended=[streams is not None and not streams for streams in in_all_uses],
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class EventRoom:
    """Where the events of a class are kept."""

    places: tuple[tuple[int, int, bool], ...]
    """As in `Variant.event_places`."""
    busy_shift: int
    """Distance from the time of an event to what is kept for accounting."""
    size: int
    """Number of entries."""


def event_room(program: Program, rank_class: RankClass, uses: Sequence[RoutineUse]) -> EventRoom:
    """Return where the events of a class are kept: one row for each index, and one for the shared events.

    A row holds the times of its events, those that are accounted first, and from `busy_shift` on what is kept of
    these for accounting.

    Args:
        program: The program.
        rank_class: One of its classes.
        uses: What each routine touches.

    Returns:
        Places and size.
    """
    routines = used_routines(rank_class)
    waited_for = {slot for routine in routines for slot in uses[routine].events_waited_for}
    accounted = {slot for routine in routines for slot in uses[routine].events_accounted}
    in_order = sorted(waited_for, key=lambda slot: (slot not in accounted, slot))
    by_index = [slot for slot in in_order if not program.events[slot].shared_over_calls]
    shared = [slot for slot in in_order if program.events[slot].shared_over_calls]
    busy_shift = max(len(by_index), len(shared))
    row = busy_shift + sum(slot in accounted for slot in by_index)
    places = [NOT_KEPT] * len(program.events)
    for position, slot in enumerate(by_index):
        places[slot] = position, row, slot in accounted
    for position, slot in enumerate(shared):
        places[slot] = row * program.num_indices + position, 0, slot in accounted
    size = row * program.num_indices + (2 * busy_shift if shared else 0)
    return EventRoom(places=tuple(places), busy_shift=busy_shift, size=size)


def variants_of(
    program: Program,
    rank_class: RankClass,
    *,
    uses: Sequence[RoutineUse],
    meetings: Meetings,
    room: EventRoom,
    is_logged: bool,
) -> dict[int, Variant]:
    """Return the variant of each routine that a class calls.

    Args:
        program: The program.
        rank_class: One of its classes.
        uses: What each routine touches.
        meetings: From `find_meetings`.
        room: From `event_room`.
        is_logged: Whether all times are kept.

    Returns:
        Routine to variant.
    """
    routines = used_routines(rank_class)
    first_slot = {resource: slot for slot, resource in reversed(list(enumerate(rank_class.resources)))}

    @cache
    def resource_key(slot: int) -> tuple[int, int, float, bool]:
        resource = rank_class.resources[slot]
        first = first_slot[resource]
        return slot, first, float(program.resources[resource].bytes_per_s), meetings.is_contended[resource]

    variants = {}
    for routine in routines:
        use = uses[routine]
        slots: Collection[int] = {slot for _, _, slot in use.demands}
        # The hardware behind the first slot of a resource is asked for, too.
        slots = {*slots, *(resource_key(slot)[1] for slot in slots)}
        variants[routine] = Variant(
            routine=routine,
            event_places=room.places,
            resources=tuple(resource_key(slot) for slot in sorted(slots)),
            lone_communicators=tuple(
                sorted(
                    slot
                    for slot, _ in use.communicators
                    if program.communicators[rank_class.communicators[slot]].participants == 1
                )
            ),
            is_logged=is_logged,
        )
    return variants
