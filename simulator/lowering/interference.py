"""What communication kernels cost the compute that runs beside them (E4.17).

While a kernel that holds a share s of the multiprocessors moves bytes, compute beside it does 1 - s of its work: over t
seconds it loses s·t seconds, which are added to its task. How long the two run side by side is found routine by
routine, with the rank on its own: each stream in order, each transfer as long as alone. So the engine sees longer
compute tasks and nothing else, the same for all ranks of a pipeline rank.

Left out: what runs on from one routine into the next (messages between stages, gathers at the begin of a step), and
that transfers which share links hold their multiprocessors for longer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from simulator.cost.collectives import Port, Traffic, time_alone_s
from simulator.engine import Task
from simulator.engine.program import PICOSECONDS_PER_SECOND

LEAST_RATE = 0.1
"""What is left to compute however many kernels run beside it. Assumption; no scenario comes near it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kernel:
    """A running collective, as the compute beside it sees it."""

    share: float
    """Of the multiprocessors."""
    seconds: float
    """How long it runs, alone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Interfering:
    """How collectives become kernels."""

    ports: tuple[Port, ...]
    """Ports of a rank."""
    scale: float
    """Factor on the share of multiprocessors that the library's channels take."""

    def kernel(self, traffic: Traffic) -> Kernel:
        """Returns the kernel of a collective."""
        share = self.scale * traffic.interference.multiprocessors_fraction
        return Kernel(share=share, seconds=time_alone_s(traffic, self.ports))


def slowed(tasks: Sequence[Task], kernels: Mapping[int, Kernel], compute: int) -> tuple[Task, ...]:
    """Returns the tasks of a routine with the compute beside kernels longer.

    A collective of 2 s and share 0.1 beside 10 s of compute makes them 10.2 s.

    Args:
        tasks: in the order of enqueueing.
        kernels: by position; the other tasks take their duration.
        compute: the compute stream.
    """
    if not any(kernel.share for kernel in kernels.values()):
        return tuple(tasks)
    lost_s = _lost_s(tasks, kernels, compute)
    return tuple(
        replace(task, duration_ps=task.duration_ps + round(lost_s[position] * PICOSECONDS_PER_SECOND))
        if position in lost_s
        else task
        for position, task in enumerate(tasks)
    )


def _lost_s(tasks: Sequence[Task], kernels: Mapping[int, Kernel], compute: int) -> dict[int, float]:
    """Returns the seconds that each compute task loses, by position: all streams run, step by step."""
    queues: dict[int, list[int]] = {}
    for position, task in reversed(list(enumerate(tasks))):
        queues.setdefault(task.stream, []).append(position)
    open_events = {task.records for task in tasks if task.records is not None}
    left: dict[int, float] = {}
    lost: dict[int, float] = {}
    while True:
        for queue in queues.values():
            if queue and queue[-1] not in left and open_events.isdisjoint(tasks[queue[-1]].waits):
                position = queue[-1]
                task, kernel = tasks[position], kernels.get(position)
                left[position] = task.duration_ps / PICOSECONDS_PER_SECOND if kernel is None else kernel.seconds
        if not left:
            return lost
        taken = sum(kernels[position].share for position in left if position in kernels)
        rate = max(LEAST_RATE, 1 - taken)
        slow = {position for position in left if tasks[position].stream == compute and position not in kernels}
        passed_s = min(seconds / (rate if position in slow else 1.0) for position, seconds in left.items())
        for position in slow:
            if taken and passed_s:
                lost[position] = lost.get(position, 0.0) + passed_s * (1 - rate)
        for position in list(left):
            speed = rate if position in slow else 1.0
            if left[position] / speed <= passed_s:
                del left[position]
                queues[tasks[position].stream].pop()
                open_events.discard(tasks[position].records)
            else:
                left[position] -= passed_s * speed
