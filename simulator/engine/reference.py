"""The reference engine: what a program means, in plain Python that can be checked in one sitting.

One heap of things that will happen, ordered by (time, priority, sequence). At one instant, first everything that ends
at it ends, and whatever can begin because of that begins; then the transfers whose latency is over start to move;
then the rates of the moving transfers are set anew, once.

The compiled engine (`simulator.engine.compiled`) must return the same integers; it gets there on another way.
"""

from __future__ import annotations

import heapq
import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from simulator.engine.check import check_program
from simulator.engine.deadlock import BlockedStream, deadlock_error
from simulator.engine.program import ENDING, OWN_PACE, PICOSECONDS_PER_SECOND, SPLIT, Program, Task, pace_units
from simulator.engine.reference_counters import Change, KeptLog, peak
from simulator.engine.timeline import SPAN_DTYPE, Timeline

BUBBLE = 0
"""The category of waiting for nobody in particular."""
COMPUTE = 0
"""The stream whose time is accounted."""
END, MOVE, SHARE = range(3)
"""Priorities at one instant."""


@dataclass(slots=True, eq=False)
class _Stream:
    """An in-order queue of tasks and how far it is."""

    class_index: int
    number: int
    queue: list[tuple[int, int, Task]]
    """(position of the call, position in the routine, task), in the order of execution."""
    next: int = 0
    free_ps: int = 0
    """End of the last task."""
    busy_since_ps: int = 0
    """Begin of the chain of tasks without a pause that ended, or will end, at `free_ps`."""
    ready_ps: int = 0
    """When the current task had its stream and its events; a meeting may begin later."""
    missing_event: int | None = None
    last_category: int = BUBBLE


@dataclass(slots=True, eq=False)
class _Event:
    """What is known of an event once it is recorded."""

    time_ps: int
    category: int
    busy_since_ps: int


@dataclass(slots=True, eq=False)
class Transfer:
    """Bytes on their way over some resources."""

    bytes_on: dict[int, int]
    """Bytes on each resource, not zero."""
    flow_bytes: int
    """Bytes of its largest flow."""
    rate: float = 0.0
    """Bytes per second of its largest flow."""
    left_bytes: float = 0.0
    """Not yet moved at `since_ps`, of its largest flow."""
    since_ps: int = 0
    """When the rate was last set."""
    plan: int = 0
    """How often; an end that was planned earlier is void."""
    members: list[_Stream] = field(default_factory=list)
    begin_ps: int = 0

    @property
    def shares(self) -> dict[int, float]:
        """Return the bytes on each resource per byte of the largest flow."""
        return {resource: float(size) / float(self.flow_bytes) for resource, size in self.bytes_on.items()}


def fair_rates(transfers: Sequence[Transfer], capacity: Sequence[float]) -> list[float]:
    """Return the max-min fair rate of each transfer, by progressive filling.

    All rates rise together until a resource is full: level_r = (C_r − Σ_frozen u·λ) / Σ_rising u. The users of the
    resource with the smallest level keep that rate, the others go on rising.

    Args:
        transfers: Transfers that move at the same time, in a fixed order (that of their streams).
        capacity: Bytes per second of each resource.

    Returns:
        Rate of each transfer, bytes per second of its largest flow.

    Source: Bertsekas and Gallager, Data Networks, 2nd edition, section 6.5.2.
    """
    shares = [transfer.shares for transfer in transfers]
    rates: list[float | None] = [None] * len(transfers)
    resources = sorted({resource for share in shares for resource in share})
    reached = 0.0
    while None in rates:
        lowest, tightest = math.inf, -1
        for resource in resources:
            used = rising = 0.0
            for share, rate in zip(shares, rates, strict=True):
                if resource in share and rate is None:
                    rising += share[resource]
                elif resource in share and rate is not None:
                    used += share[resource] * rate
            if rising > 0.0 and (capacity[resource] - used) / rising < lowest:
                lowest, tightest = (capacity[resource] - used) / rising, resource
        lowest = lowest * SPLIT - (lowest * SPLIT - lowest)
        reached = max(reached, lowest)  # levels do not fall, but for rounding
        for position, share in enumerate(shares):
            if tightest in share and rates[position] is None:
                rates[position] = reached
    return [0.0 if rate is None else rate for rate in rates]


class _Simulation:
    """State of one run."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.now = 0
        self.heap: list[tuple[int, int, int, Callable[[], None]]] = []
        self.sequence = 0
        self.streams = [_streams_of(program, number) for number in range(len(program.classes))]
        self.events: dict[tuple[int, int, int], _Event] = {}
        self.waiting: defaultdict[tuple[int, int, int], list[_Stream]] = defaultdict(list)
        self.meetings: defaultdict[int, list[_Stream]] = defaultdict(list)
        self.moving: list[Transfer] = []
        self.share_planned = False
        shape = len(program.classes), len(program.categories)
        self.time_ps = np.zeros(shape, dtype=np.int64)
        self.busy_ps = np.zeros(shape, dtype=np.int64)
        self.resource_bytes = np.zeros(len(program.resources), dtype=np.int64)
        self.resource_busy_ps = np.zeros(len(program.resources), dtype=np.int64)
        self.resource_users: defaultdict[int, int] = defaultdict(int)
        self.resource_since: dict[int, int] = {}
        self.changes: list[list[Change]] = [[] for _ in program.classes]
        self.spans: list[tuple[tuple[int, int, int], tuple[int, ...]]] = []

    def run(self) -> None:
        """Run until nothing happens any more."""
        for streams in self.streams:
            for stream in streams:
                self.try_next(stream)
        while self.heap:
            self.now, _, _, happen = heapq.heappop(self.heap)
            happen()

    def at(self, time_ps: int, priority: int, happen: Callable[[], None]) -> None:
        """Let something happen at a time."""
        heapq.heappush(self.heap, (time_ps, priority, self.sequence, happen))
        self.sequence += 1

    def key(self, stream: _Stream, slot: int) -> tuple[int, int, int]:
        """Return the event that a slot means in the stream's current call."""
        if self.program.events[slot].shared_over_calls:
            return stream.class_index, slot, 0
        call = stream.queue[stream.next][0]
        return stream.class_index, slot, int(self.program.classes[stream.class_index].calls[call, 1])

    def pace(self, stream: _Stream) -> int:
        """Return the pace of the stream's current call."""
        pace = self.program.classes[stream.class_index].pace
        return OWN_PACE if pace is None else int(pace[stream.queue[stream.next][0]])

    def try_next(self, stream: _Stream) -> None:
        """Begin the stream's next task, or leave the stream waiting for an event or a meeting."""
        if stream.next == len(stream.queue):
            return
        task = stream.queue[stream.next][2]
        for slot in task.waits:
            if self.key(stream, slot) not in self.events:
                stream.missing_event = slot
                self.waiting[self.key(stream, slot)].append(stream)
                return
        stream.missing_event = None
        stream.ready_ps = self.now
        if stream.number == COMPUTE and self.now > stream.free_ps:
            latest = max((self.events[self.key(stream, slot)] for slot in task.waits), key=lambda event: event.time_ps)
            self.account_gap(stream, latest)
        if task.communicator is None:
            self.begin([stream])
            return
        communicator = self.program.classes[stream.class_index].communicators[task.communicator]
        self.meetings[communicator].append(stream)
        if len(self.meetings[communicator]) == self.program.communicators[communicator].participants:
            self.begin(self.meetings.pop(communicator))

    def account_gap(self, stream: _Stream, latest: _Event) -> None:
        """Account the compute stream's time from its last end to the latest event that its next task waited for."""
        gap_ps = latest.time_ps - stream.free_ps
        exposed_ps = min(gap_ps, latest.time_ps - latest.busy_since_ps)
        self.time_ps[stream.class_index, latest.category] += exposed_ps
        self.time_ps[stream.class_index, BUBBLE] += gap_ps - exposed_ps

    def begin(self, members: list[_Stream]) -> None:
        """Begin a task, or a meeting of several streams."""
        bytes_on: defaultdict[int, int] = defaultdict(int)
        latency_ps = flow_bytes = 0
        for stream in members:
            task = stream.queue[stream.next][2]
            if stream.number == COMPUTE:
                self.time_ps[stream.class_index, BUBBLE] += self.now - stream.ready_ps
            if self.now > stream.free_ps:
                stream.busy_since_ps = self.now
            self.changes[stream.class_index] += [(self.now, True, stream.number, change) for change in task.at_start]
            latency_ps = max(latency_ps, task.duration_ps + pace_units(task) * (self.pace(stream) - OWN_PACE))
            rank_class = self.program.classes[stream.class_index]
            for demand in task.demands:
                sharers = rank_class.sharers[demand.resource] if rank_class.sharers else 1
                bytes_on[rank_class.resources[demand.resource]] += sharers * demand.bytes
                flow_bytes = max(flow_bytes, demand.bytes)
        moved = {resource: size for resource, size in bytes_on.items() if size > 0}
        transfer = Transfer(bytes_on=moved, flow_bytes=flow_bytes, members=members, begin_ps=self.now)
        if moved:
            self.at(self.now + latency_ps, MOVE, lambda: self.move(transfer))
        else:
            self.at(self.now + latency_ps, END, lambda: self.end(transfer))

    def move(self, transfer: Transfer) -> None:
        """Let a transfer join those that move."""
        transfer.left_bytes = float(transfer.flow_bytes)
        self.moving.append(transfer)
        self.moving.sort(key=lambda each: min((stream.class_index, stream.number) for stream in each.members))
        for resource, size in transfer.bytes_on.items():
            self.resource_bytes[resource] += size
            if self.resource_users[resource] == 0:
                self.resource_since[resource] = self.now
            self.resource_users[resource] += 1
        self.plan_sharing()

    def plan_sharing(self) -> None:
        """Set the rates anew at the end of this instant."""
        if not self.share_planned:
            self.share_planned = True
            self.at(self.now, SHARE, self.share)

    def share(self) -> None:
        """Set the rates of all moving transfers; one whose rate does not change keeps its end."""
        self.share_planned = False
        capacity = [resource.bytes_per_s for resource in self.program.resources]
        for transfer, rate in zip(self.moving, fair_rates(self.moving, capacity), strict=True):
            if rate == transfer.rate:
                continue
            transfer.left_bytes -= (self.now - transfer.since_ps) * transfer.rate / PICOSECONDS_PER_SECOND
            left_s = transfer.left_bytes / rate
            if transfer.rate == 0.0 and rate == fair_rates([transfer], capacity)[0]:  # alone: free of rounded rates
                left_s = max(float(size) / capacity[resource] for resource, size in transfer.bytes_on.items())
            transfer.rate, transfer.since_ps, transfer.plan = rate, self.now, transfer.plan + 1
            end_ps = self.now + max(1, math.ceil(left_s * ENDING))
            self.at(end_ps, END, lambda transfer=transfer, plan=transfer.plan: self.arrive(transfer, plan))  # type: ignore[misc]

    def arrive(self, transfer: Transfer, plan: int) -> None:
        """End a transfer, unless its end has been planned anew."""
        if plan != transfer.plan:
            return
        self.moving.remove(transfer)
        for resource in transfer.bytes_on:
            self.resource_users[resource] -= 1
            if self.resource_users[resource] == 0:
                self.resource_busy_ps[resource] += self.now - self.resource_since[resource]
        self.plan_sharing()
        self.end(transfer)

    def end(self, transfer: Transfer) -> None:
        """End a task or meeting for all its members and let those go on that waited for it."""
        awake = []
        for stream in transfer.members:
            call, position, task = stream.queue[stream.next]
            duration_ps = self.now - transfer.begin_ps
            self.busy_ps[stream.class_index, task.category] += duration_ps
            if stream.number == COMPUTE:
                self.time_ps[stream.class_index, task.category] += duration_ps
            self.changes[stream.class_index] += [(self.now, False, stream.number, change) for change in task.at_end]
            routine, index = self.program.classes[stream.class_index].calls[call].tolist()
            place = (stream.class_index, stream.number)
            self.spans.append(
                ((*place, stream.next), (*place, routine, position, index, transfer.begin_ps, self.now)),
            )
            if task.records is not None:
                key = self.key(stream, task.records)
                self.events[key] = _Event(self.now, task.category, stream.busy_since_ps)
                awake += self.waiting.pop(key, [])
            stream.free_ps, stream.last_category, stream.next = self.now, task.category, stream.next + 1
        for stream in transfer.members + awake:
            self.try_next(stream)


def run_reference(program: Program) -> Timeline:
    """Return what happens when a program runs, with all spans.

    Args:
        program: Rank classes with their programs.

    Returns:
        The timeline; takes some ten microseconds for each task.

    Raises:
        ProgramError: The program breaks a rule.
        DeadlockError: Some tasks can never begin.
    """
    check_program(program)
    simulation = _Simulation(program)
    simulation.run()
    blocked = [
        BlockedStream(class_index=stream.class_index, call=call, task=position, missing_event=stream.missing_event)
        for streams in simulation.streams
        for stream in streams
        for call, position, _ in stream.queue[stream.next : stream.next + 1]
    ]
    if blocked:
        raise deadlock_error(program, blocked)
    end_ps = [max(stream.free_ps for stream in streams) for streams in simulation.streams]
    makespan_ps = max(end_ps, default=0)
    for number, streams in enumerate(simulation.streams):
        last = next(stream for stream in streams if stream.free_ps == end_ps[number])
        if end_ps[number] > streams[COMPUTE].free_ps:
            simulation.account_gap(streams[COMPUTE], _Event(last.free_ps, last.last_category, last.busy_since_ps))
        simulation.time_ps[number, BUBBLE] += makespan_ps - end_ps[number]
    log = KeptLog(program, simulation.changes)
    return Timeline(
        makespan_ps=makespan_ps,
        events=len(simulation.spans),
        end_ps=np.array(end_ps, dtype=np.int64),
        time_ps=simulation.time_ps,
        busy_ps=simulation.busy_ps,
        resource_bytes=simulation.resource_bytes,
        resource_busy_ps=simulation.resource_busy_ps,
        counter_peaks=tuple(peak(program, number, log.changes[number]) for number in range(len(program.classes))),
        counter_source=log,
        spans=np.array([span for _, span in sorted(simulation.spans)], dtype=SPAN_DTYPE),
    )


def _streams_of(program: Program, class_index: int) -> list[_Stream]:
    streams = [_Stream(class_index, number, []) for number in range(len(program.streams))]
    for call, routine in enumerate(program.classes[class_index].calls[:, 0]):
        for position, task in enumerate(program.routines[routine].tasks):
            streams[task.stream].queue.append((call, position, task))
    return streams
