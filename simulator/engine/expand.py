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
from simulator.engine.program import OWN_PACE
from simulator.engine.tables import (
    BLOCK_END,
    BLOCK_FIRST,
    CALL_BLOCK,
    CALL_INDEX,
    CALL_POSITION,
    FIXED,
    SEG_KIND,
    SEG_LOGGED,
)
from simulator.engine.timeline import SPAN_DTYPE, CounterLog, CounterPeak

IntArray = npt.NDArray[np.int64]
CHANGE_OFFSET, CHANGE_UNITS, CHANGE_AT_START, CHANGE_COUNTER, CHANGE_DELTA = range(5)
NUM_CHANGE_COLUMNS = 5
TASK_POSITION, TASK_BEGIN, TASK_BEGIN_UNITS, TASK_END, TASK_END_UNITS = range(5)
NUM_TASK_COLUMNS = 5
# Rows of the columns of spans that follow from the log.
SPAN_POSITION, SPAN_BEGIN, SPAN_END = range(3)
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
        calls = [_calls_of(self.flat, stream) for stream in streams.tolist()]
        for number in range(plan.num_streams):
            begin[number + 1] = begin[number] + self.changes_of_block[calls[number][:, CALL_BLOCK]].sum()
        keys, rows = np.empty(begin[-1], dtype=np.int64), np.empty(begin[-1], dtype=np.int64)
        for number, stream in enumerate(streams):
            _expand_changes(
                self.num_times,
                *_segments_of_calls(self.flat, calls[number], class_index),
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
        changes=np.array(rows, dtype=np.int64).reshape(len(rows), NUM_CHANGE_COLUMNS),
        num_times=_num_times(flat),
        changes_of_block=_in_blocks(flat, changes_begin),
    )


def _calls_of(flat: FlatProgram, stream: int) -> npt.NDArray[np.int32]:
    """Return the calls of a stream."""
    calls: npt.NDArray[np.int32] = flat.plan.calls[flat.calls_begin[stream] : flat.plan.calls_end[stream]]
    return calls


def _segments_of_calls(
    flat: FlatProgram, calls: npt.NDArray[np.int32], class_index: int
) -> tuple[IntArray, IntArray, IntArray]:
    """Return for each call of a stream its first segment, the end of its segments, and its pace less the own one."""
    plan = flat.plan
    slower = np.zeros(len(calls), dtype=np.int64)
    begin = int(plan.pace_begin[class_index])
    if begin >= 0:
        slower += plan.pace[begin + calls[:, CALL_POSITION]]
        slower -= OWN_PACE
    blocks = plan.blocks[calls[:, CALL_BLOCK]]
    return blocks[:, BLOCK_FIRST], blocks[:, BLOCK_END], slower


def _in_blocks(flat: FlatProgram, begin_of_segment: IntArray) -> IntArray:
    """Return for each block how many of the things it has that begin at a place for each segment."""
    blocks = flat.plan.blocks
    count: IntArray = begin_of_segment[blocks[:, BLOCK_END]] - begin_of_segment[blocks[:, BLOCK_FIRST]]
    return count


def _num_times(flat: FlatProgram) -> IntArray:
    """Return how many times each segment writes to the log: 0, 1 (begin) or 2 (begin and end)."""
    segments = flat.plan.segments
    times: IntArray = segments[:, SEG_LOGGED] * np.where(segments[:, SEG_KIND] == FIXED, 1, 2)
    return times


@numba.njit(cache=True)
def _expand_changes(num_times, first, end, slower, log, changes_begin, changes, keys, rows):  # type: ignore[no-untyped-def]
    """Write the times (as keys) and rows of a stream's changes."""
    place, logged = 0, 0
    for call in range(len(first)):
        for segment in range(first[call], end[call]):
            if num_times[segment] == 0:
                continue
            begin = log[logged]
            is_fixed = num_times[segment] == 1
            logged += num_times[segment]
            for row in range(changes_begin[segment], changes_begin[segment + 1]):
                at_start = changes[row, CHANGE_AT_START]
                time = log[logged - 1]
                if is_fixed or at_start:
                    time = begin + changes[row, CHANGE_OFFSET] + changes[row, CHANGE_UNITS] * slower[call]
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
    tasks = np.array(rows, dtype=np.int64).reshape(len(rows), NUM_TASK_COLUMNS)
    routine_of_block = np.repeat([variant.routine for variant in flat.variants], plan.num_streams)
    tasks_of_block = _in_blocks(flat, tasks_begin)
    parts = [np.zeros(0, dtype=SPAN_DTYPE)]
    for class_index in class_indices:
        for number in range(plan.num_streams):
            stream = class_index * plan.num_streams + number
            calls = _calls_of(flat, stream)
            blocks = calls[:, CALL_BLOCK]
            part = np.zeros(int(tasks_of_block[blocks].sum()), dtype=SPAN_DTYPE)
            part["class"], part["stream"] = class_index, number
            part["routine"] = np.repeat(routine_of_block[blocks], tasks_of_block[blocks])
            part["index"] = np.repeat(calls[:, CALL_INDEX], tasks_of_block[blocks])
            columns = np.empty((3, len(part)), dtype=np.int64)
            log_of_stream = log[flat.log_begin[stream] :]
            segments = _segments_of_calls(flat, calls, class_index)
            _expand_tasks(num_times, *segments, log_of_stream, tasks_begin, tasks, columns)
            part["task"], part["begin_ps"], part["end_ps"] = columns
            parts.append(part)
    return np.concatenate(parts)


@numba.njit(cache=True)
def _expand_tasks(num_times, first, end, slower, log, tasks_begin, tasks, columns):  # type: ignore[no-untyped-def]
    """Write position, begin and end of a stream's tasks."""
    place, logged = 0, 0
    for call in range(len(first)):
        for segment in range(first[call], end[call]):
            begin = log[logged]
            is_fixed = num_times[segment] == 1
            logged += num_times[segment]
            for row in range(tasks_begin[segment], tasks_begin[segment + 1]):
                task = tasks[row]
                columns[SPAN_POSITION, place] = task[TASK_POSITION]
                columns[SPAN_BEGIN, place] = begin + task[TASK_BEGIN] + task[TASK_BEGIN_UNITS] * slower[call]
                columns[SPAN_END, place] = log[logged - 1]
                if is_fixed:
                    columns[SPAN_END, place] = begin + task[TASK_END] + task[TASK_END_UNITS] * slower[call]
                place += 1
