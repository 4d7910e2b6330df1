"""Checks that a program makes sense before it is run; both engines call it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from simulator.engine.call_lists import CallList, call_lists
from simulator.engine.program import Program, RankClass, Task
from simulator.errors import SimulatorFault

MAX_CATEGORIES = 256
"""The compiled engine keeps a category in 8 bits beside a time."""


class ProgramError(SimulatorFault):
    """The program breaks a rule of `simulator.engine.program`; whoever built it is at fault."""


def check_program(program: Program) -> None:
    """Check indices, lengths and signs, that communicators are used in order, and that events are recorded once.

    What depends only on the calls of a class is checked once for each distinct list of calls.

    Args:
        program: Any program.

    Raises:
        ProgramError: At the first rule that is broken, with the place.
    """
    _require(len(program.streams) > 0, "a program needs at least one stream")
    _require(0 < len(program.categories) <= MAX_CATEGORIES, f"a program has 1 to {MAX_CATEGORIES} categories")
    for resource in program.resources:
        capacity = resource.bytes_per_s
        if not (capacity > 0 and math.isfinite(capacity)):
            raise ProgramError(f"resource `{resource.name}`: capacity {capacity} bytes/s")
    for communicator in program.communicators:
        if communicator.participants <= 0:
            raise ProgramError(f"communicator `{communicator.name}` has no participants")
    for routine in program.routines:
        for task in routine.tasks:
            _check_task(program, task, f"routine `{routine.name}`, task `{task.name}`")
    for rank_class in program.classes:
        _check_class(program, rank_class)
    lists = call_lists(program)
    for each in lists:
        _check_calls(program, each)
        _check_slots(program, each)
        _check_records(program, each)
    _check_communicators(program, lists)


def _require(condition: bool, problem: str) -> None:
    if not condition:
        raise ProgramError(problem)


def _place(rank_class: RankClass) -> str:
    return f"rank class `{rank_class.name}`"


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
    """Checks what is a class's own; called for every one of maybe a million, so texts are made only for an error."""
    if rank_class.count <= 0:
        raise ProgramError(f"{_place(rank_class)}: count is {rank_class.count}")
    if len(rank_class.initial) != len(program.counters):
        raise ProgramError(f"{_place(rank_class)}: `initial` needs one level for each counter")
    _check_numbers(rank_class, "resource", rank_class.resources, len(program.resources))
    if rank_class.sharers and (len(rank_class.sharers) != len(rank_class.resources) or min(rank_class.sharers) < 1):
        raise ProgramError(f"{_place(rank_class)}: `sharers` needs a number of at least 1 for each resource")
    _check_numbers(rank_class, "communicator", rank_class.communicators, len(program.communicators))
    if len(set(rank_class.communicators)) != len(rank_class.communicators):
        raise ProgramError(f"{_place(rank_class)}: a communicator is named twice")
    pace = rank_class.pace
    if pace is None:
        return
    if pace.shape != rank_class.calls.shape[:1]:
        raise ProgramError(
            f"{_place(rank_class)}: pace has shape {pace.shape}, but there are {len(rank_class.calls)} calls"
        )
    if pace.dtype != np.int32:
        raise ProgramError(f"{_place(rank_class)}: pace is {pace.dtype}, not int32")
    if len(pace) and pace.min() < 1:
        raise ProgramError(f"{_place(rank_class)}: pace of call {int(pace.argmin())} is {pace.min()}, less than 1")


def _check_numbers(rank_class: RankClass, what: str, numbers: Sequence[int], end: int) -> None:
    if numbers and (min(numbers) < 0 or max(numbers) >= end):
        wrong = next(number for number in numbers if not 0 <= number < end)
        raise ProgramError(f"{_place(rank_class)}: {what} {wrong} does not exist")


def _check_calls(program: Program, each: CallList) -> None:
    calls, place = each.calls, _place(program.classes[each.classes[0]])
    _require(calls.ndim == 2 and calls.shape[1] == 2, f"{place}: calls have shape {calls.shape}, not [num_calls, 2]")
    _require(np.issubdtype(calls.dtype, np.integer), f"{place}: calls are {calls.dtype}, not integers")
    if len(calls) == 0:
        return
    _require(calls.min() >= 0, f"{place}: a call is negative")
    _require(calls[:, 0].max() < len(program.routines), f"{place}: routine {calls[:, 0].max()} does not exist")
    _require(
        calls[:, 1].max() < program.num_indices, f"{place}: call index {calls[:, 1].max()} of {program.num_indices}"
    )


def _check_slots(program: Program, each: CallList) -> None:
    """Each class has the resource and communicator slots that its routines use."""
    classes = [program.classes[number] for number in each.classes.tolist()]
    fewest_resources = min(classes, key=lambda rank_class: len(rank_class.resources))
    fewest_communicators = min(classes, key=lambda rank_class: len(rank_class.communicators))
    for routine in (program.routines[number] for number in each.routines):
        for task in routine.tasks:
            uses = f"routine `{routine.name}`, task `{task.name}` uses a"
            slots = [demand.resource for demand in task.demands]
            _require(
                max(slots, default=-1) < len(fewest_resources.resources),
                f"{_place(fewest_resources)}: {uses} resource slot that the class lacks",
            )
            _require(
                task.communicator is None or task.communicator < len(fewest_communicators.communicators),
                f"{_place(fewest_communicators)}: {uses} communicator slot that the class lacks",
            )


def _check_records(program: Program, each: CallList) -> None:
    """Each event (slot, index) of a class is recorded at most once."""
    recorders: dict[int, list[int]] = {}
    for number in each.routines:
        for task in program.routines[number].tasks:
            if task.records is not None:
                recorders.setdefault(task.records, []).append(number)
    if not recorders:
        return
    routines, indices = each.calls.T.astype(np.int64)
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
        place = _place(program.classes[each.classes[0]])
        _require(once, f"{place}: event `{event.name}` is recorded twice")


def _check_communicators(program: Program, lists: Sequence[CallList]) -> None:
    """A class uses a communicator from one stream only, and no more classes use it than it has participants."""
    users = [0] * len(program.communicators)
    for each in lists:
        stream_of: dict[int, int] = {}
        for task in (task for number in each.routines for task in program.routines[number].tasks):
            if task.communicator is not None and stream_of.setdefault(task.communicator, task.stream) != task.stream:
                rank_class = program.classes[each.classes[0]]
                communicator = program.communicators[rank_class.communicators[task.communicator]]
                raise ProgramError(f"{_place(rank_class)} uses communicator `{communicator.name}` from two streams")
        for number in each.classes.tolist():
            communicators = program.classes[number].communicators
            for slot in stream_of:
                users[communicators[slot]] += 1
    for group, num_users in zip(program.communicators, users, strict=True):
        if num_users > group.participants:
            raise ProgramError(
                f"communicator `{group.name}` has {group.participants} participants, "
                f"but {num_users} rank classes use it"
            )
