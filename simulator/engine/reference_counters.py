"""What the reference engine makes of counter changes: their order, levels and extremes."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from simulator.engine.program import CounterChange, Program
from simulator.engine.timeline import CounterLog, CounterPeak

Change = tuple[int, bool, int, CounterChange]
"""Time, whether at the start of a task, its stream, the change."""


@dataclass(frozen=True, slots=True)
class KeptLog:
    """The changes of the counters of all classes."""

    program: Program
    changes: list[list[Change]]

    def counter_log(self, class_index: int) -> CounterLog:
        """Return the changes of one class."""
        steps = list(_steps(self.changes[class_index]))
        changes = [change for step in steps for change in step]
        return CounterLog(
            time_ps=np.array([time_ps for time_ps, *_ in changes], dtype=np.int64),
            step=np.repeat(np.arange(len(steps)), [len(step) for step in steps]),
            counter=np.array([change.counter for *_, change in changes], dtype=np.int32),
            delta=np.array([change.delta for *_, change in changes], dtype=np.int64),
            initial=self.program.classes[class_index].initial,
        )


def peak(program: Program, class_index: int, changes: list[Change]) -> CounterPeak:
    """Return the extremes of the counters of one class."""
    level = list(program.classes[class_index].initial)
    time_of_peak, at_peak, highest, lowest, lowest_total = 0, list(level), list(level), list(level), sum(level)
    for step in _steps(changes):
        for *_, change in step:
            level[change.counter] += change.delta
        highest = [max(pair) for pair in zip(highest, level, strict=True)]
        lowest = [min(pair) for pair in zip(lowest, level, strict=True)]
        lowest_total = min(lowest_total, sum(level))
        if sum(level) > sum(at_peak):
            time_of_peak, at_peak = step[0][0], list(level)
    return CounterPeak(
        time_ps=time_of_peak,
        at_peak=tuple(at_peak),
        final=tuple(level),
        highest=tuple(highest),
        lowest=tuple(lowest),
        lowest_total=lowest_total,
    )


def _steps(changes: list[Change]) -> Iterator[list[Change]]:
    """Yield the changes that apply at once, in the order of `CounterPeak`."""
    queues: defaultdict[int, deque[Change]] = defaultdict(deque)
    for change in changes:
        queues[change[2]].append(change)
    while queues:
        queue = queues[min(queues, key=lambda stream: queues[stream][0][:3])]
        step = [queue.popleft()]
        while queue and queue[0][:2] == step[0][:2]:
            step.append(queue.popleft())
        if not queue:
            del queues[step[0][2]]
        yield step
