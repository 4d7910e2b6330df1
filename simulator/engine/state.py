"""The state in which a run of the compiled engine begins, and room for more events when it runs out."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from simulator.engine.arrays import FlatProgram
from simulator.engine.program import Program
from simulator.engine.tables import (
    BLOCK_FIRST,
    CALL_BLOCK,
    CURSOR,
    EVENTS_END,
    FIRST_MEMBER,
    LOG,
    NOT_IN_HEAP,
    NUM_COMMUNICATOR_COLUMNS,
    NUM_COUNTS,
    NUM_READY,
    NUM_SPEED_COLUMNS,
    NUM_STREAM_COLUMNS,
    NUM_TRANSFER_COLUMNS,
    ROOM_NEEDED,
    SEGMENT,
    UNRECORDED,
    State,
)

IntArray = npt.NDArray[np.int64]
FIRST_ROOM = 1 << 14
"""Entries that rows have at first."""
GROWTH = 2
"""By how much there is more room for rows each time it does not suffice."""


def initial_state(program: Program, flat: FlatProgram) -> State:
    """Return the state in which every stream stands before its first task.

    Args:
        program: The program.
        flat: Its arrays.
    """
    plan = flat.plan
    num_classes, num_resources = len(program.classes), len(program.resources)
    num_streams = num_classes * len(program.streams)
    room, user_room = int(plan.demand_begin[-1]), int(plan.user_begin[-1])

    def integers(*shape: int) -> IntArray:
        return np.zeros(shape, dtype=np.int64)

    streams = integers(num_streams, NUM_STREAM_COLUMNS)
    has_calls = flat.calls_begin < plan.calls_end
    streams[:, CURSOR] = flat.calls_begin
    streams[has_calls, SEGMENT] = plan.blocks[plan.calls[flat.calls_begin[has_calls], CALL_BLOCK], BLOCK_FIRST]
    streams[:, LOG] = flat.log_begin[:-1]
    communicators = integers(len(program.communicators), NUM_COMMUNICATOR_COLUMNS)
    communicators[:, FIRST_MEMBER] = -1
    counts = integers(NUM_COUNTS)
    counts[NUM_READY] = num_streams
    counts[EVENTS_END] = 1 + flat.kept_events
    return State(
        streams=streams,
        events=np.full(1 + flat.kept_events + FIRST_ROOM, UNRECORDED, dtype=np.int64),
        rows=np.zeros(flat.num_rows, dtype=np.int32),
        free_rows=integers(flat.row_sizes),
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


def with_more_room(flat: FlatProgram, state: State) -> State:
    """Return the same state with room for more rows of events."""
    kept = 1 + flat.kept_events
    rows = len(state.events) - kept
    rows += max((GROWTH - 1) * rows, int(state.counts[ROOM_NEEDED]))
    events = np.empty(kept + rows, dtype=np.int64)
    events[: len(state.events)] = state.events
    return state._replace(events=events)
