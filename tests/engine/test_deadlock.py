"""Deadlocks are told in the user's words, the same by both engines."""

from __future__ import annotations

import pytest

from simulator.engine import DeadlockError, Task
from tests.engine.programs import Engine, both_engines, program_of


def task(name: str, *, stream: int = 0, **more: object) -> Task:
    return Task(name=name, stream=stream, category=1, duration_ps=1, **more)  # type: ignore[arg-type]


@both_engines
def test_an_event_that_nobody_records(engine: Engine) -> None:
    with pytest.raises(DeadlockError) as error:
        engine(program_of([task("work"), task("optimizer", waits=(2,))], [task("work")]))
    assert str(error.value) == (
        "deadlock: 1 of 2 rank classes cannot go on\n"
        "  rank 0: step 0, task `optimizer`, waits for event `event 2` 0, which nothing records"
    )


@both_engines
def test_meetings_in_opposite_order(engine: Engine) -> None:
    classes = (
        [task("send", communicator=0), task("receive", communicator=1)],
        [task("send", communicator=1), task("receive", communicator=0)],
    )
    with pytest.raises(DeadlockError) as error:
        engine(program_of(*classes, communicators=(2, 2)))
    assert str(error.value) == (
        "deadlock: 2 of 2 rank classes cannot go on\n"
        "  rank 0: step 0, task `send`, waits in communicator `group 0` for rank 1\n"
        "  rank 1: step 0, task `send`, waits in communicator `group 1` for rank 0"
    )


@both_engines
def test_events_in_a_circle(engine: Engine) -> None:
    tasks = [
        task("a", waits=(1,), records=0),
        task("b", stream=1, waits=(0,), records=1),
    ]
    with pytest.raises(DeadlockError) as error:
        engine(program_of(tasks, indices=2))
    assert str(error.value) == (
        "deadlock: 1 of 1 rank classes cannot go on\n  rank 0: step 0, task `a`, waits for event `event 1` 0"
    )


@both_engines
def test_the_cause_comes_first_and_long_lists_are_cut(engine: Engine) -> None:
    # Twelve ranks wait for the thirteenth, which waits for an event that it records only later.
    waiting = [task("work", waits=(0,)), task("gather", stream=1, communicator=0, records=0)]
    stuck = [task("work", waits=(1,)), task("gather", stream=0, communicator=0, records=1)]
    with pytest.raises(DeadlockError) as error:
        engine(program_of(*[waiting] * 12, stuck, communicators=(13,)))
    lines = str(error.value).splitlines()
    assert lines[1] == "  rank 0: step 0, task `gather`, waits in communicator `group 0` for rank 12"
    assert len(lines) == 12
    assert lines[-1] == "  and 3 more rank classes, which wait for these"


@both_engines
def test_a_class_that_has_finished_does_not_come_any_more(engine: Engine) -> None:
    classes = ([task("a", communicator=0), task("b", communicator=0)], [task("a", communicator=0)])
    with pytest.raises(DeadlockError) as error:
        engine(program_of(*classes, communicators=(2,)))
    assert str(error.value).splitlines()[1] == (
        "  rank 0: step 0, task `b`, waits in communicator `group 0` for rank 1 (has finished)"
    )


@both_engines
def test_a_communicator_with_too_few_users(engine: Engine) -> None:
    with pytest.raises(DeadlockError) as error:
        engine(program_of([task("a", communicator=0)], communicators=(3,)))
    assert str(error.value).splitlines()[1] == (
        "  rank 0: step 0, task `a`, waits in communicator `group 0` for 3 participants, of which only 1 exist"
    )
