"""Deadlocks are told in the user's words, the same by both engines."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import pytest

from simulator.engine import Communicator, DeadlockError, Program, Routine, Task, run
from tests.engine.programs import Engine, both_engines, program_of


def task(name: str, *, stream: int = 0, **more: object) -> Task:
    return Task(name=name, stream=stream, category=1, duration_ps=1, **more)  # type: ignore[arg-type]


def told(engine: Engine, program: Program) -> list[str]:
    with pytest.raises(DeadlockError) as error:
        engine(program)
    return str(error.value).splitlines()


@both_engines
def test_an_event_that_nobody_records(engine: Engine) -> None:
    assert told(engine, program_of([task("work"), task("optimizer", waits=(2,))], [task("work")])) == [
        "deadlock: 1 of 2 rank classes cannot go on",
        "  rank 0: step 0, task `optimizer`, waits for event `event 2` 0, which nothing records",
    ]


@both_engines
def test_meetings_in_opposite_order_are_a_circle(engine: Engine) -> None:
    classes = (
        [task("send", communicator=0), task("receive", communicator=1)],
        [task("send", communicator=1), task("receive", communicator=0)],
    )
    assert told(engine, program_of(*classes, communicators=(2, 2))) == [
        "deadlock: 2 of 2 rank classes cannot go on, for they wait for each other in a circle",
        "  rank 0: step 0, task `send`, waits in communicator `group 0` for rank 1",
        "  rank 1: step 0, task `send`, waits in communicator `group 1` for rank 0",
    ]


@both_engines
def test_a_circle_of_events_names_the_tasks_that_should_record_them(engine: Engine) -> None:
    tasks = [
        task("a", waits=(1,), records=0),
        task("b", stream=1, waits=(0,), records=1),
    ]
    assert told(engine, program_of(tasks, indices=2)) == [
        "deadlock: 1 of 1 rank classes cannot go on, for they wait for each other in a circle",
        "  rank 0: step 0, task `a`, waits for event `event 1` 0 of task `b` of step 0",
        "  rank 0: step 0, task `b`, waits for event `event 0` 0 of task `a` of step 0",
    ]


@both_engines
def test_a_task_that_waits_for_what_its_own_stream_does_later(engine: Engine) -> None:
    # Twelve ranks wait for the thirteenth, which waits for an event that it records only later.
    waiting = [task("work", waits=(0,)), task("gather", stream=1, communicator=0, records=0)]
    stuck = [task("work", waits=(1,)), task("gather", stream=0, communicator=0, records=1)]
    assert told(engine, program_of(*[waiting] * 12, stuck, communicators=(13,))) == [
        "deadlock: 13 of 13 rank classes cannot go on",
        "  rank 12: step 0, task `work`, waits for event `event 1` 0, "
        "which the same stream records only later: step 0, task `gather`",
        "  and 12 more rank classes wait",
    ]


@both_engines
def test_the_shortest_circle_is_told(engine: Engine) -> None:
    # Ranks 0, 1 and 2 wait for each other round about; ranks 3 and 4 do, too, and are fewer.
    classes = (
        [task("one", communicator=0), task("two", communicator=2)],
        [task("two", communicator=1), task("one", communicator=0)],
        [task("two", communicator=2), task("one", communicator=1)],
        [task("one", communicator=3), task("two", communicator=4)],
        [task("one", communicator=4), task("two", communicator=3)],
    )
    assert told(engine, program_of(*classes, communicators=(2,) * 5)) == [
        "deadlock: 5 of 5 rank classes cannot go on, for they wait for each other in a circle",
        "  rank 3: step 0, task `one`, waits in communicator `group 3` for rank 4",
        "  rank 4: step 0, task `one`, waits in communicator `group 4` for rank 3",
        "  and 3 more rank classes wait",
    ]


@both_engines
def test_a_long_circle_is_cut(engine: Engine) -> None:
    # Each rank first sends to the next one, and receives only then.
    ranks = 15
    classes = [
        [task("send", communicator=rank), task("receive", communicator=(rank - 1) % ranks)] for rank in range(ranks)
    ]
    lines = told(engine, program_of(*classes, communicators=(2,) * ranks))
    assert lines[1:3] == [
        "  rank 0: step 0, task `send`, waits in communicator `group 0` for rank 1",
        "  rank 1: step 0, task `send`, waits in communicator `group 1` for rank 2",
    ]
    assert lines[11:] == ["  and so on: 5 more, back to rank 0"]


@both_engines
def test_causes_come_before_those_who_wait_for_them_and_long_lists_are_cut(engine: Engine) -> None:
    classes = [[task("gather", communicator=0)]] * 3 + [[task("work", waits=(1,))]] * 12
    lines = told(engine, program_of(*classes, communicators=(3,)))
    assert lines == ["deadlock: 12 of 15 rank classes cannot go on"] + [
        f"  rank {rank}: step 0, task `work`, waits for event `event 1` 0, which nothing records"
        for rank in range(3, 13)
    ] + ["  and 2 more rank classes wait"]


@both_engines
def test_a_class_that_has_finished_does_not_come_any_more(engine: Engine) -> None:
    classes = ([task("a", communicator=0), task("b", communicator=0)], [task("a", communicator=0)])
    assert told(engine, program_of(*classes, communicators=(2,)))[1:] == [
        "  rank 0: step 0, task `b`, waits in communicator `group 0` for rank 1 (has finished)"
    ]


@both_engines
def test_a_communicator_with_too_few_users(engine: Engine) -> None:
    assert told(engine, program_of([task("a", communicator=0)], communicators=(3,)))[1:] == [
        "  rank 0: step 0, task `a`, waits in communicator `group 0` for 2 of its 3 participants, which do not exist"
    ]


def test_thousands_of_classes_get_a_short_diagnosis_soon() -> None:
    # All but one stand in a meeting; the one waits for a message that the first would send after it.
    waiting = [task("gather", communicator=0), task("send", communicator=1)]
    late = [task("receive", communicator=1), task("gather", communicator=0)]
    others = [task("gather", communicator=0)]
    small = program_of(waiting, late, others, communicators=(4000, 2))
    program = replace(
        small,
        routines=tuple(Routine(name=each.name, tasks=each.tasks) for each in small.routines),
        classes=(*small.classes[:2], *[replace(small.classes[2], name=f"rank {rank}") for rank in range(2, 4000)]),
        communicators=(Communicator(name="all", participants=4000), small.communicators[1]),
    )
    begin_s = time.process_time()
    lines = told(run, program)
    assert time.process_time() - begin_s < 5
    assert lines == [
        "deadlock: 4000 of 4000 rank classes cannot go on, for they wait for each other in a circle",
        "  rank 0: step 0, task `gather`, waits in communicator `all` for rank 1",
        "  rank 1: step 0, task `receive`, waits in communicator `group 1` for rank 0",
        "  and 3998 more rank classes wait",
    ]


def test_calls_are_named_by_routine_and_index() -> None:
    program = program_of([task("work", waits=(2,))], indices=3)
    first = replace(program.classes[0], calls=np.array([(0, 2), (0, 1)], dtype=np.int32))
    assert told(run, replace(program, classes=(first,)))[1] == (
        "  rank 0: step 2, task `work`, waits for event `event 2` 2, which nothing records"
    )
