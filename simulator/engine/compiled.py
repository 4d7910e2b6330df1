"""The compiled engine: the same numbers as the reference engine, some thousand times sooner."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from simulator.engine.check import ProgramError, check_program
from simulator.engine.deadlock import BlockedStream, deadlock_error
from simulator.engine.program import Program
from simulator.engine.tables import (
    CALL_INDEX,
    CALL_POSITION,
    CURSOR,
    DONE,
    FREE,
    ROOM_NEEDED,
    ROW,
    SEG_WAITS,
    SEG_WAITS_END,
    SEGMENT,
    WAIT_OFFSET,
    WAIT_STRIDE,
    State,
)
from simulator.engine.timeline import Timeline

if TYPE_CHECKING:
    from simulator.engine.arrays import FlatProgram

IntArray = npt.NDArray[np.int64]
STEPS_AT_ONCE = 1 << 19
"""Segments that run, some hundredths of a second long, before Python sees to an interrupt and to who wants to know."""


def run_compiled(
    program: Program,
    *,
    record_spans: bool | Collection[int] = False,
    record_counters: bool = True,
    progress: Callable[[float], None] | None = None,
) -> Timeline:
    """Return what happens when a program runs.

    Args:
        program: Rank classes with their programs.
        record_spans: Whether the timeline gets the execution of every task, or the classes for which it does.
        record_counters: Whether the timeline gets the counters of every class; without, a run of many classes needs
            less memory and time.
        progress: Told, now and then and at the end, the share of the work that is done: from 0 to 1, never less than
            before.

    Returns:
        The timeline.

    Raises:
        ProgramError: The program breaks a rule, or `record_spans` names a class that does not exist.
        DeadlockError: Some tasks can never begin.
        KeyboardInterrupt: The user does not want to wait any longer.
    """
    # Imported here because it imports numba, which costs a third of a second.
    from simulator.engine.arrays import flatten
    from simulator.engine.expand import expand_spans, logged_times
    from simulator.engine.state import initial_state
    from simulator.engine.totals import add_fixed_tasks, add_tails, resource_bytes

    check_program(program)
    if isinstance(record_spans, bool):
        span_classes = list(range(len(program.classes))) if record_spans else []
    else:
        span_classes = sorted(set(record_spans))
        unknown = [number for number in span_classes if not 0 <= number < len(program.classes)]
        if unknown:
            raise ProgramError(f"record_spans names classes {unknown}, the program has {len(program.classes)}")
    flat = flatten(program, span_classes=span_classes, record_counters=record_counters)
    state = _run(flat, initial_state(program, flat), progress)
    _raise_if_blocked(program, flat, state)

    num_classes = len(program.classes)
    ends = state.streams[:, FREE].reshape(num_classes, len(program.streams))
    end_ps = ends.max(axis=1) if num_classes else np.zeros(0, dtype=np.int64)
    makespan_ps = int(end_ps.max(initial=0))
    add_fixed_tasks(flat, state)
    add_tails(flat, state, end_ps=end_ps, makespan_ps=makespan_ps)
    num_tasks = np.array([routine.num_tasks for routine in flat.routines], dtype=np.int64)
    times = None
    if record_counters:
        times = logged_times(flat, state.log, initial=tuple(rank_class.initial for rank_class in program.classes))
    return Timeline(
        makespan_ps=makespan_ps,
        events=sum(
            int(calls @ num_tasks) * len(kind.classes)
            for calls, kind in zip(flat.calls_of_variant, flat.kinds, strict=True)
        ),
        end_ps=end_ps,
        time_ps=state.time_ps,
        busy_ps=state.busy_ps,
        resource_bytes=resource_bytes(program, flat),
        resource_busy_ps=state.resource_busy_ps,
        counter_peaks=() if times is None else tuple(times.peak(class_index) for class_index in range(num_classes)),
        counter_source=times,
        spans=expand_spans(flat, state.log, span_classes) if record_spans is not False else None,
    )


def _run(flat: FlatProgram, state: State, progress: Callable[[float], None] | None) -> State:
    """Return the state at the end of the run."""
    from simulator.engine.kernel import load_simulate
    from simulator.engine.state import with_more_room

    simulate = load_simulate()
    while not simulate(flat.plan, state, STEPS_AT_ONCE):
        if state.counts[ROOM_NEEDED] > 0:
            state = with_more_room(flat, state)
        elif progress is not None:
            progress(int(state.counts[DONE]) / flat.num_segments)
    if progress is not None:
        progress(1.0)
    return state


def _raise_if_blocked(program: Program, flat: FlatProgram, state: State) -> None:
    """Raise the diagnosis if a stream has not finished."""
    plan, num_streams = flat.plan, len(program.streams)
    blocked = []
    for stream in np.flatnonzero(state.streams[:, CURSOR] < plan.calls_end).tolist():
        call, segment = plan.calls[state.streams[stream, CURSOR]], state.streams[stream, SEGMENT]
        waits = range(plan.segments[segment, SEG_WAITS], plan.segments[segment, SEG_WAITS_END])
        missing = None
        for slot, wait in zip(flat.segments[segment].waits, waits, strict=True):
            offset, stride = plan.waits[wait, WAIT_OFFSET], plan.waits[wait, WAIT_STRIDE]
            event = state.streams[stream, ROW] + offset
            if stride >= 0:
                event = plan.event_begin[stream // num_streams] + offset + call[CALL_INDEX] * stride
            if missing is None and state.events[event] < 0:
                missing = slot
        blocked.append(
            BlockedStream(
                class_index=stream // num_streams,
                call=int(call[CALL_POSITION]),
                task=flat.segments[segment].tasks[0][0],
                missing_event=missing,
            )
        )
    if blocked:
        raise deadlock_error(program, blocked)
