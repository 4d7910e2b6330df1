"""Random programs: most of them run to the end, some deadlock, all obey the rules of `check_program`."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np

from simulator.engine import (
    Communicator,
    CounterChange,
    Demand,
    EventSlot,
    Program,
    RankClass,
    Resource,
    Routine,
    Task,
)

NUM_INDICES = 5
NUM_STREAMS = 3
NUM_CATEGORIES = 4


def random_program(seed: int, *, contention: bool = True, deadlocks: bool = True, paced: bool = True) -> Program:
    """Return a random program; the same for the same arguments.

    With `paced` about half of the classes get a pace of their own for each call; nothing else differs.

    Events are recorded by the first routines in the order of their slots, and tasks wait for slots recorded earlier
    in the same routine or by routines called earlier with the same index, so that waits agree with one order of all
    tasks; with `deadlocks` a few waits and calls break that.
    """
    dice = random.Random(seed)
    num_classes = dice.randint(1, 5)
    num_resources = dice.randint(1, 6)
    num_pairs = dice.randint(0, 3) if num_classes > 1 else 0
    resources = tuple(
        Resource(name=f"link {number}", bytes_per_s=dice.choice([1e9, 3e9, 7.7e9, 1e10, 12345.678e6]))
        for number in range(num_resources)
    )
    groups = [sorted(dice.sample(range(num_classes), dice.randint(2, min(3, num_classes)))) for _ in range(num_pairs)]
    groups += [[number] for number in range(num_classes) if dice.random() < 0.2]
    communicators = tuple(Communicator(name=f"group {n}", participants=len(group)) for n, group in enumerate(groups))

    routines: list[Routine] = []
    classes: list[RankClass] = []
    slots = [EventSlot(name=f"event {number}", shared_over_calls=number % 7 == 6) for number in range(14)]
    # A common order of calls, of which each class takes a part that has the meetings it is in.
    rounds = [(kind, index) for index in range(dice.randint(1, NUM_INDICES)) for kind in range(2)]
    shuffled = rounds[:]
    dice.shuffle(shuffled)
    order = shuffled if dice.random() < 0.5 else rounds
    meetings_of_kind = [[n for n in range(len(groups)) if dice.random() < 0.7] for _ in range(2)]
    stream_of_group = [dice.randrange(NUM_STREAMS) for _ in groups]
    shared_stock = list(range(num_resources))
    for number in range(num_classes):
        own = [n for n, group in enumerate(groups) if number in group]
        if contention:
            class_resources = tuple(dice.choices(shared_stock, k=3))
        else:
            class_resources = tuple(shared_stock[number::num_classes]) or ()
        mine = []
        recorded: list[int] = []
        for kind in range(2):
            if order is not rounds:
                recorded = []
            tasks: list[Task] = []
            free_slots = [slot for slot in range(14) if slot % 2 == kind and not slots[slot].shared_over_calls]
            meetings = [n for n in meetings_of_kind[kind] if n in own]
            if deadlocks and dice.random() < 0.05:
                dice.shuffle(meetings)
            plan: list[int | None] = [None] * dice.randint(0, 6)
            places = sorted(dice.randint(0, len(plan)) for _ in meetings)
            for shift, (place, meeting) in enumerate(zip(places, meetings, strict=True)):
                plan.insert(place + shift, meeting)
            for position, meeting in enumerate(plan):
                tasks.append(
                    _random_task(
                        dice,
                        name=f"task {position}",
                        stream=dice.randrange(NUM_STREAMS) if meeting is None else stream_of_group[meeting],
                        communicator=None if meeting is None else own.index(meeting),
                        can_wait=recorded if dice.random() > 0.02 or not deadlocks else [*recorded, 13],
                        records=free_slots.pop() if free_slots and dice.random() < 0.6 else None,
                        num_resource_slots=len(class_resources),
                        may_move=contention or (meeting is None),
                        stays_on=None if contention else 1,
                    )
                )
                if tasks[-1].records is not None:
                    recorded.append(tasks[-1].records)
            mine.append(len(routines))
            routines.append(Routine(name=f"routine {kind} of {number}", tasks=tuple(tasks)))
        calls = [(mine[kind], index) for kind, index in order]
        if dice.random() < 0.3:  # a routine that runs once and sets off what waits for a shared event
            calls.insert(0, (len(routines), 0))
            first = Task(name="first", stream=dice.randrange(NUM_STREAMS), category=1, duration_ps=5, records=6)
            last = Task(name="last", stream=dice.randrange(NUM_STREAMS), category=1, waits=(6,))
            routines.append(Routine(name="once", tasks=(first,)))
            routines.append(Routine(name="after", tasks=(last,)))
            calls.append((len(routines) - 1, 0))
        if deadlocks and dice.random() < 0.03:
            calls.pop()
        classes.append(
            RankClass(
                name=f"class {number}",
                count=dice.randint(1, 9),
                calls=np.array(calls, dtype=np.int32).reshape(len(calls), 2),
                resources=class_resources,
                sharers=tuple(dice.choice([1, 1, 2, 7]) for _ in class_resources) if dice.random() < 0.3 else (),
                communicators=tuple(own),
                initial=(dice.randint(0, 5), 0),
            )
        )
    if paced:
        classes = [_paced(dice, rank_class) for rank_class in classes]
    return Program(
        streams=("compute", "send", "copy"),
        categories=tuple(f"category {n}" for n in range(NUM_CATEGORIES)),
        counters=("parameters", "activations"),
        events=tuple(slots),
        num_indices=NUM_INDICES,
        routines=tuple(routines),
        classes=tuple(classes),
        resources=resources,
        communicators=communicators,
    )


def _paced(dice: random.Random, rank_class: RankClass) -> RankClass:
    if dice.random() < 0.5:
        return rank_class
    paces = [dice.choice([1, 1000, 1023, 1024, 1025, 1500, 5000]) for _ in rank_class.calls]
    return replace(rank_class, pace=np.array(paces, dtype=np.int32))


def _random_task(
    dice: random.Random,
    *,
    name: str,
    stream: int,
    communicator: int | None,
    can_wait: list[int],
    records: int | None,
    num_resource_slots: int,
    may_move: bool,
    stays_on: int | None,
) -> Task:
    demands: tuple[Demand, ...] = ()
    moves = may_move and num_resource_slots > 0 and (stays_on is None or stream == stays_on)
    if moves and dice.random() < 0.6:
        demands = tuple(
            Demand(resource=dice.randrange(num_resource_slots), bytes=dice.choice([0, 1, 10, 17, 20, 1000]))
            for _ in range(dice.randint(1, 3))
        )
    return Task(
        name=name,
        stream=stream,
        category=dice.randrange(NUM_CATEGORIES),
        duration_ps=dice.choice([0, 0, 1, 2, 1000, 3000, 5000, 12_345, 1_048_576]),
        demands=demands,
        communicator=communicator,
        waits=tuple(dice.sample(can_wait, min(len(can_wait), dice.choice([0, 1, 1, 2])))),
        records=records,
        at_start=_random_changes(dice, 1),
        at_end=_random_changes(dice, -1),
    )


def _random_changes(dice: random.Random, sign: int) -> tuple[CounterChange, ...]:
    if dice.random() < 0.5:
        return ()
    return tuple(
        CounterChange(counter=dice.randrange(2), delta=sign * dice.randint(-1, 6)) for _ in range(dice.randint(1, 2))
    )
