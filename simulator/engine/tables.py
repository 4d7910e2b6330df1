"""The tables of the compiled engine: which column means what.

int64 arrays with one row for each thing and the columns named below, handed to the compiled loops in two bundles:
`Plan`, which a run only reads, and `State`, which it changes.

A **segment** is a run of tasks of one routine on one stream with nothing to wait for in between; it takes one step.
A **block** is the segments of one routine on one stream. Streams of all classes are numbered through:
`class * num_streams + stream`. A **transfer** (contended, or a meeting) is known by its owner, the lowest stream that
takes part: a stream takes part in one at a time.
"""

from __future__ import annotations

from typing import Any, NamedTuple

# Kinds of segments.
FIXED, CONTENDED, MEETING = range(3)

# Columns of `Plan.segments`. The event offset is -1 if nothing is recorded; see `State.events` for accounted.
(
    SEG_KIND,
    SEG_DURATION,
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
) = range(12)
NUM_SEGMENT_COLUMNS = 12

# Columns of `State.streams`.
CURSOR, SEGMENT, FREE, BUSY_SINCE, READY, NEXT_WAITING, NEXT_MEMBER, LOG = range(8)
NUM_STREAM_COLUMNS = 8

# Columns of `State.communicators`.
ARRIVED, FIRST_MEMBER, LATEST_READY, LATENCY = range(4)
NUM_COMMUNICATOR_COLUMNS = 4

# Columns of `State.transfers`: first member, begin, when the rate was set, number of demands.
TRANSFER_MEMBER, TRANSFER_BEGIN, TRANSFER_SINCE, TRANSFER_DEMANDS = range(4)
NUM_TRANSFER_COLUMNS = 4

# Columns of `State.speeds`: bytes left on the resource with most bytes, rate; seconds and rate of a transfer alone.
LEFT_BYTES, RATE, ALONE_S, ALONE_RATE = range(4)
NUM_SPEED_COLUMNS = 4

# An entry of `State.events` is the time of an event, or UNRECORDED, or FIRST_WAITING - (a stream that waits for it; the
# next one is in that stream's NEXT_WAITING). Events that the compute stream waits for have a second entry,
# `Plan.busy_shift` behind the first: how long the recording task's stream had been busy without a pause (up to
# LONGEST_BUSY_PS, ten hours) and the task's category in the lowest bits.
UNRECORDED = -1
FIRST_WAITING = -2
CATEGORY_BITS = 8
CATEGORY_MASK = (1 << CATEGORY_BITS) - 1
LONGEST_BUSY_PS = (1 << (63 - CATEGORY_BITS)) - 1

# Entries of `State.counts`.
NUM_READY, HEAP_SIZE, NUM_TOUCHED = range(3)
NUM_COUNTS = 3

# A transfer stands in the heap with its end (even keys) or, before it moves, with its start (odd keys).
NOT_IN_HEAP = -1


class Plan(NamedTuple):
    """What does not change during a run."""

    num_streams: int
    segments: Any  # int64 [segment, column]
    waits: Any  # int64 [wait, (offset, stride)] of the event inside its class
    demands: Any  # int64 [demand, (resource slot, bytes)]
    blocks: Any  # int64 [block + 1]: first segment of each (routine, stream)
    calls_begin: Any  # int64 [stream + 1]: first call of each stream
    call_block: Any  # int32 [call of a stream]
    call_index: Any  # int32 [call of a stream]
    event_begin: Any  # int64 [class]
    busy_shift: Any  # int64 [class]
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
    heap: Any  # int64 [stream]: owners
    heap_key: Any  # int64 [owner]
    heap_place: Any  # int64 [owner]
    num_users: Any  # int64 [resource]
    users: Any  # int64, with `Plan.user_begin`: owners, ascending
    in_use_since: Any  # int64 [resource]
    is_touched: Any  # bool [resource]
    touched: Any  # int64 [resource]
    level: Any  # float64 [resource]
    is_stale: Any  # bool [resource]
    place: Any  # int64 [resource]: -1 outside `_gather_demands`
