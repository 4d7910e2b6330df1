"""Deadlock as a diagnosis: which rank class stands at which task, and whom it waits for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from simulator.engine.program import Program, RankClass, Task
from simulator.errors import SimulatorError

MAX_LINES = 10
MAX_NAMES = 4


class DeadlockError(SimulatorError):
    """No task can begin any more although some have not run; the text says who waits for whom."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockedStream:
    """A stream that has not finished its tasks."""

    class_index: int
    """Its class."""
    call: int
    """Position in `RankClass.calls` of the call it stands in."""
    task: int
    """Position in the routine of the task it cannot begin."""
    missing_event: int | None
    """First event slot of the task's waits that is not recorded; None if it stands in a meeting."""


def deadlock_error(program: Program, blocked: Sequence[BlockedStream]) -> DeadlockError:
    """Return the error that explains where each blocked class stands.

    One line for each class: of its blocked streams the one closest to the cause, that is one that stands in a meeting
    or waits for an event that nobody records; the others only wait for those.

    Args:
        program: The program that was run.
        blocked: All blocked streams in the order (class, stream).
    """
    best: dict[int, BlockedStream] = {}
    for stream in blocked:
        known = best.get(stream.class_index)
        if known is None or (_is_cause(program, stream) and not _is_cause(program, known)):
            best[stream.class_index] = stream
    by_cause = sorted(best.values(), key=lambda stream: (not _is_cause(program, stream), stream.class_index))
    lines = [f"deadlock: {len(best)} of {len(program.classes)} rank classes cannot go on"]
    lines += [f"  {_describe(program, stream, blocked)}" for stream in by_cause[:MAX_LINES]]
    if len(by_cause) > MAX_LINES:
        lines.append(f"  and {len(by_cause) - MAX_LINES} more rank classes, which wait for these")
    return DeadlockError("\n".join(lines))


def _is_cause(program: Program, stream: BlockedStream) -> bool:
    return stream.missing_event is None or not _is_ever_recorded(program, stream)


def _describe(program: Program, stream: BlockedStream, blocked: Sequence[BlockedStream]) -> str:
    rank_class, task, index = _locate(program, stream)
    routine = program.routines[int(rank_class.calls[stream.call, 0])]
    place = f"{rank_class.name}: {routine.name} {index}, task `{task.name}`, waits"
    if stream.missing_event is not None:
        event = program.events[stream.missing_event]
        which = f"event `{event.name}`" + ("" if event.shared_over_calls else f" {index}")
        return f"{place} for {which}" + ("" if _is_ever_recorded(program, stream) else ", which nothing records")
    communicator = _communicator(rank_class, task)
    come = {other.class_index for other in blocked if _stands_in(program, other, communicator)}
    unfinished = {other.class_index for other in blocked}
    absent = [
        other.name + ("" if position in unfinished else " (has finished)")
        for position, other in enumerate(program.classes)
        if communicator in other.communicators and position not in come
    ]
    names = ", ".join(absent[:MAX_NAMES]) + (f" and {len(absent) - MAX_NAMES} more" if len(absent) > MAX_NAMES else "")
    group = program.communicators[communicator]
    nobody = f"{group.participants} participants, of which only {len(come)} exist"
    return f"{place} in communicator `{group.name}` for {names or nobody}"


def _locate(program: Program, stream: BlockedStream) -> tuple[RankClass, Task, int]:
    rank_class = program.classes[stream.class_index]
    routine, index = (int(value) for value in rank_class.calls[stream.call])
    return rank_class, program.routines[routine].tasks[stream.task], index


def _communicator(rank_class: RankClass, task: Task) -> int:
    return -1 if task.communicator is None else rank_class.communicators[task.communicator]


def _stands_in(program: Program, stream: BlockedStream, communicator: int) -> bool:
    if stream.missing_event is not None:
        return False
    rank_class, task, _ = _locate(program, stream)
    return _communicator(rank_class, task) == communicator


def _is_ever_recorded(program: Program, stream: BlockedStream) -> bool:
    """Return whether some call of the stream's class records the event that it waits for."""
    slot = stream.missing_event
    rank_class, _, index = _locate(program, stream)
    recorders = [
        number
        for number, routine in enumerate(program.routines)
        if slot is not None and any(task.records == slot for task in routine.tasks)
    ]
    calls = rank_class.calls[np.isin(rank_class.calls[:, 0], recorders)]
    shared = slot is not None and program.events[slot].shared_over_calls
    return len(calls) > 0 if shared else bool(np.any(calls[:, 1] == index))
