"""From a program to the tables of the compiled engine.

Memory grows with kinds of classes, their calls, and a little for each class; not with task executions.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from simulator.engine.call_lists import call_lists
from simulator.engine.kinds import Kind, kinds_of
from simulator.engine.meetings import Meetings, bindings_of, find_meetings, offsets
from simulator.engine.program import Program
from simulator.engine.segments import RoutineUse, Segment, SegmentedRoutine, Variant, segment_routine, use_of
from simulator.engine.tables import (
    BLOCK_END,
    BLOCK_FIRST,
    FIXED,
    NUM_BLOCK_COLUMNS,
    NUM_CALL_COLUMNS,
    NUM_SEGMENT_COLUMNS,
    OWN_CALL,
    Plan,
)

IntArray = npt.NDArray[np.int64]
NOT_KEPT = (-1, 0, False)
"""Place of an event that no task waits for."""


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
    kinds: list[Kind]
    """Classes that share all tables."""
    calls_of_variant: list[IntArray]
    """For each kind: how often it calls each variant."""
    variant_of_call: list[IntArray]
    """For each kind: the variant of each call."""
    calls_begin: IntArray
    """`[stream]`: its first call in `plan.calls`."""
    log_begin: IntArray
    """`[stream + 1]`: where the times of each stream begin in the log."""
    kept_events: int
    """Entries of events that are not in rows, of all classes together."""
    num_rows: int
    """Calls of all classes together that may need a row."""
    row_sizes: int
    """How many sizes of rows there are."""
    num_segments: int
    """Segments that will be run, of all classes together."""


def flatten(program: Program, *, span_classes: Collection[int], record_counters: bool = True) -> FlatProgram:
    """Return a program as arrays.

    Args:
        program: A program that `check_program` accepts.
        span_classes: Classes for which the times of all segments are kept.
        record_counters: Whether the times of segments that change counters are kept, for all classes.
    """
    num_streams, num_classes = len(program.streams), len(program.classes)
    uses = [use_of(routine.tasks, num_streams) for routine in program.routines]
    lists, bound = call_lists(program), bindings_of(program)
    meetings = find_meetings(program, lists=lists, uses=uses, bound=bound)
    kinds = kinds_of(
        program, lists=lists, uses=uses, bound=bound, meetings=meetings, span_classes=frozenset(span_classes)
    )
    variant_number: dict[Variant, int] = {}
    variant_of_call = []
    for kind in kinds:
        table = np.zeros(len(program.routines), dtype=np.int64)
        for routine, variant in kind.variants.items():
            table[routine] = variant_number.setdefault(variant, len(variant_number))
        variant_of_call.append(table[kind.calls[:, 0]])
    variants = list(variant_number)
    routines = [segment_routine(program, variant) for variant in variants]
    tables = _segment_tables(variants, routines, record_counters=record_counters)
    calls_of_variant = [np.bincount(variant, minlength=len(routines)) for variant in variant_of_call]
    streams = _calls_of_streams(num_streams, num_classes, kinds, variant_of_call, tables)
    pace, pace_begin = _pace(program)
    kept_events = np.zeros(num_classes, dtype=np.int64)
    rows = np.zeros(num_classes, dtype=np.int64)
    for kind in kinds:
        kept_events[kind.classes] = kind.kept_events
        rows[kind.classes] = len(kind.calls) if any(each.events.row_size for each in kind.variants.values()) else 0
    event_begin, rows_begin = offsets(kept_events), offsets(rows)
    plan = Plan(
        num_streams=num_streams,
        segments=tables.segments,
        waits=tables.waits,
        demands=tables.demands,
        blocks=tables.blocks,
        calls=streams.calls,
        calls_end=streams.end,
        pace=pace,
        pace_begin=pace_begin,
        rows_begin=rows_begin,
        event_begin=event_begin + 1,  # place 0 means that there is none
        resource_begin=bound.resource_begin,
        resources=bound.resources,
        communicator_begin=bound.communicator_begin,
        communicators=bound.communicators,
        capacity=np.array([resource.bytes_per_s for resource in program.resources], dtype=np.float64),
        contended=meetings.is_contended,
        participants=np.array([each.participants for each in program.communicators], dtype=np.int64),
        owner=meetings.owner,
        demand_begin=_demand_begin(num_streams, num_classes, kinds, uses, meetings),
        user_begin=offsets(meetings.num_users),
    )
    return FlatProgram(
        plan=plan,
        segments=[segment for routine in routines for block in routine.segments for segment in block],
        routines=routines,
        variants=variants,
        kinds=kinds,
        calls_of_variant=calls_of_variant,
        variant_of_call=variant_of_call,
        calls_begin=streams.begin,
        log_begin=offsets(streams.num_logged),
        kept_events=int(event_begin[-1]),
        num_rows=int(rows_begin[-1]),
        row_sizes=tables.row_sizes,
        num_segments=streams.num_segments,
    )


@dataclass(frozen=True, slots=True, eq=False)
class _SegmentTables:
    segments: IntArray
    waits: IntArray
    demands: IntArray
    blocks: IntArray
    logged_in_block: IntArray
    """How many times a call of the block writes to the log."""
    row_sizes: int


def _segment_tables(
    variants: list[Variant], routines: list[SegmentedRoutine], *, record_counters: bool
) -> _SegmentTables:
    """Return all segments in the order (variant, stream, sequence) as tables."""
    rows: list[tuple[int, ...]] = []
    waits: list[tuple[int, int]] = []
    demands: list[tuple[int, int, int]] = []
    blocks: list[tuple[int, ...]] = []
    logged_in_block: list[int] = []
    row_lists: dict[int, int] = {}
    for variant, routine in zip(variants, routines, strict=True):
        places = dict(variant.events.places)
        row_size = variant.events.row_size
        users = [any(_uses_row(segment, places) for segment in block) for block in routine.segments]
        row = row_size, sum(users), row_lists.setdefault(row_size, len(row_lists))
        for block, uses_row in zip(routine.segments, users, strict=True):
            num_logged, first = 0, len(rows)
            for segment in block:
                is_logged = variant.is_logged or (record_counters and bool(segment.changes))
                num_logged += is_logged * (1 if segment.kind == FIXED else 2)
                first_wait, first_demand = len(waits), len(demands)
                waits += [places[slot][:2] for slot in segment.waits]
                demands += segment.demands
                record = NOT_KEPT if segment.records is None else places[segment.records]
                rows.append(
                    (
                        segment.kind,
                        segment.duration_ps,
                        segment.units,
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
            blocks.append((first, len(rows), *(row if uses_row else (0, 0, 0))))
            logged_in_block.append(num_logged)
    return _SegmentTables(
        np.array(rows, dtype=np.int64).reshape(len(rows), NUM_SEGMENT_COLUMNS),
        np.array(waits, dtype=np.int64).reshape(len(waits), 2),
        np.array(demands, dtype=np.int64).reshape(len(demands), 3),
        np.array(blocks, dtype=np.int64).reshape(len(blocks), NUM_BLOCK_COLUMNS),
        np.array(logged_in_block, dtype=np.int64),
        len(row_lists),
    )


def _uses_row(segment: Segment, places: dict[int, tuple[int, int, bool]]) -> bool:
    """Return whether a segment waits for an event of its own call, or records one that somebody waits for."""
    slots = segment.waits if segment.records is None else (*segment.waits, segment.records)
    return any(places[slot][1] == OWN_CALL for slot in slots)


@dataclass(frozen=True, slots=True, eq=False)
class _StreamCalls:
    calls: npt.NDArray[np.int32]
    begin: IntArray
    """`[stream]`"""
    end: IntArray
    """`[stream]`"""
    num_logged: IntArray
    """`[stream]`: how many times it writes to the log."""
    num_segments: int


def _calls_of_streams(
    num_streams: int, num_classes: int, kinds: list[Kind], variant_of_call: list[IntArray], tables: _SegmentTables
) -> _StreamCalls:
    """Return for each stream of each class the calls that have tasks on it; classes of one kind share them."""
    parts = [np.zeros((0, NUM_CALL_COLUMNS), dtype=np.int32)]
    begin, end, num_logged = (np.zeros((num_classes, num_streams), dtype=np.int64) for _ in range(3))
    lengths = tables.blocks[:, BLOCK_END] - tables.blocks[:, BLOCK_FIRST]
    place, num_segments = 0, 0
    for kind, variants in zip(kinds, variant_of_call, strict=True):
        for stream in range(num_streams):
            blocks = variants * num_streams + stream
            position = np.flatnonzero(lengths[blocks] > 0) if len(lengths) else blocks
            chosen = blocks[position]
            parts.append(np.stack([chosen, kind.calls[position, 1], position], axis=1).astype(np.int32))
            begin[kind.classes, stream], end[kind.classes, stream] = place, place + len(position)
            place += len(position)
            num_logged[kind.classes, stream] = tables.logged_in_block[chosen].sum()
            num_segments += int(lengths[chosen].sum()) * len(kind.classes)
    return _StreamCalls(np.concatenate(parts), begin.reshape(-1), end.reshape(-1), num_logged.reshape(-1), num_segments)


def _pace(program: Program) -> tuple[npt.NDArray[np.int32], IntArray]:
    """Return the pace of all calls, each array once, and where that of each class begins (-1: it has none)."""
    parts = [np.zeros(0, dtype=np.int32)]
    known: dict[int, int] = {}
    begin = np.full(len(program.classes), -1, dtype=np.int64)
    place = 0
    for number, rank_class in enumerate(program.classes):
        pace = rank_class.pace
        if pace is None:
            continue
        if id(pace) not in known:
            known[id(pace)] = place
            parts.append(pace)
            place += len(pace)
        begin[number] = known[id(pace)]
    return np.concatenate(parts), begin


def _demand_begin(
    num_streams: int, num_classes: int, kinds: list[Kind], uses: Sequence[RoutineUse], meetings: Meetings
) -> IntArray:
    """Return where each owner keeps its transfer's demands.

    A transfer of a stream alone has at most as many demands as the stream's widest task, a meeting as many as those of
    all its members together.
    """
    widest = np.zeros((num_classes, num_streams), dtype=np.int64)
    for kind in kinds:
        if kind.variants:
            widest[kind.classes] = np.array([uses[routine].widest for routine in kind.variants]).max(axis=0)
    room = widest.reshape(-1)
    before = offsets(room[meetings.members])
    together = before[meetings.members_begin[1:]] - before[meetings.members_begin[:-1]]
    has_owner = meetings.owner >= 0
    room = room.copy()
    np.maximum.at(room, meetings.owner[has_owner], together[has_owner])
    return offsets(room)
