"""How the pace of a call stretches its compute tasks, with worked numbers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.engine import CounterChange, Demand, Program, ProgramError, Task, counter_track, run
from simulator.engine.program import longest_ps
from simulator.engine.reference import run_reference
from tests.engine.programs import COMPUTE, HOST, NETWORK, TALK, WORK, Engine, both_engines, program_of, times
from tests.engine.random_programs import random_program


def work(duration_ps: int, **more: object) -> Task:
    return Task(name="work", stream=COMPUTE, category=WORK, duration_ps=duration_ps, **more)  # type: ignore[arg-type]


def paced(program: Program, *paces: list[int] | None) -> Program:
    """Return the program with a pace for each class."""
    return replace(
        program,
        classes=tuple(
            replace(rank_class, pace=None if pace is None else np.array(pace, dtype=np.int32))
            for rank_class, pace in zip(program.classes, paces, strict=True)
        ),
    )


@both_engines
@pytest.mark.parametrize(
    ("pace", "duration_ps"),
    # 10,300 ps are 10 units of 1,024 ps and 60 ps that are not stretched.
    [(1024, 10_300), (1025, 10_310), (2048, 20_540), (512, 5_180), (1, 70)],
)
def test_a_compute_task_takes_its_units_times_the_pace(engine: Engine, pace: int, duration_ps: int) -> None:
    timeline = engine(paced(program_of([work(10_300)]), [pace]))
    assert timeline.makespan_ps == duration_ps
    assert timeline.busy_ps[0, WORK] == duration_ps
    assert timeline.time_ps[0, WORK] == duration_ps


@both_engines
def test_each_call_has_its_own_pace_and_each_task_is_rounded_alone(engine: Engine) -> None:
    # Two tasks of 1,500 ps: one unit each, although together they have 2.93.
    timeline = engine(paced(program_of([work(1_500), work(1_500)], indices=2), [2048, 1024]))
    assert times(timeline) == [(0, 2_524), (2_524, 5_048), (5_048, 6_548), (6_548, 8_048)]


@both_engines
def test_transfers_and_meetings_keep_their_own_time(engine: Engine) -> None:
    # 1,000 bytes at 1e9 bytes/s take a microsecond. Demands of no bytes and lone meetings are no compute, either.
    tasks = [
        Task(name="send", stream=NETWORK, category=TALK, duration_ps=4096, demands=(Demand(resource=0, bytes=1000),)),
        Task(name="nothing", stream=HOST, category=TALK, duration_ps=4096, demands=(Demand(resource=0, bytes=0),)),
        Task(name="meet", stream=HOST, category=TALK, duration_ps=4096, communicator=0),
        Task(name="copy", stream=HOST, category=TALK, duration_ps=4096),
    ]
    timeline = engine(paced(program_of(tasks, links=(1e9,), communicators=(1,)), [3072]))
    assert times(timeline) == [(0, 1_004_096), (0, 4_096), (4_096, 8_192), (8_192, 20_480)]


@both_engines
def test_a_slow_class_holds_up_those_it_meets(engine: Engine) -> None:
    tasks = [work(2048), Task(name="gather", stream=COMPUTE, category=TALK, duration_ps=100, communicator=0)]
    timeline = engine(paced(program_of(tasks, tasks, communicators=(2,)), None, [1536]))
    assert timeline.end_ps.tolist() == [3_172, 3_172]
    assert timeline.time_ps[0].tolist() == [1_024, 2_048, 100, 0]
    assert timeline.time_ps[1].tolist() == [0, 3_072, 100, 0]


@both_engines
def test_counters_change_when_stretched_tasks_begin_and_end(engine: Engine) -> None:
    take, give = (CounterChange(counter=0, delta=1),), (CounterChange(counter=0, delta=-1),)
    timeline = engine(paced(program_of([work(1024), work(1024, at_start=take, at_end=give)]), [2048]))
    changed_ps, levels = counter_track(timeline, 0)
    assert changed_ps.tolist() == [0, 2_048, 4_096]
    assert levels[:, 0].tolist() == [0, 1, 0]


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_own_pace_is_no_pace(seed: int) -> None:
    program = random_program(seed, deadlocks=False, paced=False)
    even = [[1024] * len(rank_class.calls) for rank_class in program.classes]
    assert run(paced(program, *even)).time_ps.tolist() == run(program).time_ps.tolist()


def test_the_longest_time_counts_the_pace() -> None:
    program = program_of([work(2048), Task(name="wait", stream=NETWORK, category=TALK, duration_ps=1)], indices=2)
    assert longest_ps(program) == 4_098
    assert longest_ps(paced(program, [1024, 2048])) == 6_146


@pytest.mark.parametrize(
    ("pace", "problem"),
    [
        (np.array([1024], dtype=np.int32), "pace has shape (1,), but there are 2 calls"),
        (np.array([1024, 1024]), "pace is int64, not int32"),
        (np.array([1024, 0], dtype=np.int32), "pace of call 1 is 0, less than 1"),
    ],
)
def test_a_pace_that_makes_no_sense_is_refused(pace: np.ndarray, problem: str) -> None:
    program = program_of([work(1)], indices=2)
    wrong = replace(program, classes=(replace(program.classes[0], pace=pace),))
    for engine in (run, run_reference):
        with pytest.raises(ProgramError) as error:
            engine(wrong)
        assert str(error.value) == f"rank class `rank 0`: {problem}"
