"""Compiled loops of the engine: streams that run as far as they can.

Nothing of a run is in time order here unless it has to be. A stream runs on, segment after segment, until it needs an
event that is not recorded or a meeting that is not complete; then the next stream that can run does. Only transfers
over a resource that somebody else may use at the same time go through a heap ordered by time: once no stream can run,
nothing unknown can happen before the earliest entry of the heap, because every start that is not known yet waits for
an end that is still to come.
"""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Callable
from pathlib import Path

import numba

from simulator.engine import program, sharing, tables
from simulator.engine.program import ENDING, OWN_PACE
from simulator.engine.sharing import inlined, join, leave, pop_heap, set_in_heap, share
from simulator.engine.tables import (
    ALONE_S,
    ARRIVED,
    BLOCK_END,
    BLOCK_FIRST,
    BUSY_SINCE,
    CALL_BLOCK,
    CALL_INDEX,
    CALL_POSITION,
    CATEGORY_BITS,
    CATEGORY_MASK,
    CONTENDED,
    CURSOR,
    DONE,
    EVENTS_END,
    FIRST_MEMBER,
    FIRST_WAITING,
    FIXED,
    FLOW_BYTES,
    FREE,
    HEAP_SIZE,
    LATENCY,
    LATEST_READY,
    LOG,
    LONGEST_BUSY_PS,
    NEXT,
    NOW,
    NUM_READY,
    READY,
    ROOM_NEEDED,
    ROW,
    ROW_LIST,
    ROW_SIZE,
    ROW_USERS,
    SEG_CATEGORY,
    SEG_COMMUNICATOR,
    SEG_DEMANDS,
    SEG_DEMANDS_END,
    SEG_DURATION,
    SEG_EVENT_ACCOUNTED,
    SEG_EVENT_OFFSET,
    SEG_EVENT_STRIDE,
    SEG_KIND,
    SEG_LOGGED,
    SEG_UNITS,
    SEG_WAITS,
    SEG_WAITS_END,
    SEGMENT,
    TRANSFER_BEGIN,
    TRANSFER_DEMANDS,
    TRANSFER_MEMBER,
    UNRECORDED,
    WAIT_OFFSET,
    WAIT_STRIDE,
    Plan,
    State,
)


@functools.cache
def load_simulate() -> Callable[[Plan, State, int], bool]:
    """Return the compiled loop, from the cache on disk if this source has been compiled before.

    Numba looks only at the file of the function that it caches, and at the values in its closure: the digest there
    makes sure that a change of the other files is seen.
    """
    digest = hashlib.sha256(
        b"".join(Path(file).read_bytes() for file in (program.__file__, tables.__file__, sharing.__file__))
    ).hexdigest()

    @numba.njit(cache=True, _nrt=False)  # type: ignore[call-overload, untyped-decorator]
    def simulate(plan: Plan, state: State, budget: int) -> bool:
        """Run until no stream can go on and no transfer is on its way; or for a budget of steps.

        Returns whether the end is reached. If not, the budget is used up, or a row of events needs more room
        (`ROOM_NEEDED`); another call goes on.
        """
        return bool(digest) and _simulate(plan, state, budget)

    loop: Callable[[Plan, State, int], bool] = simulate
    return loop


@inlined
def _simulate(plan, state, budget):  # type: ignore[no-untyped-def]
    counts, heap_key = state.counts, state.heap_key
    now = counts[NOW]
    last_step = counts[DONE] + budget
    while True:
        _run_ready_streams(plan, state, last_step)
        if counts[NUM_READY] > 0:
            return False
        while counts[HEAP_SIZE] > 0 and heap_key[0] == 2 * now + 1:
            join(plan, state, pop_heap(state), now)
        last_step -= share(plan, state, now)  # the work of many rates counts, too
        if counts[HEAP_SIZE] == 0:
            return True
        now = heap_key[0] >> 1
        counts[NOW] = now
        while counts[HEAP_SIZE] > 0 and heap_key[0] == 2 * now:
            owner = pop_heap(state)
            leave(plan, state, owner, now)
            member, begin = state.transfers[owner, TRANSFER_MEMBER], state.transfers[owner, TRANSFER_BEGIN]
            _end_dynamic(plan, state, member, begin, now)


@inlined
def _run_ready_streams(plan, state, last_step):  # type: ignore[no-untyped-def]
    """Run every stream that can run, and those that this lets run, until all are blocked or finished."""
    streams, events, counts, log = state.streams, state.events, state.counts, state.log
    segments, waits, blocks, calls = plan.segments, plan.waits, plan.blocks, plan.calls
    counts[ROOM_NEEDED] = 0
    done = counts[DONE]
    while counts[NUM_READY] > 0 and done < last_step and counts[ROOM_NEEDED] == 0:
        counts[NUM_READY] -= 1
        stream = state.ready[counts[NUM_READY]]
        rank_class = stream // plan.num_streams
        accounted = stream % plan.num_streams == 0
        first_event, first_pace = plan.event_begin[rank_class], plan.pace_begin[rank_class]
        cursor, segment, row = streams[stream, CURSOR], streams[stream, SEGMENT], streams[stream, ROW]
        free, busy_since, log_place = streams[stream, FREE], streams[stream, BUSY_SINCE], streams[stream, LOG]
        last_cursor = plan.calls_end[stream]
        is_handed_over = False
        while cursor < last_cursor:
            block, index, position = calls[cursor, CALL_BLOCK], calls[cursor, CALL_INDEX], calls[cursor, CALL_POSITION]
            last_segment = blocks[block, BLOCK_END]
            if row == 0 and blocks[block, ROW_SIZE] > 0:
                row = _row_of_call(state, blocks[block], plan.rows_begin[rank_class] + position)
                if row == 0:
                    _make_ready(state, stream)
                    break
            slower = 0
            if first_pace >= 0:
                slower = plan.pace[first_pace + position] - OWN_PACE
            is_blocked = False
            while segment < last_segment:
                latest_time, latest_event = -1, -1
                for wait in range(segments[segment, SEG_WAITS], segments[segment, SEG_WAITS_END]):
                    event = row + waits[wait, WAIT_OFFSET]
                    if waits[wait, WAIT_STRIDE] >= 0:
                        event = first_event + waits[wait, WAIT_OFFSET] + index * waits[wait, WAIT_STRIDE]
                    time = events[event]
                    if time < 0:
                        streams[stream, NEXT] = time
                        events[event] = FIRST_WAITING - stream
                        is_blocked = True
                        break
                    if time > latest_time:
                        latest_time, latest_event = time, event
                if is_blocked:
                    break
                begin = free
                if latest_time > free:
                    begin = latest_time
                    if accounted:
                        _account_gap(state.time_ps[rank_class], begin - free, events[latest_event + 1])
                done += 1
                if segments[segment, SEG_KIND] != FIXED:
                    streams[stream, READY] = begin
                    streams[stream, SEGMENT] = segment
                    streams[stream, CURSOR] = cursor
                    streams[stream, ROW] = row
                    streams[stream, FREE] = free
                    streams[stream, BUSY_SINCE] = busy_since
                    streams[stream, LOG] = log_place
                    _arrive(plan, state, stream)
                    is_handed_over = True
                    break
                if begin > free:
                    busy_since = begin
                free = begin + segments[segment, SEG_DURATION] + segments[segment, SEG_UNITS] * slower
                if segments[segment, SEG_LOGGED]:
                    log[log_place] = begin
                    log_place += 1
                if segments[segment, SEG_EVENT_OFFSET] >= 0:
                    event = _recorded_event(segments[segment], first_event, row, index)
                    if segments[segment, SEG_EVENT_ACCOUNTED]:
                        events[event + 1] = _packed(free - busy_since, segments[segment, SEG_CATEGORY])
                    _record(state, event, free)
                segment += 1
            if is_blocked or is_handed_over:
                break
            if row > 0:
                _leave_row(state, blocks[block], row)
                row = 0
            cursor += 1
            if cursor < last_cursor:
                segment = blocks[calls[cursor, CALL_BLOCK], BLOCK_FIRST]
        if not is_handed_over:
            streams[stream, SEGMENT] = segment
            streams[stream, CURSOR] = cursor
            streams[stream, ROW] = row
            streams[stream, FREE] = free
            streams[stream, BUSY_SINCE] = busy_since
            streams[stream, LOG] = log_place
    counts[DONE] = done


@inlined
def _row_of_call(state, block, call):  # type: ignore[no-untyped-def]
    """Return the row of a call, a new one for the first stream that comes to it, or 0 if there is no room."""
    row = state.rows[call]
    if row > 0:
        return row
    row = state.free_rows[block[ROW_LIST]]
    if row > 0:
        state.free_rows[block[ROW_LIST]] = state.events[row]
    else:
        row = state.counts[EVENTS_END]
        if row + block[ROW_SIZE] > len(state.events):
            state.counts[ROOM_NEEDED] = block[ROW_SIZE]
            return 0
        state.counts[EVENTS_END] += block[ROW_SIZE]
    state.rows[call] = row
    state.events[row] = block[ROW_USERS]
    for event in range(row + 1, row + block[ROW_SIZE]):
        state.events[event] = UNRECORDED
    return row


@inlined
def _leave_row(state, block, row):  # type: ignore[no-untyped-def]
    """Let a stream leave a call; behind the last one the row is free."""
    state.events[row] -= 1
    if state.events[row] == 0:
        state.events[row] = state.free_rows[block[ROW_LIST]]
        state.free_rows[block[ROW_LIST]] = row


@inlined
def _recorded_event(segment, first_event, row, index):  # type: ignore[no-untyped-def]
    """Return the place of the event that a segment records."""
    if segment[SEG_EVENT_STRIDE] < 0:
        return row + segment[SEG_EVENT_OFFSET]
    return first_event + segment[SEG_EVENT_OFFSET] + index * segment[SEG_EVENT_STRIDE]


@inlined
def _account_gap(time_ps, gap, busy_and_category):  # type: ignore[no-untyped-def]
    """Account a gap of the compute stream: what the awaited task's stream was busy with, the rest is the bubble."""
    exposed = min(gap, busy_and_category >> CATEGORY_BITS)
    time_ps[busy_and_category & CATEGORY_MASK] += exposed
    time_ps[0] += gap - exposed


@inlined
def _packed(busy_ps, category):  # type: ignore[no-untyped-def]
    return (min(busy_ps, LONGEST_BUSY_PS) << CATEGORY_BITS) | category


@inlined
def _record(state, event, time):  # type: ignore[no-untyped-def]
    """Record an event and make the streams that wait for it ready."""
    waiting = state.events[event]
    state.events[event] = time
    while waiting <= FIRST_WAITING:
        stream = FIRST_WAITING - waiting
        waiting = state.streams[stream, NEXT]
        _make_ready(state, stream)


@inlined
def _make_ready(state, stream):  # type: ignore[no-untyped-def]
    state.ready[state.counts[NUM_READY]] = stream
    state.counts[NUM_READY] += 1


@inlined
def _arrive(plan, state, stream):  # type: ignore[no-untyped-def]
    """Let a stream begin a contended transfer, or join a meeting and begin it if it is the last to come."""
    streams, communicators = state.streams, state.communicators
    segment = streams[stream, SEGMENT]
    ready, latency = streams[stream, READY], plan.segments[segment, SEG_DURATION]
    if plan.segments[segment, SEG_KIND] == CONTENDED:
        streams[stream, NEXT] = -1
        _begin(plan, state, stream, stream, ready, latency)
        return
    slot = plan.communicator_begin[stream // plan.num_streams] + plan.segments[segment, SEG_COMMUNICATOR]
    communicator = plan.communicators[slot]
    row = communicators[communicator]
    streams[stream, NEXT] = row[FIRST_MEMBER]
    row[FIRST_MEMBER] = stream
    row[ARRIVED] += 1
    row[LATEST_READY] = max(row[LATEST_READY], ready)
    row[LATENCY] = max(row[LATENCY], latency)
    if row[ARRIVED] == plan.participants[communicator]:
        begin, latency = row[LATEST_READY], row[LATENCY]
        row[ARRIVED], row[FIRST_MEMBER], row[LATEST_READY], row[LATENCY] = 0, -1, 0, 0
        _begin(plan, state, plan.owner[communicator], stream, begin, latency)


@inlined
def _begin(plan, state, owner, member, begin, latency):  # type: ignore[no-untyped-def]
    """Begin a transfer or meeting: end it at once if it meets nobody on its resources, else plan its start."""
    num_demands, is_contended = _gather_demands(plan, state, owner, member)
    duration = latency
    if num_demands > 0:
        first = plan.demand_begin[owner]
        seconds = 0.0
        for demand in range(first, first + num_demands):
            size = float(state.moved_bytes[demand])
            seconds = max(seconds, size / plan.capacity[state.moved_resource[demand]])
        state.speeds[owner, ALONE_S] = seconds
        moving = max(1, math.ceil(seconds * ENDING))
        if is_contended:
            state.transfers[owner, TRANSFER_MEMBER] = member
            state.transfers[owner, TRANSFER_BEGIN] = begin
            state.transfers[owner, TRANSFER_DEMANDS] = num_demands
            set_in_heap(state, owner, 2 * (begin + latency) + 1)
            return
        for demand in range(first, first + num_demands):
            state.resource_busy_ps[state.moved_resource[demand]] += moving
        duration += moving
    _end_dynamic(plan, state, member, begin, begin + duration)


@inlined
def _gather_demands(plan, state, owner, member):  # type: ignore[no-untyped-def]
    """Add up the bytes of all members on each resource; return on how many, and whether one is contended.

    Keeps the size of the largest flow too.
    """
    first = plan.demand_begin[owner]
    num_demands, is_contended, flow = 0, False, 0
    while member >= 0:
        segment = state.streams[member, SEGMENT]
        slots = plan.resource_begin[member // plan.num_streams]
        for demand in range(plan.segments[segment, SEG_DEMANDS], plan.segments[segment, SEG_DEMANDS_END]):
            resource = plan.resources[slots + plan.demands[demand, 0]]
            if state.place[resource] < 0:
                state.place[resource] = first + num_demands
                state.moved_resource[first + num_demands] = resource
                state.moved_bytes[first + num_demands] = 0
                is_contended = is_contended or plan.contended[resource]
                num_demands += 1
            state.moved_bytes[state.place[resource]] += plan.demands[demand, 1]
            flow = max(flow, plan.demands[demand, 2])
        member = state.streams[member, NEXT]
    for demand in range(first, first + num_demands):
        state.place[state.moved_resource[demand]] = -1
    state.speeds[owner, FLOW_BYTES] = float(flow)
    return num_demands, is_contended


@inlined
def _end_dynamic(plan, state, member, begin, end):  # type: ignore[no-untyped-def]
    """End a transfer or meeting for all its members and make them ready."""
    streams, segments = state.streams, plan.segments
    while member >= 0:
        rank_class = member // plan.num_streams
        segment = streams[member, SEGMENT]
        category = segments[segment, SEG_CATEGORY]
        state.busy_ps[rank_class, category] += end - begin
        if member % plan.num_streams == 0:
            state.time_ps[rank_class, category] += end - begin
            state.time_ps[rank_class, 0] += begin - streams[member, READY]
        if begin > streams[member, FREE]:
            streams[member, BUSY_SINCE] = begin
        streams[member, FREE] = end
        if segments[segment, SEG_LOGGED]:
            state.log[streams[member, LOG]] = begin
            state.log[streams[member, LOG] + 1] = end
            streams[member, LOG] += 2
        if segments[segment, SEG_EVENT_OFFSET] >= 0:
            event = _recorded_event(
                segments[segment],
                plan.event_begin[rank_class],
                streams[member, ROW],
                plan.calls[streams[member, CURSOR], CALL_INDEX],
            )
            if segments[segment, SEG_EVENT_ACCOUNTED]:
                state.events[event + 1] = _packed(end - streams[member, BUSY_SINCE], category)
            _record(state, event, end)
        streams[member, SEGMENT] = segment + 1
        following = streams[member, NEXT]
        _make_ready(state, member)
        member = following
