"""The language the engine runs: rank classes that execute programs of tasks on in-order streams.

Nothing here knows what a transformer is. A **rank class** stands for `count` ranks that do the same
thing. It runs a **program**: a list of **calls** in the order in which the host enqueues them, each call
a **routine** (a fixed list of **tasks**) with one integer argument, its `index` (the microbatch).

Semantics, which the reference engine spells out and the compiled engine must equal:

* A class has streams. The tasks of a stream run one after another, in the order of the calls and, inside
  a call, in the order of the routine.
* A task begins when its stream is free and every event that it waits for has been recorded. An event of a
  class is a pair (slot, index): a task of the call with index `i` that waits for slot `s` waits for
  `(s, i)`, or for `(s, 0)` if the slot is `shared_over_calls`. Each event is recorded at most once.
* A compute task (no demands, no communicator) of duration d takes d picoseconds, or d + ⌊d / 1024⌋·(q - 1024) in a call
  whose pace is q: 1024 is its own speed, 2048 takes twice as long. What is less than 1024 ps is not stretched; nothing
  else is rounded.
* A transfer or a meeting without bytes takes `duration_ps`, whatever the pace.
* A task with demands is a transfer: after `duration_ps` of latency it moves `bytes` over each resource it
  names, all in step; transfers that move at the same time share every resource max-min fairly. Where `sharers` ranks
  of the class use one resource side by side, such as the uplink of the switch they hang on, it carries that many equal
  flows of `bytes`.
* A task with a communicator is a meeting: it begins when all participants of the communicator have reached
  their own task of the same sequence number (the k-th on that communicator); the latency is the largest of
  theirs, the demands are all of theirs together, and it ends for all of them at once. A class uses a
  communicator from one stream only, as a communicator's calls are in order.
* Counters (memory by category) change by `at_start` when a task begins and by `at_end` when it ends.

Time is in integer picoseconds. At one instant, first everything ends that ends at it, and what can begin
because of that begins; then the transfers whose latency is over start to move; then rates are set, once.

Rates: a transfer t moves b[t,r] bytes over resource r, all flows together. B[t] is the size of its largest flow, and
its rate λ[t] is in bytes of B[t] per second, so it takes λ[t]·b[t,r]/B[t] of the capacity of r. Progressive filling
sets the rates: those of all flows rise together until a resource is full, whose users then keep theirs while the others
go on rising. So a transfer of eight flows gets eight times what one flow gets, whether they are one class or eight. A
transfer that meets nobody takes its latency and ceil(max_r b[t,r] / capacity[r]) picoseconds. An end that is less than
2^-40 of the moving time above a whole picosecond is that picosecond, and rates are rounded to 40 binary digits: so what
rounding leaves in sums over many flows or one class of them does not count.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache

import numpy as np
import numpy.typing as npt

PICOSECONDS_PER_SECOND = 1_000_000_000_000
ENDING = PICOSECONDS_PER_SECOND * (1 - 2.0**-40)
"""Picoseconds of a second for the ends of transfers, which are rounded up: a little less, for what rounding leaves."""
SPLIT = 2.0**13 + 1
"""What a rate is multiplied by to round it to 40 of 53 binary digits (Veltkamp 1968; Dekker 1971)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """Bytes that a transfer moves over one resource."""

    resource: int
    """Resource slot of the class: an index into `RankClass.resources`."""
    bytes: int
    """Bytes on that resource, per rank of the class."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CounterChange:
    """A step up or down of one counter."""

    counter: int
    """Index into `Program.counters`."""
    delta: int
    """Change of the level, per rank (bytes for memory)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """The engine's unit of work on one stream."""

    name: str
    """Shown in traces, for example `attention forward`."""
    stream: int
    """Stream of the class: an index into `Program.streams`."""
    category: int
    """What its time counts as: an index into `Program.categories`."""
    duration_ps: int = 0
    """Time of a compute task, latency of a transfer or a meeting; picoseconds."""
    demands: tuple[Demand, ...] = ()
    """Bytes moved after the latency; empty for compute."""
    communicator: int | None = None
    """Communicator slot of the class if the task is a meeting: an index into `RankClass.communicators`."""
    waits: tuple[int, ...] = ()
    """Event slots that must be recorded first."""
    records: int | None = None
    """Event slot that is recorded when the task ends."""
    at_start: tuple[CounterChange, ...] = ()
    """Counter changes when the task begins."""
    at_end: tuple[CounterChange, ...] = ()
    """Counter changes when the task ends."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Routine:
    """A fixed list of tasks that one call enqueues."""

    name: str
    """Shown in traces, for example `forward`."""
    tasks: tuple[Task, ...]
    """In the order of enqueueing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Resource:
    """Something that transfers share: one direction of a link of a rank of a class."""

    name: str
    """For example `stage 3 / infiniband out`."""
    bytes_per_s: float
    """Capacity."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Communicator:
    """A device group that meets in collectives."""

    name: str
    """For example `stage 3 to 4 activations`."""
    participants: int
    """How many tasks (one per participating class) make one meeting."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EventSlot:
    """A family of events of a class, one for each call index."""

    name: str
    """For example `activation of chunk 0 arrived`."""
    shared_over_calls: bool = False
    """True if all calls share one event instead of one for each index."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RankClass:
    """Ranks that are provably interchangeable, simulated once."""

    name: str
    """For example `pipeline rank 3`."""
    count: int
    """How many ranks the class stands for."""
    calls: npt.NDArray[np.int32]
    """`[num_calls, 2]`: routine (index into `Program.routines`) and call index (0 <= index < `num_indices`)."""
    resources: tuple[int, ...] = ()
    """Resource slot of the tasks -> index into `Program.resources`."""
    sharers: tuple[int, ...] = ()
    """Resource slot -> ranks of the class that use one such resource side by side; empty: each has its own."""
    communicators: tuple[int, ...] = ()
    """Communicator slot of the tasks -> index into `Program.communicators`."""
    initial: tuple[int, ...] = ()
    """Level of each counter before the first task; same length as `Program.counters`."""
    pace: npt.NDArray[np.int32] | None = None
    """`[num_calls]`: how long the compute tasks of each call take, in 1/1024 of their duration (at least 1); None: all
    1024. Slow ranks, jitter and uneven microbatches are told apart by nothing else."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Program:
    """Everything that one run of the engine needs."""

    streams: tuple[str, ...]
    """Names of the streams; every class has all of them, stream 0 is its compute stream."""
    categories: tuple[str, ...]
    """Names of what time can count as; index 0 is waiting for nobody in particular (the bubble)."""
    counters: tuple[str, ...]
    """Names of the counters (memory categories)."""
    events: tuple[EventSlot, ...]
    """Event slots; every class has all of them."""
    num_indices: int
    """Call indices run from 0 to this, exclusive."""
    routines: tuple[Routine, ...]
    """Routines, shared between the classes."""
    classes: tuple[RankClass, ...]
    """Rank classes."""
    resources: tuple[Resource, ...] = ()
    """Resources of all classes."""
    communicators: tuple[Communicator, ...] = ()
    """Communicators of all classes."""
    metadata: dict[str, str] = field(default_factory=dict)
    """Free text for traces."""


LONGEST_STEP_PS = 30 * 24 * 3600 * PICOSECONDS_PER_SECOND
"""A month; 64 bits hold 106 days, and sums of waiting times need some of the rest."""
OWN_PACE = 1024
"""The pace at which a compute task takes its own duration."""


def pace_units(task: Task) -> int:
    """Returns by how many picoseconds one unit of pace stretches a task: ⌊d / 1024⌋ for compute, 0 for others."""
    if task.demands or task.communicator is not None:
        return 0
    return task.duration_ps // OWN_PACE


def longest_ps(program: Program) -> float:
    """Returns the time of all tasks of the busiest class one after another, as if alone on the resources.

    In floating point, so that a program too long for the engine's integers can be told before it is run.
    """
    capacity = [resource.bytes_per_s for resource in program.resources]

    @cache
    def of_routines(slots: tuple[float, ...], called: tuple[int, ...]) -> npt.NDArray[np.float64]:
        """Two rows, a column for each routine: one call of it at its own pace, and what a unit of pace adds."""
        times = np.zeros((2, len(program.routines)))
        for number in called:
            tasks = program.routines[number].tasks
            times[:, number] = sum(_alone_ps(task, slots) for task in tasks), sum(map(pace_units, tasks))
        return times

    longest = 0.0
    counted: dict[int, tuple[npt.NDArray[np.int64], tuple[int, ...]]] = {}
    for rank_class in program.classes:
        routines = rank_class.calls[:, 0]
        if id(rank_class.calls) not in counted:
            calls = np.bincount(routines, minlength=len(program.routines))
            counted[id(rank_class.calls)] = calls, tuple(np.flatnonzero(calls).tolist())
        calls, called = counted[id(rank_class.calls)]
        own_ps, unit_ps = of_routines(tuple(rate_of_a_flow(rank_class, capacity)), called)
        total = float(own_ps @ calls)
        if rank_class.pace is not None:
            total += float(unit_ps[routines] @ (rank_class.pace - float(OWN_PACE)))
        longest = max(longest, total)
    return longest


def rate_of_a_flow(rank_class: RankClass, capacity: Sequence[float]) -> list[float]:
    """Returns for each resource slot of a class the bytes per second of one of its ranks when all use it alone."""
    rates = [capacity[resource] for resource in rank_class.resources]
    if rank_class.sharers:
        rates = [rate / sharers for rate, sharers in zip(rates, rank_class.sharers, strict=True)]
    return rates


def _alone_ps(task: Task, capacity: Sequence[float]) -> float:
    moving_s = max((demand.bytes / capacity[demand.resource] for demand in task.demands), default=0.0)
    return task.duration_ps + moving_s * PICOSECONDS_PER_SECOND
