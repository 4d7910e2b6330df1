"""The compiled engine: the same numbers as the reference engine, some thousand times sooner."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from simulator.engine.check import ProgramError, check_program
from simulator.engine.deadlock import BlockedStream, deadlock_error
from simulator.engine.program import Program
from simulator.engine.tables import (
    BUSY_SINCE,
    CURSOR,
    FREE,
    SEG_CATEGORY,
    SEG_WAITS,
    SEG_WAITS_END,
    SEGMENT,
    State,
)
from simulator.engine.timeline import Timeline

if TYPE_CHECKING:
    from simulator.engine.arrays import FlatProgram

IntArray = npt.NDArray[np.int64]


def run_compiled(program: Program, *, record_spans: bool | Collection[int] = False) -> Timeline:
    """Return what happens when a program runs.

    Args:
        program: Rank classes with their programs.
        record_spans: Whether the timeline gets the execution of every task, or the classes for which it does.

    Returns:
        The timeline.

    Raises:
        ProgramError: The program breaks a rule, or `record_spans` names a class that does not exist.
        DeadlockError: Some tasks can never begin.
    """
    # Imported here because it imports numba, which costs a third of a second.
    from simulator.engine.arrays import flatten, initial_state
    from simulator.engine.expand import expand_spans, logged_times
    from simulator.engine.kernel import load_simulate

    check_program(program)
    if isinstance(record_spans, bool):
        span_classes = list(range(len(program.classes))) if record_spans else []
    else:
        span_classes = sorted(set(record_spans))
        unknown = [number for number in span_classes if not 0 <= number < len(program.classes)]
        if unknown:
            raise ProgramError(f"record_spans names classes {unknown}, the program has {len(program.classes)}")
    flat = flatten(program, span_classes=span_classes)
    state = initial_state(program, flat)
    load_simulate()(flat.plan, state)
    _raise_if_blocked(program, flat, state)

    num_classes = len(program.classes)
    ends = state.streams[:, FREE].reshape(num_classes, len(program.streams))
    end_ps = ends.max(axis=1) if num_classes else np.zeros(0, dtype=np.int64)
    makespan_ps = int(end_ps.max(initial=0))
    _add_fixed_tasks(program, flat, state)
    _add_tails(flat, state, end_ps=end_ps, makespan_ps=makespan_ps)
    num_tasks = np.array([routine.num_tasks for routine in flat.routines], dtype=np.int64)
    times = logged_times(flat, state.log, initial=tuple(rank_class.initial for rank_class in program.classes))
    return Timeline(
        makespan_ps=makespan_ps,
        events=sum(int(calls @ num_tasks) for calls in flat.calls_of_variant),
        end_ps=end_ps,
        time_ps=state.time_ps,
        busy_ps=state.busy_ps,
        resource_bytes=_resource_bytes(program, flat),
        resource_busy_ps=state.resource_busy_ps,
        counter_peaks=tuple(times.peak(class_index) for class_index in range(num_classes)),
        counter_source=times,
        spans=expand_spans(flat, state.log, span_classes) if record_spans is not False else None,
    )


def _raise_if_blocked(program: Program, flat: FlatProgram, state: State) -> None:
    """Raise the diagnosis if a stream has not finished."""
    plan, num_streams = flat.plan, len(program.streams)
    blocked = []
    for stream in np.flatnonzero(state.streams[:, CURSOR] < plan.calls_begin[1:]).tolist():
        class_index, number = divmod(stream, num_streams)
        cursor, segment = state.streams[stream, CURSOR], state.streams[stream, SEGMENT]
        missing = None
        waits = range(plan.segments[segment, SEG_WAITS], plan.segments[segment, SEG_WAITS_END])
        for slot, wait in zip(flat.segments[segment].waits, waits, strict=True):
            offset, stride = plan.waits[wait]
            event = plan.event_begin[class_index] + offset + plan.call_index[cursor] * stride
            if missing is None and state.events[event] < 0:
                missing = slot
        blocked.append(
            BlockedStream(
                class_index=class_index,
                call=_call_of(program, class_index, number, int(cursor - plan.calls_begin[stream])),
                task=flat.segments[segment].tasks[0][0],
                missing_event=missing,
            )
        )
    if blocked:
        raise deadlock_error(program, blocked)


def _call_of(program: Program, class_index: int, stream: int, cursor: int) -> int:
    """Return the position, among all calls of the class, of the `cursor`-th that has tasks on a stream."""
    on_stream = [any(task.stream == stream for task in routine.tasks) for routine in program.routines]
    calls = program.classes[class_index].calls
    return int(np.flatnonzero(np.array(on_stream)[calls[:, 0]])[cursor])


def _add_fixed_tasks(program: Program, flat: FlatProgram, state: State) -> None:
    """Add the times of fixed tasks: constants of each routine, times the number of its calls."""
    for class_index, calls in enumerate(flat.calls_of_variant):
        resources = program.classes[class_index].resources
        for variant in np.flatnonzero(calls):
            routine, num_calls = flat.routines[variant], calls[variant]
            for category, time_ps in routine.compute_ps.items():
                state.time_ps[class_index, category] += time_ps * num_calls
            for category, time_ps in routine.busy_ps.items():
                state.busy_ps[class_index, category] += time_ps * num_calls
            for slot, time_ps in routine.resource_busy_ps.items():
                state.resource_busy_ps[resources[slot]] += time_ps * num_calls


def _resource_bytes(program: Program, flat: FlatProgram) -> IntArray:
    """Return the bytes moved over each resource."""
    total = np.zeros(len(program.resources), dtype=np.int64)
    for rank_class, calls in zip(program.classes, flat.calls_of_variant, strict=True):
        for variant in np.flatnonzero(calls):
            for slot, size in flat.routines[variant].resource_bytes.items():
                total[rank_class.resources[slot]] += size * calls[variant]
    return total


def _add_tails(flat: FlatProgram, state: State, *, end_ps: IntArray, makespan_ps: int) -> None:
    """Account the compute streams' time after their last task (`Timeline`, third point)."""
    plan = flat.plan
    for class_index, class_end_ps in enumerate(end_ps.tolist()):
        first = class_index * plan.num_streams
        streams = state.streams[first : first + plan.num_streams]
        gap_ps = class_end_ps - int(streams[0, FREE])
        exposed_ps = 0
        if gap_ps > 0:
            last = int(np.argmax(streams[:, FREE]))
            last_block = plan.call_block[plan.calls_begin[first + last + 1] - 1]
            category = plan.segments[plan.blocks[last_block + 1] - 1, SEG_CATEGORY]
            exposed_ps = min(gap_ps, class_end_ps - int(streams[last, BUSY_SINCE]))
            state.time_ps[class_index, category] += exposed_ps
        state.time_ps[class_index, 0] += makespan_ps - int(streams[0, FREE]) - exposed_ps
