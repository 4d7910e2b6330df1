"""Checks that a program makes sense before it is run; both engines call it."""

from __future__ import annotations

import math

import numpy as np

from simulator.engine.program import Program, RankClass, Routine, Task
from simulator.errors import SimulatorFault

MAX_CATEGORIES = 256
"""The compiled engine keeps a category in 8 bits beside a time."""


class ProgramError(SimulatorFault):
    """The program breaks a rule of `simulator.engine.program`; whoever built it is at fault."""


def check_program(program: Program) -> None:
    """Check indices, lengths and signs, that communicators are used in order, and that events are recorded once.

    Args:
        program: Any program.

    Raises:
        ProgramError: At the first rule that is broken, with the place.
    """
    _require(len(program.streams) > 0, "a program needs at least one stream")
    _require(0 < len(program.categories) <= MAX_CATEGORIES, f"a program has 1 to {MAX_CATEGORIES} categories")
    for resource in program.resources:
        capacity = resource.bytes_per_s
        _require(capacity > 0 and math.isfinite(capacity), f"resource `{resource.name}`: capacity {capacity} bytes/s")
    for communicator in program.communicators:
        _require(communicator.participants > 0, f"communicator `{communicator.name}` has no participants")
    for routine in program.routines:
        for task in routine.tasks:
            _check_task(program, task, f"routine `{routine.name}`, task `{task.name}`")
    for rank_class in program.classes:
        _check_class(program, rank_class)
        _check_records(program, rank_class)
    _check_communicators(program)


def _require(condition: bool, problem: str) -> None:
    if not condition:
        raise ProgramError(problem)


def _check_task(program: Program, task: Task, place: str) -> None:
    _require(0 <= task.stream < len(program.streams), f"{place}: stream {task.stream} does not exist")
    _require(0 <= task.category < len(program.categories), f"{place}: category {task.category} does not exist")
    _require(task.duration_ps >= 0, f"{place}: duration is {task.duration_ps} ps")
    _require(task.communicator is None or task.communicator >= 0, f"{place}: communicator slot {task.communicator}")
    for demand in task.demands:
        _require(demand.resource >= 0 and demand.bytes >= 0, f"{place}: {demand}")
    for event in (*task.waits, *(() if task.records is None else (task.records,))):
        _require(0 <= event < len(program.events), f"{place}: event slot {event} does not exist")
    for change in (*task.at_start, *task.at_end):
        _require(0 <= change.counter < len(program.counters), f"{place}: counter {change.counter} does not exist")


def _check_class(program: Program, rank_class: RankClass) -> None:
    place = f"rank class `{rank_class.name}`"
    calls = rank_class.calls
    _require(rank_class.count > 0, f"{place}: count is {rank_class.count}")
    _require(calls.ndim == 2 and calls.shape[1] == 2, f"{place}: calls have shape {calls.shape}, not [num_calls, 2]")
    _require(np.issubdtype(calls.dtype, np.integer), f"{place}: calls are {calls.dtype}, not integers")
    _require(len(rank_class.initial) == len(program.counters), f"{place}: `initial` needs one level for each counter")
    for resource in rank_class.resources:
        _require(0 <= resource < len(program.resources), f"{place}: resource {resource} does not exist")
    for communicator in rank_class.communicators:
        _require(0 <= communicator < len(program.communicators), f"{place}: communicator {communicator} does not exist")
    _require(
        len(set(rank_class.communicators)) == len(rank_class.communicators), f"{place}: a communicator is named twice"
    )
    if len(calls) == 0:
        return
    _require(calls.min() >= 0, f"{place}: a call is negative")
    _require(calls[:, 0].max() < len(program.routines), f"{place}: routine {calls[:, 0].max()} does not exist")
    _require(
        calls[:, 1].max() < program.num_indices, f"{place}: call index {calls[:, 1].max()} of {program.num_indices}"
    )
    for routine in _used_routines(program, rank_class):
        for task in routine.tasks:
            slots = [demand.resource for demand in task.demands]
            _require(
                max(slots, default=-1) < len(rank_class.resources),
                f"{place}: routine `{routine.name}`, task `{task.name}` uses a resource slot that the class lacks",
            )
            _require(
                task.communicator is None or task.communicator < len(rank_class.communicators),
                f"{place}: routine `{routine.name}`, task `{task.name}` uses a communicator slot that the class lacks",
            )


def _used_routines(program: Program, rank_class: RankClass) -> list[Routine]:
    return [program.routines[number] for number in np.flatnonzero(np.bincount(rank_class.calls[:, 0]))]


def _check_records(program: Program, rank_class: RankClass) -> None:
    """Each event (slot, index) of a class is recorded at most once."""
    recorders: dict[int, list[int]] = {}
    for number in np.flatnonzero(np.bincount(rank_class.calls[:, 0])):
        for task in program.routines[number].tasks:
            if task.records is not None:
                recorders.setdefault(task.records, []).append(int(number))
    if not recorders:
        return
    routines, indices = rank_class.calls.T.astype(np.int64)
    times_called = np.bincount(routines, minlength=len(program.routines))
    no_call_twice = bool(np.bincount(routines * program.num_indices + indices).max() <= 1)
    indices_of = {
        number: indices[routines == number] for number in {each for many in recorders.values() for each in many}
    }
    for slot, numbers in recorders.items():
        event = program.events[slot]
        if event.shared_over_calls:
            once = sum(int(times_called[number]) for number in numbers) <= 1
        elif no_call_twice and len(numbers) == 1:
            continue
        else:
            recorded = np.concatenate([indices_of[number] for number in numbers])
            once = bool(np.bincount(recorded, minlength=1).max() <= 1)
        _require(once, f"rank class `{rank_class.name}`: event `{event.name}` is recorded twice")


def _check_communicators(program: Program) -> None:
    """A class uses a communicator from one stream only, and no more classes use it than it has participants."""
    users = [0] * len(program.communicators)
    for rank_class in program.classes:
        stream_of: dict[int, int] = {}
        for routine in _used_routines(program, rank_class):
            for task in routine.tasks:
                if task.communicator is None:
                    continue
                communicator = rank_class.communicators[task.communicator]
                _require(
                    stream_of.setdefault(communicator, task.stream) == task.stream,
                    f"rank class `{rank_class.name}` uses communicator `{program.communicators[communicator].name}` "
                    "from two streams",
                )
        for used in stream_of:
            users[used] += 1
    for group, num_users in zip(program.communicators, users, strict=True):
        _require(
            num_users <= group.participants,
            f"communicator `{group.name}` has {group.participants} participants, but {num_users} rank classes use it",
        )
