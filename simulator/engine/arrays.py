"""From a program to the tables of the compiled engine.

Memory grows with routines, calls and events, not with task executions.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from simulator.engine.program import Program
from simulator.engine.segments import (
    NOT_KEPT,
    Meetings,
    RoutineUse,
    Segment,
    SegmentedRoutine,
    Variant,
    event_room,
    find_meetings,
    segment_routine,
    use_of,
    used_routines,
    variants_of,
)
from simulator.engine.tables import (
    CURSOR,
    FIRST_MEMBER,
    FIXED,
    LOG,
    NOT_IN_HEAP,
    NUM_COMMUNICATOR_COLUMNS,
    NUM_COUNTS,
    NUM_READY,
    NUM_SEGMENT_COLUMNS,
    NUM_SPEED_COLUMNS,
    NUM_STREAM_COLUMNS,
    NUM_TRANSFER_COLUMNS,
    SEGMENT,
    UNRECORDED,
    Plan,
    State,
)

IntArray = npt.NDArray[np.int64]
NOTHING: IntArray = np.zeros(0, dtype=np.int64)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FlatProgram:
    """A program as arrays."""

    plan: Plan
    """For the loops."""
    segments: list[Segment]
    """Rows of `plan.segments`."""
    routines: list[SegmentedRoutine]
    """For each variant."""
    variants: list[Variant]
    """Routines on the hardware of some classes; block = variant * num_streams + stream."""
    calls_of_variant: list[IntArray]
    """For each class: how often it calls each variant."""
    log_begin: IntArray
    """`[stream + 1]`: where the times of each stream begin in the log."""
    num_events: int
    """Entries of `State.events`, of all classes together."""


def flatten(program: Program, *, span_classes: Collection[int]) -> FlatProgram:
    """Return a program as arrays.

    Args:
        program: A program that `check_program` accepts.
        span_classes: Classes for which the times of all segments are kept.

    Returns:
        The arrays.
    """
    uses = [use_of(routine.tasks) for routine in program.routines]
    meetings = find_meetings(program, uses)
    variant_number: dict[Variant, int] = {}
    variant_of_routine: list[IntArray] = []
    event_begin = np.zeros(len(program.classes) + 1, dtype=np.int64)
    busy_shift = np.zeros(len(program.classes), dtype=np.int64)
    for number, rank_class in enumerate(program.classes):
        room = event_room(program, rank_class, uses)
        variants = variants_of(
            program, rank_class, uses=uses, meetings=meetings, room=room, is_logged=number in span_classes
        )
        table = np.zeros(len(program.routines), dtype=np.int64)
        for routine, variant in variants.items():
            table[routine] = variant_number.setdefault(variant, len(variant_number))
        variant_of_routine.append(table)
        event_begin[number + 1] = event_begin[number] + room.size
        busy_shift[number] = room.busy_shift
    variants_in_order = list(variant_number)
    routines = [segment_routine(program, variant) for variant in variants_in_order]
    segments, tables = _segment_tables(variants_in_order, routines)
    calls_of_variant = [
        np.bincount(table[rank_class.calls[:, 0]], minlength=len(routines))
        for table, rank_class in zip(variant_of_routine, program.classes, strict=True)
    ]
    calls = _calls_of_streams(
        program,
        variant_of_routine=variant_of_routine,
        calls_of_variant=calls_of_variant,
        blocks=tables.blocks,
        logged_in_block=tables.logged_in_block,
    )
    demand_begin, user_begin = _transfer_room(program, uses=uses, meetings=meetings)
    plan = Plan(
        num_streams=len(program.streams),
        segments=tables.segments,
        waits=tables.waits,
        demands=tables.demands,
        blocks=tables.blocks,
        calls_begin=calls.begin,
        call_block=calls.block,
        call_index=calls.index,
        event_begin=event_begin,
        busy_shift=busy_shift,
        resource_begin=_offsets([len(rank_class.resources) for rank_class in program.classes]),
        resources=_joined([rank_class.resources for rank_class in program.classes]),
        communicator_begin=_offsets([len(rank_class.communicators) for rank_class in program.classes]),
        communicators=_joined([rank_class.communicators for rank_class in program.classes]),
        capacity=np.array([resource.bytes_per_s for resource in program.resources], dtype=np.float64),
        contended=np.array(meetings.is_contended, dtype=np.bool_),
        participants=np.array([each.participants for each in program.communicators], dtype=np.int64),
        owner=np.array([min(streams, default=-1) for streams in meetings.members], dtype=np.int64),
        demand_begin=demand_begin,
        user_begin=user_begin,
    )
    return FlatProgram(
        plan=plan,
        segments=segments,
        routines=routines,
        variants=variants_in_order,
        calls_of_variant=calls_of_variant,
        log_begin=calls.log_begin,
        num_events=int(event_begin[-1]),
    )


def initial_state(program: Program, flat: FlatProgram) -> State:
    """Return the state in which every stream stands before its first task.

    Args:
        program: The program.
        flat: Its arrays.

    Returns:
        New arrays.
    """
    plan = flat.plan
    num_classes, num_resources = len(program.classes), len(program.resources)
    num_streams = num_classes * len(program.streams)
    room, user_room = int(plan.demand_begin[-1]), int(plan.user_begin[-1])

    def integers(*shape: int) -> IntArray:
        return np.zeros(shape, dtype=np.int64)

    streams = integers(num_streams, NUM_STREAM_COLUMNS)
    has_calls = plan.calls_begin[:-1] < plan.calls_begin[1:]
    streams[:, CURSOR] = plan.calls_begin[:-1]
    streams[has_calls, SEGMENT] = plan.blocks[plan.call_block[plan.calls_begin[:-1][has_calls]]]
    streams[:, LOG] = flat.log_begin[:-1]
    communicators = integers(len(program.communicators), NUM_COMMUNICATOR_COLUMNS)
    communicators[:, FIRST_MEMBER] = -1
    counts = integers(NUM_COUNTS)
    counts[NUM_READY] = num_streams
    return State(
        streams=streams,
        events=np.full(flat.num_events, UNRECORDED, dtype=np.int64),
        communicators=communicators,
        time_ps=integers(num_classes, len(program.categories)),
        busy_ps=integers(num_classes, len(program.categories)),
        resource_busy_ps=integers(num_resources),
        log=np.empty(int(flat.log_begin[-1]), dtype=np.int64),
        counts=counts,
        ready=np.arange(num_streams, dtype=np.int64)[::-1].copy(),
        transfers=integers(num_streams, NUM_TRANSFER_COLUMNS),
        speeds=np.zeros((num_streams, NUM_SPEED_COLUMNS)),
        new_rate=np.zeros(num_streams),
        is_reached=np.zeros(num_streams, dtype=np.bool_),
        reached=integers(num_streams),
        moved_resource=integers(room),
        moved_bytes=integers(room),
        moved_share=np.zeros(room),
        heap=integers(num_streams),
        heap_key=integers(num_streams),
        heap_place=np.full(num_streams, NOT_IN_HEAP, dtype=np.int64),
        num_users=integers(num_resources),
        users=integers(user_room),
        in_use_since=integers(num_resources),
        is_touched=np.zeros(num_resources, dtype=np.bool_),
        touched=integers(num_resources),
        level=np.zeros(num_resources),
        is_stale=np.zeros(num_resources, dtype=np.bool_),
        place=np.full(num_resources, -1, dtype=np.int64),
    )


def _offsets(lengths: Sequence[int] | IntArray) -> IntArray:
    return np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(np.asarray(lengths, dtype=np.int64))])


def _joined(parts: Collection[tuple[int, ...]]) -> npt.NDArray[np.int32]:
    return np.array([value for part in parts for value in part], dtype=np.int32)


@dataclass(frozen=True, slots=True, eq=False)
class _SegmentTables:
    segments: IntArray
    waits: IntArray
    demands: IntArray
    blocks: IntArray
    logged_in_block: IntArray
    """How many times a call of the block writes to the log."""


def _segment_tables(variants: list[Variant], routines: list[SegmentedRoutine]) -> tuple[list[Segment], _SegmentTables]:
    """Return all segments in the order (variant, stream, sequence), as objects and as tables."""
    all_segments: list[Segment] = []
    rows: list[tuple[int, ...]] = []
    waits: list[tuple[int, int]] = []
    demands: list[tuple[int, int]] = []
    blocks, logged_in_block = [0], []
    for variant, routine in zip(variants, routines, strict=True):
        for block in routine.segments:
            num_logged = 0
            for segment in block:
                is_logged = variant.is_logged or bool(segment.changes)
                num_logged += is_logged * (1 if segment.kind == FIXED else 2)
                first_wait, first_demand = len(waits), len(demands)
                waits += [variant.event_places[slot][:2] for slot in segment.waits]
                demands += segment.demands
                record = NOT_KEPT if segment.records is None else variant.event_places[segment.records]
                rows.append(
                    (
                        segment.kind,
                        segment.duration_ps,
                        first_wait,
                        len(waits),
                        *record,
                        segment.category,
                        is_logged,
                        segment.communicator,
                        first_demand,
                        len(demands),
                    )
                )
            all_segments += block
            blocks.append(len(rows))
            logged_in_block.append(num_logged)
    return all_segments, _SegmentTables(
        np.array(rows, dtype=np.int64).reshape(len(rows), NUM_SEGMENT_COLUMNS),
        np.array(waits, dtype=np.int64).reshape(len(waits), 2),
        np.array(demands, dtype=np.int64).reshape(len(demands), 2),
        np.array(blocks, dtype=np.int64),
        np.array(logged_in_block, dtype=np.int64),
    )


@dataclass(frozen=True, slots=True, eq=False)
class _StreamCalls:
    begin: IntArray
    block: npt.NDArray[np.int32]
    index: npt.NDArray[np.int32]
    log_begin: IntArray


def _calls_of_streams(
    program: Program,
    *,
    variant_of_routine: list[IntArray],
    calls_of_variant: list[IntArray],
    blocks: IntArray,
    logged_in_block: IntArray,
) -> _StreamCalls:
    """Return for each stream the calls that have tasks on it, and where its times go in the log."""
    num_streams = len(program.streams)
    has_tasks = np.diff(blocks).reshape(-1, num_streams) > 0
    begin = _offsets(np.concatenate([calls @ has_tasks for calls in calls_of_variant] or [NOTHING]))
    log_begin = _offsets(
        np.concatenate([calls @ logged_in_block.reshape(-1, num_streams) for calls in calls_of_variant] or [NOTHING])
    )
    block_of_call, index_of_call = np.empty(begin[-1], dtype=np.int32), np.empty(begin[-1], dtype=np.int32)
    for number, (table, rank_class) in enumerate(zip(variant_of_routine, program.classes, strict=True)):
        variant = table[rank_class.calls[:, 0]]
        for stream in range(num_streams):
            place = slice(begin[number * num_streams + stream], begin[number * num_streams + stream + 1])
            chosen = has_tasks[variant, stream]
            block_of_call[place] = variant[chosen] * num_streams + stream
            index_of_call[place] = rank_class.calls[chosen, 1]
    return _StreamCalls(begin, block_of_call, index_of_call, log_begin)


def _transfer_room(program: Program, *, uses: list[RoutineUse], meetings: Meetings) -> tuple[IntArray, IntArray]:
    """Return where each owner keeps its transfer's demands, and where each resource keeps its transfers.

    A transfer of a stream alone has at most as many demands as the stream's widest task, a meeting as many as those of
    all its members together. A resource has at most as many transfers as there are owners that may bring one to it.
    """
    num_streams = len(program.streams)
    widest_task = [[0] * num_streams for _ in program.routines]
    for widest, routine in zip(widest_task, program.routines, strict=True):
        for task in routine.tasks:
            widest[task.stream] = max(widest[task.stream], len(task.demands))
    widest_of_stream = np.zeros((len(program.classes), num_streams), dtype=np.int64)
    owners: list[set[int]] = [set() for _ in program.resources]
    for number, rank_class in enumerate(program.classes):
        called = used_routines(rank_class)
        if called:
            widest_of_stream[number] = np.array([widest_task[routine] for routine in called]).max(axis=0)
        for stream, slot, resource in {demand for routine in called for demand in uses[routine].demands}:
            own = number * num_streams + stream
            owner = own if slot is None else min(meetings.members[rank_class.communicators[slot]])
            owners[rank_class.resources[resource]].add(owner)
    room = widest_of_stream.flatten()
    for streams in meetings.members:
        if streams:
            together = sum(int(widest_of_stream.flat[stream]) for stream in streams)
            room[min(streams)] = max(room[min(streams)], together)
    return _offsets(room.tolist()), _offsets([len(streams) for streams in owners])
