"""What ran when: the result of one run of the engine, the same from both engines.

All times are integer picoseconds since the start of the step. Per-class numbers are per rank of the class;
nothing here is multiplied by `RankClass.count`.

How the time of the compute stream (stream 0) is accounted, so that the categories of each class add up to the
makespan exactly:

* a task counts to its own category, a meeting's wait for the other participants to category 0 (the bubble);
* a gap before a task that waited for events belongs to the event that was recorded last. The task that recorded it
  had kept its stream busy without a pause since `b`; as much of the gap as lies in that busy period was spent on that
  stream's work and counts to the category of the recording task (exposed communication); the rest, in which that
  stream itself was waiting, counts to category 0;
* the time after the last task is a gap before the end of the class's last stream, then category 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from simulator.errors import SimulatorFault

IntArray = npt.NDArray[np.int64]

SPAN_DTYPE = np.dtype(
    [
        ("class", np.int32),
        ("stream", np.int16),
        ("routine", np.int32),
        ("task", np.int32),
        ("index", np.int32),
        ("begin_ps", np.int64),
        ("end_ps", np.int64),
    ]
)
"""One execution of a task; `task` is its position in the routine, `index` the call's."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CounterLog:
    """Every change of the counters of one class, in the order of `CounterPeak`; each array has an entry for each."""

    time_ps: IntArray
    """When."""
    step: IntArray
    """Number of the step that it belongs to, not falling: changes of one step apply at once."""
    counter: npt.NDArray[np.int32]
    """Which counter."""
    delta: IntArray
    """By how much."""
    initial: tuple[int, ...]
    """Level of each counter before the first change (this one has an entry for each counter)."""


class CounterSource(Protocol):
    """Gives the changes of one class when asked; the compiled engine does not expand those of all classes at once."""

    def counter_log(self, class_index: int) -> CounterLog:
        """Return the changes of one class."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CounterPeak:
    """Extremes of the counters of one class.

    The changes of one stream come in the order of its program, also at one instant: those at the end of a task that
    takes no time after those at its start. Of several streams those at the end of tasks come first, then by the
    stream's number. What one stream changes in a row at one instant, at starts or at ends, is one step.
    """

    time_ps: int
    """First time at which the sum of all counters is highest."""
    at_peak: tuple[int, ...]
    """Level of each counter at that time."""
    final: tuple[int, ...]
    """Level of each counter after the last task."""
    highest: tuple[int, ...]
    """Own maximum of each counter."""
    lowest: tuple[int, ...]
    """Own minimum of each counter."""
    lowest_total: int
    """Minimum of the sum of all counters."""

    @property
    def total(self) -> int:
        """Return the sum of all counters at the peak."""
        return sum(self.at_peak)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Timeline:
    """What one run of a program took, by class, category, resource and counter."""

    makespan_ps: int
    """Largest end of a task over all classes."""
    events: int
    """Number of tasks run, summed over classes (not multiplied by their counts)."""
    end_ps: IntArray
    """`[class]`: end of the class's last task on any stream."""
    time_ps: IntArray
    """`[class, category]`: the compute stream's time from 0 to the makespan; each row adds up to the makespan."""
    busy_ps: IntArray
    """`[class, category]`: time of tasks from begin to end, over all streams."""
    resource_bytes: IntArray
    """`[resource]`: bytes moved over it."""
    resource_busy_ps: IntArray
    """`[resource]`: time in which at least one transfer moved bytes over it."""
    counter_peaks: tuple[CounterPeak, ...]
    """One for each class; none if counters were not recorded."""
    counter_source: CounterSource | None
    """Where `counter_track` finds the changes; None if counters were not recorded."""
    spans: npt.NDArray[np.void] | None = None
    """Task executions (`SPAN_DTYPE`) in the order (class, stream, sequence), if they were asked for."""


def counter_track(timeline: Timeline, class_index: int) -> tuple[IntArray, IntArray]:
    """Return how the counters of one class moved.

    Args:
        timeline: Result of a run.
        class_index: Which class.

    Returns:
        Times in picoseconds `[n]`, not falling, and levels `[n, num_counters]` from each time on. The first row is
        the initial level at time 0, each other that after a step of `CounterPeak`.

    Raises:
        SimulatorFault: The counters were not recorded.
    """
    if timeline.counter_source is None:
        raise SimulatorFault("the counters of this run were not recorded; run the engine with record_counters=True")
    log = timeline.counter_source.counter_log(class_index)
    _, first, row_of_change = np.unique(log.step, return_index=True, return_inverse=True)
    steps = np.zeros((len(first) + 1, len(log.initial)), dtype=np.int64)
    steps[0] = log.initial
    np.add.at(steps, (row_of_change + 1, log.counter), log.delta)
    return np.concatenate([np.zeros(1, dtype=np.int64), log.time_ps[first]]), np.cumsum(steps, axis=0)
