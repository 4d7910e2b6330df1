"""The tables of the compiled engine: which column means what.

Arrays with one row for each thing and the columns named below, handed to the compiled loops in two bundles: `Plan`,
which a run only reads, and `State`, which it changes.

A **segment** is a run of tasks of one routine on one stream with nothing to wait for in between; it takes one step.
A **block** is the segments of one routine on one stream. Streams of all classes are numbered through:
`class * num_streams + stream`. A **transfer** (contended, or a meeting) is known by its owner, the lowest stream that
takes part: a stream takes part in one at a time.

An **event** lives in `State.events`: its time, or UNRECORDED, or FIRST_WAITING - (a stream that waits for it; the next
one is in that stream's NEXT). Events that the compute stream waits for have a second entry behind the first: how long
the recording task's stream had been busy without a pause (up to LONGEST_BUSY_PS, ten hours) and the task's category in
the lowest bits. Where a task waits only for events of its own call, these have a **row** for the time between the
first stream that comes to the call and the last that leaves it; the other events of a class have their place for good.
"""

from __future__ import annotations

from typing import Any, NamedTuple

# Kinds of segments.
FIXED, CONTENDED, MEETING = range(3)

# Columns of `Plan.segments`. A fixed segment takes DURATION + UNITS·(pace - 1024) picoseconds. The event offset is -1
# if nothing is recorded.
(
    SEG_KIND,
    SEG_DURATION,
    SEG_UNITS,
    SEG_WAITS,
    SEG_WAITS_END,
    SEG_EVENT_OFFSET,
    SEG_EVENT_STRIDE,
    SEG_EVENT_ACCOUNTED,
    SEG_CATEGORY,
    SEG_LOGGED,
    SEG_COMMUNICATOR,
    SEG_DEMANDS,
    SEG_DEMANDS_END,
) = range(13)
NUM_SEGMENT_COLUMNS = 13

# Columns of `Plan.waits`. An event of the own call is at its offset in the call's row; its stride is OWN_CALL. Another
# is at offset + index * stride behind the first event of its class.
WAIT_OFFSET, WAIT_STRIDE = range(2)
OWN_CALL = -1

# Columns of `Plan.blocks`: first segment, end; of the row of a call: its size, how many streams use it, and which list
# of `State.free_rows` it returns to. The size is 0 if this stream does not use the row.
BLOCK_FIRST, BLOCK_END, ROW_SIZE, ROW_USERS, ROW_LIST = range(5)
NUM_BLOCK_COLUMNS = 5

# Columns of `Plan.calls`: the calls that have tasks on a stream; POSITION is that among all calls of the class.
CALL_BLOCK, CALL_INDEX, CALL_POSITION = range(3)
NUM_CALL_COLUMNS = 3

# Columns of `State.streams`. ROW is the place of the current call's row, or 0. NEXT is the next stream that waits for
# the same event or takes part in the same meeting.
CURSOR, SEGMENT, FREE, BUSY_SINCE, READY, NEXT, LOG, ROW = range(8)
NUM_STREAM_COLUMNS = 8

# Columns of `State.communicators`.
ARRIVED, FIRST_MEMBER, LATEST_READY, LATENCY = range(4)
NUM_COMMUNICATOR_COLUMNS = 4

# Columns of `State.transfers`: first member, begin, when the rate was set, number of demands.
TRANSFER_MEMBER, TRANSFER_BEGIN, TRANSFER_SINCE, TRANSFER_DEMANDS = range(4)
NUM_TRANSFER_COLUMNS = 4

# Columns of `State.speeds`: bytes of the largest flow, what is left of them, and its rate; seconds and rate of a lone
# transfer.
FLOW_BYTES, LEFT_BYTES, RATE, ALONE_S, ALONE_RATE = range(5)
NUM_SPEED_COLUMNS = 5

UNRECORDED = -1
FIRST_WAITING = -2
CATEGORY_BITS = 8
CATEGORY_MASK = (1 << CATEGORY_BITS) - 1
LONGEST_BUSY_PS = (1 << (63 - CATEGORY_BITS)) - 1

# Entries of `State.counts`.
# NOW is the time of the heap, DONE how many segments have run, EVENTS_END the first entry of
# `State.events` behind all rows, ROOM_NEEDED the size of a row for which there was no room.
NUM_READY, HEAP_SIZE, NUM_TOUCHED, NOW, DONE, EVENTS_END, ROOM_NEEDED = range(7)
NUM_COUNTS = 7

# A transfer stands in the heap with its end (even keys) or, before it moves, with its start (odd keys).
NOT_IN_HEAP = -1


class Plan(NamedTuple):
    """What does not change during a run."""

    num_streams: int
    segments: Any  # int64 [segment, column]
    waits: Any  # int64 [wait, column]
    demands: Any  # int64 [demand, (resource slot, bytes of all flows, bytes of the task's largest flow)]
    blocks: Any  # int64 [block, column]
    calls: Any  # int32 [call of a stream, column]; streams of classes that run the same have the same ones
    calls_end: Any  # int64 [stream]
    pace: Any  # int32
    pace_begin: Any  # int64 [class]: where the pace of its calls begins in `pace`, or -1
    rows_begin: Any  # int64 [class]: where its calls begin in `State.rows`
    event_begin: Any  # int64 [class]: where its events that are not in rows begin
    resource_begin: Any  # int64 [class]: where the class's slots begin in `resources`
    resources: Any  # int32
    communicator_begin: Any  # int64 [class]
    communicators: Any  # int32
    capacity: Any  # float64 [resource], bytes per second
    contended: Any  # bool [resource]
    participants: Any  # int64 [communicator]
    owner: Any  # int64 [communicator]: the lowest stream of its participants
    demand_begin: Any  # int64 [stream + 1]: room for the demands of the transfers it owns
    user_begin: Any  # int64 [resource + 1]: room for the transfers that move over it


class State(NamedTuple):
    """What changes."""

    streams: Any  # int64 [stream, column]
    events: Any  # int64
    rows: Any  # int32 [call of a class]: place of its row in `events`; 0 if it has none now
    free_rows: Any  # int64 [row size]: a row that is free, or 0; its first entry is the next one
    communicators: Any  # int64 [communicator, column]
    time_ps: Any  # int64 [class, category]
    busy_ps: Any  # int64 [class, category]
    resource_busy_ps: Any  # int64 [resource]
    log: Any  # int64: begins of fixed segments; begins and ends of others
    counts: Any  # int64
    ready: Any  # int64 [stream]: stack of streams that can run
    transfers: Any  # int64 [owner, column]
    speeds: Any  # float64 [owner, column]
    new_rate: Any  # float64 [owner]
    is_reached: Any  # bool [owner]
    reached: Any  # int64 [owner]
    moved_resource: Any  # int64, with `Plan.demand_begin`
    moved_bytes: Any  # int64, with `Plan.demand_begin`
    moved_share: Any  # float64, with `Plan.demand_begin`
    heap: Any  # int64 [place in the heap]: owners
    heap_key: Any  # int64 [place in the heap]
    heap_place: Any  # int64 [owner]
    num_users: Any  # int64 [resource]
    users: Any  # int64, with `Plan.user_begin`: owners, ascending
    in_use_since: Any  # int64 [resource]
    is_touched: Any  # bool [resource]
    touched: Any  # int64 [resource]
    level: Any  # float64 [resource]
    is_stale: Any  # bool [resource]
    place: Any  # int64 [resource]: -1 outside `_gather_demands`
