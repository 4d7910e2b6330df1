"""An outside opinion: a program without contention, as SimPy processes."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Generator

import simpy

from simulator.engine import Program, Task


def simpy_makespan_ps(program: Program) -> int:
    """Return the makespan of a program in which no two transfers move over one resource at the same time."""
    environment = simpy.Environment()
    events: defaultdict[tuple[int, int, int], simpy.Event] = defaultdict(environment.event)
    arrivals: defaultdict[tuple[int, int], list[int]] = defaultdict(list)
    complete: defaultdict[tuple[int, int], simpy.Event] = defaultdict(environment.event)

    def duration_ps(class_index: int, task: Task) -> int:
        rank_class = program.classes[class_index]
        bytes_on: defaultdict[int, int] = defaultdict(int)
        for demand in task.demands:
            sharers = rank_class.sharers[demand.resource] if rank_class.sharers else 1
            bytes_on[rank_class.resources[demand.resource]] += sharers * demand.bytes
        seconds = max((size / program.resources[link].bytes_per_s for link, size in bytes_on.items()), default=0.0)
        return task.duration_ps + math.ceil(seconds * 1e12 * (1 - 2.0**-40))

    def stream_process(class_index: int, stream: int) -> Generator[simpy.Event, None, None]:
        rank_class = program.classes[class_index]
        sequence: defaultdict[int, int] = defaultdict(int)
        pace = [1024] * len(rank_class.calls) if rank_class.pace is None else rank_class.pace.tolist()
        for (routine, index), pace_of_call in zip(rank_class.calls.tolist(), pace, strict=True):
            for task in program.routines[routine].tasks:
                if task.stream != stream:
                    continue

                def event(slot: int, index: int = index) -> simpy.Event:
                    return events[class_index, slot, 0 if program.events[slot].shared_over_calls else index]

                yield simpy.AllOf(environment, [event(slot) for slot in task.waits])
                latency_ps: int = duration_ps(class_index, task)
                if task.communicator is None and not task.demands:
                    latency_ps += task.duration_ps // 1024 * (pace_of_call - 1024)
                if task.communicator is not None:
                    communicator = rank_class.communicators[task.communicator]
                    meeting = communicator, sequence[communicator]
                    sequence[communicator] += 1
                    arrivals[meeting].append(latency_ps)
                    if len(arrivals[meeting]) == program.communicators[communicator].participants:
                        complete[meeting].succeed()
                    yield complete[meeting]
                    latency_ps = max(arrivals[meeting])
                yield environment.timeout(latency_ps)
                ends.append(environment.now)
                if task.records is not None:
                    event(task.records).succeed()

    ends = [0]
    for class_index in range(len(program.classes)):
        for stream in range(len(program.streams)):
            environment.process(stream_process(class_index, stream))
    environment.run()
    return int(max(ends))
