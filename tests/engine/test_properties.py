"""What holds for every program: the two engines agree, and time, bytes and memory add up."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from simulator.engine import DeadlockError, Program, Timeline, compiled, counter_track, run, state
from simulator.engine.reference import Transfer, fair_rates, run_reference
from simulator.errors import SimulatorFault
from tests.engine.programs import assert_same, moves, program_of, run_with_spans, talk
from tests.engine.random_programs import random_program
from tests.engine.simpy_model import simpy_makespan_ps

seeds = st.integers(0, 2**32)


@settings(max_examples=400, deadline=None)
@given(seed=seeds)
def test_the_compiled_engine_equals_the_reference(seed: int) -> None:
    program = random_program(seed)
    try:
        expected = run_reference(program)
    except DeadlockError as deadlock:
        with pytest.raises(DeadlockError) as error:
            run(program)
        assert str(error.value) == str(deadlock)
    else:
        assert_same(run_with_spans(program), expected)
        assert_same(run(program), expected)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=seeds, steps=st.sampled_from([1, 3, 20]), room=st.sampled_from([1, 10, 30]))
def test_slices_and_room_for_events_change_nothing(
    seed: int, steps: int, room: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = random_program(seed, deadlocks=False)
    expected = finished(program)
    shares: list[float] = []
    with monkeypatch.context() as small:
        small.setattr(compiled, "STEPS_AT_ONCE", steps)
        small.setattr(state, "FIRST_ROOM", room)
        assert_same(run(program, record_spans=True, progress=shares.append), expected)
    assert shares == sorted(shares)
    assert shares[0] >= 0.0 and shares[-1] == 1.0


@settings(max_examples=100, deadline=None)
@given(seed=seeds)
def test_a_run_without_counters_differs_in_nothing_else(seed: int) -> None:
    program = random_program(seed, deadlocks=False)
    expected = finished(program)
    timeline = run(program, record_spans=True, record_counters=False)
    assert timeline.counter_peaks == ()
    with pytest.raises(SimulatorFault, match="were not recorded"):
        counter_track(timeline, 0)
    assert_same(
        replace(timeline, counter_peaks=expected.counter_peaks, counter_source=expected.counter_source), expected
    )


@settings(max_examples=100, deadline=None)
@given(seed=seeds)
def test_time_and_counters_add_up(seed: int) -> None:
    program = random_program(seed, deadlocks=False)
    timeline = finished(program)
    assert timeline.spans is not None
    assert (timeline.time_ps.sum(axis=1) == timeline.makespan_ps).all()
    assert (timeline.time_ps >= 0).all()
    durations = timeline.spans["end_ps"] - timeline.spans["begin_ps"]
    assert timeline.busy_ps.sum() == durations.sum()
    assert timeline.events == len(timeline.spans)
    assert (timeline.resource_busy_ps <= timeline.makespan_ps).all()
    for class_index, peak in enumerate(timeline.counter_peaks):
        times, levels = counter_track(timeline, class_index)
        totals = levels.sum(axis=1)
        assert peak.total == totals.max()
        assert peak.time_ps == times[totals.argmax()]
        assert peak.at_peak == tuple(levels[totals.argmax()])
        assert peak.final == tuple(levels[-1])
        assert peak.highest == tuple(levels.max(axis=0))


@settings(max_examples=100, deadline=None)
@given(seed=seeds)
def test_tasks_of_a_stream_do_not_overlap_and_the_makespan_is_between_its_bounds(seed: int) -> None:
    program = random_program(seed, deadlocks=False)
    timeline = finished(program)
    spans = timeline.spans
    assert spans is not None
    same_stream = (spans["class"][1:] == spans["class"][:-1]) & (spans["stream"][1:] == spans["stream"][:-1])
    assert (spans["begin_ps"][1:] >= spans["end_ps"][:-1])[same_stream].all()
    busiest = 0
    for class_index in range(len(program.classes)):
        for stream in range(len(program.streams)):
            mine = spans[(spans["class"] == class_index) & (spans["stream"] == stream)]
            busiest = max(busiest, int((mine["end_ps"] - mine["begin_ps"]).sum()))
    # Of the transfers on a full link, the fractions of their lone speeds add up to at least one: so nothing is slower
    # than one after another, but for the rounding of ends to picoseconds.
    assert busiest <= timeline.makespan_ps <= one_after_another_ps(program) + timeline.events


@settings(max_examples=300, deadline=None)
@given(seed=seeds)
def test_a_link_never_carries_more_than_its_capacity_and_each_flow_meets_a_full_link(seed: int) -> None:
    dice = np.random.default_rng(seed)
    capacity = dice.choice([1.0, 3.0, 10.0], size=4).tolist()
    transfers = [
        Transfer(
            bytes_on={int(link): int(dice.integers(1, 9)) for link in dice.choice(4, dice.integers(1, 4))},
            flow_bytes=int(dice.integers(1, 9)),
        )
        for _ in range(dice.integers(1, 9))
    ]
    rates = fair_rates(transfers, capacity)
    load = [0.0] * 4
    for transfer, rate in zip(transfers, rates, strict=True):
        for link, share in transfer.shares.items():
            load[link] += share * rate
    assert all(used <= speed * (1 + 1e-12) for used, speed in zip(load, capacity, strict=True))
    for transfer, rate in zip(transfers, rates, strict=True):
        # Max-min: on some full link no other flow is faster.
        assert any(
            load[link] >= capacity[link] * (1 - 1e-12)
            and all(
                rate >= other * (1 - 1e-12) for each, other in zip(transfers, rates, strict=True) if link in each.shares
            )
            for link in transfer.shares
        )


@settings(max_examples=100, deadline=None)
@given(seed=seeds)
def test_every_byte_is_moved_once_and_no_link_moves_more_than_its_capacity(seed: int) -> None:
    program = random_program(seed, deadlocks=False)
    timeline = finished(program)
    brought = [0] * len(program.resources)
    for rank_class in program.classes:
        sharers = rank_class.sharers or (1,) * len(rank_class.resources)
        for routine in rank_class.calls[:, 0].tolist():
            for demand in (demand for task in program.routines[routine].tasks for demand in task.demands):
                brought[rank_class.resources[demand.resource]] += sharers[demand.resource] * demand.bytes
    assert timeline.resource_bytes.tolist() == brought
    for number, resource in enumerate(program.resources):
        room = resource.bytes_per_s * int(timeline.resource_busy_ps[number]) / 1e12
        assert brought[number] <= room * (1 + 1e-9)


@settings(max_examples=40, deadline=None)
@given(seed=seeds)
def test_a_class_of_sharers_gets_what_as_many_classes_get(seed: int) -> None:
    """Ranks that share a link are one class of them, or a class each: the others' times are the same."""
    dice = np.random.default_rng(seed)
    sharers, others = int(dice.integers(2, 6)), int(dice.integers(1, 4))
    amounts = [int(size) for size in dice.integers(1, 100_000, size=1 + others)]
    starts = [int(start) for start in dice.integers(0, 20_000, size=1 + others)]
    tasks = [[talk(start, demands=moves(size, 0))] for size, start in zip(amounts, starts, strict=True)]
    apart = program_of(*[tasks[0]] * sharers, *tasks[1:], links=(1e9,))
    folded = program_of(*tasks, links=(1e9,))
    first = replace(folded.classes[0], sharers=(sharers,))
    folded = replace(folded, classes=(first, *folded.classes[1:]))
    expected, found = run_with_spans(apart), run_with_spans(folded)
    assert found.end_ps.tolist() == expected.end_ps.tolist()[sharers - 1 :]
    assert_same(run_reference(folded), found)


@settings(max_examples=60, deadline=None)
@given(seed=seeds, copies=st.integers(2, 3))
def test_copies_that_share_nothing_run_like_the_original(seed: int, copies: int) -> None:
    program = random_program(seed, deadlocks=False)
    alone = finished(program)
    together = run_with_spans(repeated(program, copies))
    assert together.makespan_ps == alone.makespan_ps
    assert together.events == copies * alone.events
    for name in ("end_ps", "time_ps", "busy_ps", "resource_bytes", "resource_busy_ps"):
        for part in np.split(getattr(together, name), copies):
            np.testing.assert_array_equal(part, getattr(alone, name))
    assert together.counter_peaks == alone.counter_peaks * copies


@settings(max_examples=60, deadline=None)
@given(seed=seeds)
def test_simpy_agrees_without_contention(seed: int) -> None:
    program = random_program(seed, contention=False, deadlocks=False)
    assert finished(program).makespan_ps == simpy_makespan_ps(program)


def test_the_same_program_gives_the_same_bytes() -> None:
    for seed in range(20):
        one, two = (finished(random_program(seed, deadlocks=False), skip=False) for _ in range(2))
        assert one.spans is not None and two.spans is not None
        assert one.spans.tobytes() == two.spans.tobytes()
        assert one.time_ps.tobytes() == two.time_ps.tobytes()


def finished(program: Program, *, skip: bool = True) -> Timeline:
    """Return the timeline; a program that deadlocks is no example for the property at hand."""
    try:
        return run_with_spans(program)
    except DeadlockError:
        if not skip:
            raise
        assume(False)
        raise


def one_after_another_ps(program: Program) -> int:
    """Return the time of all tasks if only one runs at a time."""
    total_ps = 0
    for rank_class in program.classes:
        pace = [1024] * len(rank_class.calls) if rank_class.pace is None else rank_class.pace.tolist()
        for routine, pace_of_call in zip(rank_class.calls[:, 0].tolist(), pace, strict=True):
            for task in program.routines[routine].tasks:
                bytes_on: defaultdict[int, int] = defaultdict(int)
                for demand in task.demands:
                    sharers = rank_class.sharers[demand.resource] if rank_class.sharers else 1
                    bytes_on[rank_class.resources[demand.resource]] += sharers * demand.bytes
                speeds = {link: program.resources[link].bytes_per_s for link in bytes_on}
                total_ps += task.duration_ps
                if task.communicator is None and not task.demands:
                    total_ps += task.duration_ps // 1024 * (pace_of_call - 1024)
                total_ps += math.ceil(max((size / speeds[link] for link, size in bytes_on.items()), default=0) * 1e12)
    return total_ps


def repeated(program: Program, copies: int) -> Program:
    """Return a program with copies of all classes, each with links and groups of its own."""
    return replace(
        program,
        resources=program.resources * copies,
        communicators=program.communicators * copies,
        classes=tuple(
            replace(
                rank_class,
                # The same array for every other copy, an equal one for the rest.
                calls=rank_class.calls if copy % 2 else rank_class.calls.copy(),
                resources=tuple(copy * len(program.resources) + link for link in rank_class.resources),
                communicators=tuple(copy * len(program.communicators) + group for group in rank_class.communicators),
            )
            for copy in range(copies)
            for rank_class in program.classes
        ),
    )
