"""The same programs without contention in SimPy and on a plain-Python heap, for the benchmark to compare with.

Both get the program unfolded beforehand into what they need, which is not counted; both are written to be fast.
"""

from __future__ import annotations

import heapq
import math
from collections import defaultdict
from collections.abc import Generator
from typing import NamedTuple

import simpy

from simulator.engine import Program, Task
from simulator.engine.program import OWN_PACE, pace_units

Key = tuple[int, int, int]
"""(class, event slot, index)."""


class Step(NamedTuple):
    """One task of one stream."""

    duration_ps: int
    waits: tuple[Key, ...]
    records: Key | None
    communicator: int
    """-1 if it is no meeting."""


def unfold(program: Program) -> list[list[Step]]:
    """Return the tasks of every stream of every class, in order."""
    queues = []
    for number, rank_class in enumerate(program.classes):
        pace = [OWN_PACE] * len(rank_class.calls) if rank_class.pace is None else rank_class.pace.tolist()
        own: list[list[Step]] = [[] for _ in program.streams]
        for (routine, index), pace_of_call in zip(rank_class.calls.tolist(), pace, strict=True):
            for task in program.routines[routine].tasks:
                own[task.stream].append(
                    Step(
                        duration_ps=_alone_ps(program, number, task) + pace_units(task) * (pace_of_call - OWN_PACE),
                        waits=tuple((number, slot, index) for slot in task.waits),
                        records=None if task.records is None else (number, task.records, index),
                        communicator=-1 if task.communicator is None else rank_class.communicators[task.communicator],
                    )
                )
        queues += own
    return queues


def _alone_ps(program: Program, number: int, task: Task) -> int:
    slots = program.classes[number].resources
    seconds = max(
        (each.bytes / program.resources[slots[each.resource]].bytes_per_s for each in task.demands), default=0
    )
    return task.duration_ps + math.ceil(seconds * 1e12)


def simpy_makespan_ps(queues: list[list[Step]], participants: list[int]) -> int:
    """Return the makespan, with one SimPy process for each stream."""
    environment = simpy.Environment()
    events: dict[Key, simpy.Event] = {}
    meetings: dict[int, tuple[simpy.Event, list[int]]] = {}

    def event(key: Key) -> simpy.Event:
        if key not in events:
            events[key] = environment.event()
        return events[key]

    def run_stream(queue: list[Step]) -> Generator[simpy.Event, None, None]:
        for step in queue:
            for key in step.waits:
                if not event(key).processed:
                    yield event(key)
            duration_ps = step.duration_ps
            if step.communicator >= 0:
                complete, durations = meetings.setdefault(step.communicator, (environment.event(), []))
                durations.append(duration_ps)
                if len(durations) == participants[step.communicator]:
                    del meetings[step.communicator]
                    complete.succeed()
                yield complete
                duration_ps = max(durations)
            yield environment.timeout(duration_ps)
            if step.records is not None:
                event(step.records).succeed()

    for queue in queues:
        environment.process(run_stream(queue))
    environment.run()
    return int(environment.now)


def heap_makespan_ps(queues: list[list[Step]], participants: list[int]) -> int:
    """Return the makespan, with one heap of the ends of tasks."""
    place = [0] * len(queues)
    heap: list[tuple[int, int, list[int]]] = []
    recorded: set[Key] = set()
    waiting: defaultdict[Key, list[int]] = defaultdict(list)
    standing: defaultdict[int, list[int]] = defaultdict(list)
    now, sequence = 0, 0
    ready = list(range(len(queues)))
    while True:
        for stream in ready:
            queue = queues[stream]
            if place[stream] == len(queue):
                continue
            step = queue[place[stream]]
            for key in step.waits:
                if key not in recorded:
                    waiting[key].append(stream)
                    break
            else:
                members, duration_ps = [stream], step.duration_ps
                if step.communicator >= 0:
                    standing[step.communicator].append(stream)
                    if len(standing[step.communicator]) < participants[step.communicator]:
                        continue
                    members = standing.pop(step.communicator)
                    duration_ps = max(queues[member][place[member]].duration_ps for member in members)
                heapq.heappush(heap, (now + duration_ps, sequence, members))
                sequence += 1
        if not heap:
            return now
        now, _, ended = heapq.heappop(heap)
        ready = list(ended)
        for stream in ended:
            records = queues[stream][place[stream]].records
            place[stream] += 1
            if records is not None:
                recorded.add(records)
                ready += waiting.pop(records, ())
