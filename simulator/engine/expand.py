"""From the log of segments back to counters and task executions, one class at a time.

The compiled engine keeps one time for each segment (two if its duration was not known before); everything else about
a task follows from its place in the segment.
"""

from __future__ import annotations

from dataclasses import dataclass

import numba
import numpy as np
import numpy.typing as npt

from simulator.engine.arrays import FlatProgram
from simulator.engine.tables import FIXED, SEG_KIND, SEG_LOGGED
from simulator.engine.timeline import SPAN_DTYPE, CounterLog, CounterPeak

IntArray = npt.NDArray[np.int64]
CHANGE_OFFSET, CHANGE_AT_START, CHANGE_COUNTER, CHANGE_DELTA = range(4)
TASK_POSITION, TASK_BEGIN, TASK_END = range(3)
# Rows of the extremes of counters: one column for each counter, and one for their sum.
AT_PEAK, FINAL, HIGHEST, LOWEST = range(4)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LoggedTimes:
    """The log of a run and what is needed to read it; the `CounterSource` of the compiled engine."""

    flat: FlatProgram
    log: IntArray
    initial: tuple[tuple[int, ...], ...]
    """For each class: level of each counter before the first task."""
    changes_begin: IntArray
    """`[segment + 1]`."""
    changes: IntArray
    """`[change, column]`."""
    num_times: IntArray
    """`[segment]`: how many times it writes to the log."""
    changes_of_block: IntArray
    """`[block]`: number of changes in one call."""

    def counter_log(self, class_index: int) -> CounterLog:
        """Return the changes of one class."""
        keys, rows, begin = self.changes_by_stream(class_index)
        places, steps = np.empty_like(rows), np.empty_like(rows)
        _order_changes(keys, begin, places, steps)
        return CounterLog(
            time_ps=keys[places] >> 1,
            step=steps,
            counter=self.changes[rows[places], CHANGE_COUNTER].astype(np.int32),
            delta=self.changes[rows[places], CHANGE_DELTA],
            initial=self.initial[class_index],
        )

    def changes_by_stream(self, class_index: int) -> tuple[IntArray, IntArray, IntArray]:
        """Return twice the time (plus one at a start) and the row of each change, and where each stream's begin."""
        plan = self.flat.plan
        streams = class_index * plan.num_streams + np.arange(plan.num_streams)
        begin = np.zeros(plan.num_streams + 1, dtype=np.int64)
        for number, stream in enumerate(streams):
            blocks = plan.call_block[plan.calls_begin[stream] : plan.calls_begin[stream + 1]]
            begin[number + 1] = begin[number] + self.changes_of_block[blocks].sum()
        keys, rows = np.empty(begin[-1], dtype=np.int64), np.empty(begin[-1], dtype=np.int64)
        for number, stream in enumerate(streams):
            _expand_changes(
                self.num_times,
                plan.blocks,
                plan.call_block[plan.calls_begin[stream] : plan.calls_begin[stream + 1]],
                self.log[self.flat.log_begin[stream] :],
                self.changes_begin,
                self.changes,
                keys[begin[number] :],
                rows[begin[number] :],
            )
        return keys, rows, begin

    def peak(self, class_index: int) -> CounterPeak:
        """Return the extremes of the counters of one class."""
        initial = self.initial[class_index]
        keys, rows, begin = self.changes_by_stream(class_index)
        extremes = np.tile(np.array([*initial, sum(initial)], dtype=np.int64), (4, 1))
        places, steps = np.empty_like(rows), np.empty_like(rows)
        _order_changes(keys, begin, places, steps)
        time_ps = _find_extremes(keys, rows, places, steps, self.changes, extremes)
        levels = [tuple(row) for row in extremes.tolist()]
        return CounterPeak(
            time_ps=int(time_ps),
            at_peak=levels[AT_PEAK][:-1],
            final=levels[FINAL][:-1],
            highest=levels[HIGHEST][:-1],
            lowest=levels[LOWEST][:-1],
            lowest_total=levels[LOWEST][-1],
        )


def logged_times(flat: FlatProgram, log: IntArray, *, initial: tuple[tuple[int, ...], ...]) -> LoggedTimes:
    """Return the log of a run with the counter changes of each segment beside it.

    Args:
        flat: The program that was run.
        log: Times, picoseconds.
        initial: For each class: level of each counter before the first task.

    Returns:
        The log, ready to be read.
    """
    lengths = [len(segment.changes) for segment in flat.segments]
    rows = [change for segment in flat.segments for change in segment.changes]
    changes_begin = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(np.array(lengths, dtype=np.int64))])
    return LoggedTimes(
        flat=flat,
        log=log,
        initial=initial,
        changes_begin=changes_begin,
        changes=np.array(rows, dtype=np.int64).reshape(len(rows), 4),
        num_times=_num_times(flat),
        changes_of_block=np.diff(changes_begin[flat.plan.blocks]),
    )


def _num_times(flat: FlatProgram) -> IntArray:
    """Return how many times each segment writes to the log: 0, 1 (begin) or 2 (begin and end)."""
    segments = flat.plan.segments
    times: IntArray = segments[:, SEG_LOGGED] * np.where(segments[:, SEG_KIND] == FIXED, 1, 2)
    return times


@numba.njit(cache=True)
def _expand_changes(num_times, blocks, call_block, log, changes_begin, changes, keys, rows):  # type: ignore[no-untyped-def]
    """Write the times (as keys) and rows of a stream's changes."""
    place, logged = 0, 0
    for block in call_block:
        for segment in range(blocks[block], blocks[block + 1]):
            if num_times[segment] == 0:
                continue
            begin = log[logged]
            is_fixed = num_times[segment] == 1
            logged += num_times[segment]
            for row in range(changes_begin[segment], changes_begin[segment + 1]):
                at_start = changes[row, CHANGE_AT_START]
                time = begin + changes[row, CHANGE_OFFSET] if is_fixed or at_start else log[logged - 1]
                keys[place] = 2 * time + at_start
                rows[place] = row
                place += 1


@numba.njit(cache=True)
def _order_changes(keys, begin, places, steps):  # type: ignore[no-untyped-def]
    """Write the places of the changes in the order in which they apply, and the step of each."""
    heads = begin[:-1].copy()
    done, step = 0, 0
    while done < len(places):
        chosen = -1
        for stream in range(len(heads)):
            if heads[stream] < begin[stream + 1] and (chosen < 0 or keys[heads[stream]] < keys[heads[chosen]]):
                chosen = stream
        key = keys[heads[chosen]]
        while heads[chosen] < begin[chosen + 1] and keys[heads[chosen]] == key:
            places[done], steps[done] = heads[chosen], step
            heads[chosen] += 1
            done += 1
        step += 1


@numba.njit(cache=True)
def _find_extremes(keys, rows, places, steps, changes, extremes):  # type: ignore[no-untyped-def]
    """Go through the changes in order, write the extremes, return the time of the peak."""
    num_counters = extremes.shape[1] - 1
    level = extremes[FINAL]
    time_of_peak = 0
    for number in range(len(places)):
        row = rows[places[number]]
        level[changes[row, CHANGE_COUNTER]] += changes[row, CHANGE_DELTA]
        level[num_counters] += changes[row, CHANGE_DELTA]
        if number + 1 < len(places) and steps[number + 1] == steps[number]:
            continue
        for counter in range(num_counters + 1):
            extremes[HIGHEST, counter] = max(extremes[HIGHEST, counter], level[counter])
            extremes[LOWEST, counter] = min(extremes[LOWEST, counter], level[counter])
        if level[num_counters] > extremes[AT_PEAK, num_counters]:
            extremes[AT_PEAK] = level
            time_of_peak = keys[places[number]] >> 1
    return time_of_peak


def expand_spans(flat: FlatProgram, log: IntArray, class_indices: list[int]) -> npt.NDArray[np.void]:
    """Return all task executions of some classes.

    Args:
        flat: The program that was run, flattened with these as `span_classes`.
        log: Times, picoseconds.
        class_indices: Classes, ascending.

    Returns:
        `SPAN_DTYPE` rows in the order (class, stream, sequence).
    """
    plan = flat.plan
    num_times = _num_times(flat)
    lengths = np.array([len(segment.tasks) for segment in flat.segments], dtype=np.int64)
    tasks_begin = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(lengths)])
    rows = [task for segment in flat.segments for task in segment.tasks]
    tasks = np.array(rows, dtype=np.int64).reshape(len(rows), 3)
    routine_of_block = np.repeat([variant.routine for variant in flat.variants], plan.num_streams)
    tasks_of_block = np.diff(tasks_begin[plan.blocks])
    parts = [np.zeros(0, dtype=SPAN_DTYPE)]
    for class_index in class_indices:
        for number in range(plan.num_streams):
            stream = class_index * plan.num_streams + number
            calls = slice(plan.calls_begin[stream], plan.calls_begin[stream + 1])
            blocks = plan.call_block[calls]
            part = np.zeros(int(tasks_of_block[blocks].sum()), dtype=SPAN_DTYPE)
            part["class"], part["stream"] = class_index, number
            part["routine"] = np.repeat(routine_of_block[blocks], tasks_of_block[blocks])
            part["index"] = np.repeat(plan.call_index[calls], tasks_of_block[blocks])
            columns = np.empty((3, len(part)), dtype=np.int64)
            log_of_stream = log[flat.log_begin[stream] :]
            _expand_tasks(num_times, plan.blocks, blocks, log_of_stream, tasks_begin, tasks, columns)
            part["task"], part["begin_ps"], part["end_ps"] = columns
            parts.append(part)
    return np.concatenate(parts)


@numba.njit(cache=True)
def _expand_tasks(num_times, blocks, call_block, log, tasks_begin, tasks, columns):  # type: ignore[no-untyped-def]
    """Write position, begin and end of a stream's tasks."""
    place, logged = 0, 0
    for block in call_block:
        for segment in range(blocks[block], blocks[block + 1]):
            begin = log[logged]
            is_fixed = num_times[segment] == 1
            logged += num_times[segment]
            for row in range(tasks_begin[segment], tasks_begin[segment + 1]):
                columns[TASK_POSITION, place] = tasks[row, TASK_POSITION]
                columns[TASK_BEGIN, place] = begin + tasks[row, TASK_BEGIN]
                columns[TASK_END, place] = begin + tasks[row, TASK_END] if is_fixed else log[logged - 1]
                place += 1
