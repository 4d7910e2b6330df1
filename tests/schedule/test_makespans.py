"""Makespans, bubbles and idle times: SimPy runs the orders and finds the worked values of equations.md section 5."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.schedule import PipelineSchedule, build_schedule, schedule_violations, time_schedule, walk
from tests.oracles import Record, each, records
from tests.schedule.built import CHUNKS, COMBINATORIC, profile_of, scheduled, schedules
from tests.schedule.simpy_pipeline import PipelineRun, simpy_makespan, simpy_run

STEP = re.compile(r"pipeline\.[a-z0-9-]+\.p\d+\.m\d+\.(eq|uneq|v\d+)$")
OTHERS = (
    *("order", "messages_total", "partial_release", "bubble", "bubble_fraction", "bubble_over_work"),
    *("comm", "comm_extra", "uneven", "dualpipe.gain", "dualpipe-v.gain"),
)
LONGEST = 1_000


def steps() -> Any:
    found = [record for record in records("pipeline") if STEP.match(record.id)]
    return pytest.mark.parametrize("record", [pytest.param(record, id=record.id) for record in found])


def run_of(record: Record, *, hop_s: float = 0.0) -> tuple[PipelineSchedule, PipelineRun]:
    """SimPy's run of a worked value, once it is the one of `time_schedule`."""
    inputs = record.inputs
    schedule, vpp = scheduled(inputs), inputs.get("vpp", 1)
    whole_of_rank = inputs.get("forward_s", 1)
    if isinstance(whole_of_rank, list):
        forward = backward_input = backward_weight = whole_of_rank
    else:
        forward = whole_of_rank / vpp
        backward_input = inputs.get("backward_input_s", 1) / vpp
        backward_weight = inputs.get("backward_weight_s", 1) / vpp
    pair = inputs["overlapped_pair_s"] / vpp if "overlapped_pair_s" in inputs else None
    hop_s = inputs.get("hop_s", hop_s)
    profile = profile_of(
        schedule, forward=forward, backward_input=backward_input, backward_weight=backward_weight, hop=hop_s
    )
    whole = (profile.backward_input + profile.backward_weight).tolist()
    weight = profile.backward_weight.tolist()
    run = simpy_run(schedule, profile.forward.tolist(), whole, hop_s, weight_s=weight, pair_s=pair)
    timing = time_schedule(schedule, profile, joined=pair)
    assert timing.makespan == near(run.makespan_s)
    assert timing.longest_span == near(max(run.span_s))
    assert timing.idle.tolist() == near(list(run.idle_s))
    return schedule, run


def near(expected: Any) -> Any:
    return pytest.approx(expected, rel=1e-9, abs=1e-9)


@steps()
def test_makespan_span_peak_and_sends(record: Record) -> None:
    schedule, run = run_of(record)
    expected = dict(record.expected)
    assert run.makespan_s == near(expected.pop("makespan_s"))
    assert max(run.span_s) == near(expected.pop("longest_rank_span_s"))
    assert list(schedule.in_flight_max()) == expected.pop("in_flight_max")
    sends = expected.pop("sends")
    assert list(schedule.messages_sent()) == sends
    assert list(run.sends) == sends
    peak_until_input = list(schedule.in_flight_peak(1.0))
    assert peak_until_input == expected.pop("in_flight_max_released_at_backward_input", peak_until_input)
    assert expected == {}


@each("pipeline", "pipeline.bubble.")
def test_bubble_is_makespan_or_longest_span_less_work(record: Record) -> None:
    inputs = record.inputs
    _, run = run_of(record)
    work_s = inputs["microbatches"] * sum(inputs[key] for key in ("forward_s", "backward_input_s", "backward_weight_s"))
    is_span = inputs["schedule"] in {"zb-h2", "zb-v"}
    assert (max(run.span_s) if is_span else run.makespan_s) - work_s == near(record.expected)


@each("pipeline", "pipeline.bubble_fraction.", "pipeline.bubble_over_work.")
def test_bubble_fractions(record: Record) -> None:
    # Half a million actions at the largest: counted in rounds of one forward or one backward, without SimPy.
    pp, vpp, microbatches = (record.inputs[key] for key in ("pp", "vpp", "microbatches"))
    name = "1f1b" if vpp == 1 else "interleaved-1f1b"
    makespan = max(ticks[-1] for ticks in walk(build_schedule(name, pp=pp, vpp=vpp, microbatches=microbatches)))
    work = 2 * microbatches * vpp
    over = makespan if "fraction" in record.id else work
    assert (makespan - work) / over == near(record.expected)


@each("pipeline", "pipeline.comm.")
def test_hops_lengthen_the_step(record: Record) -> None:
    _, run = run_of(record)
    assert run.makespan_s == near(record.expected)


@each("pipeline", "pipeline.comm_extra.")
def test_hops_added_to_the_makespan(record: Record) -> None:
    hop_s = 0.25
    (_, run), (_, without) = run_of(record, hop_s=hop_s), run_of(record)
    assert (run.makespan_s - without.makespan_s) / hop_s == near(record.expected)


@each("pipeline", "pipeline.uneven.", "pipeline.dualpipe.gain.", "pipeline.dualpipe-v.gain.")
def test_idle_time_of_unequal_stages_and_of_pairs_that_gain(record: Record) -> None:
    _, run = run_of(record)
    assert run.makespan_s == near(record.expected["makespan_s"])
    assert list(run.idle_s) == near(record.expected["idle_s"])


def test_every_worked_value_is_used() -> None:
    all_records = records("pipeline")
    used = tuple(f"pipeline.{name}." for name in OTHERS)
    assert len(all_records) == 362
    assert [record.id for record in all_records if not STEP.match(record.id) and not record.id.startswith(used)] == []


def sizes() -> Any:
    found = []
    for name in COMBINATORIC:
        for pp in (2, 4, 8):
            for microbatches in (pp, 2 * pp, 4 * pp):
                size = (name, pp, CHUNKS.get(name, 1), microbatches)
                if not schedule_violations(*size):
                    found.append(pytest.param(*size, id=f"{name}-p{pp}-m{microbatches}"))
    return pytest.mark.parametrize(("name", "pp", "vpp", "microbatches"), found)


@sizes()
@settings(max_examples=3, deadline=None, derandomize=True)
@given(data=st.data())
def test_simpy_runs_every_action_when_the_longest_path_says(
    name: str, pp: int, vpp: int, microbatches: int, data: st.DataObject
) -> None:
    schedule = build_schedule(name, pp=pp, vpp=vpp, microbatches=microbatches)
    times = st.lists(st.integers(0, LONGEST), min_size=schedule.num_stages, max_size=schedule.num_stages)
    forward, backward_input, backward_weight = data.draw(times), data.draw(times), data.draw(times)
    hop = data.draw(st.integers(0, LONGEST))
    pair = data.draw(st.none() | st.integers(0, 3 * LONGEST))
    whole = [first + second for first, second in zip(backward_input, backward_weight, strict=True)]
    profile = profile_of(
        schedule, forward=forward, backward_input=backward_input, backward_weight=backward_weight, hop=hop
    )
    timing = time_schedule(schedule, profile, joined=pair)
    run = simpy_run(schedule, forward, whole, hop, weight_s=backward_weight, pair_s=pair)
    assert tuple(tuple(begins.tolist()) for begins in timing.begins) == run.begins_s
    assert tuple(tuple(ends.tolist()) for ends in timing.ends) == run.ends_s
    assert timing.makespan == run.makespan_s
    assert tuple(timing.spans.tolist()) == run.span_s
    assert tuple(timing.idle.tolist()) == run.idle_s
    assert schedule.messages_sent() == run.sends


@settings(max_examples=50, deadline=None)
@given(
    forward_s=st.lists(st.integers(1, 9), min_size=1, max_size=6),
    backward_s=st.lists(st.integers(1, 9), min_size=6, max_size=6),
    microbatches=st.integers(1, 12),
)
def test_gpipe_with_unequal_stages_is_e5_6(forward_s: list[int], backward_s: list[int], microbatches: int) -> None:
    backward_s = backward_s[: len(forward_s)]
    schedule = build_schedule("gpipe", pp=len(forward_s), vpp=1, microbatches=microbatches)
    expected = sum(forward_s) + sum(backward_s) + (microbatches - 1) * (max(forward_s) + max(backward_s))
    assert simpy_makespan(schedule, forward_s, backward_s) == expected


def bubble(name: str, p: int, v: int, forward: int, back_in: int, back_weight: int) -> float | None:
    """The bubble of E5.1, of ranks that take these times; None outside the times for which it is exact."""
    f, i, w = forward, back_in, back_weight
    closed: dict[str, float | None] = {
        "gpipe": (p - 1) * (f + i + w),
        "1f1b": (p - 1) * (f + i + w),
        "interleaved-1f1b": (p - 1) * (f + i + w) / v,
        "zb-h1": (p - 1) * max(f, i, f + i - w),
        "zb-h2": (p - 1) * max(f + i - 2 * w, i - f, 0),
        "zb-v": (p - 1) * (i - w) if f == i >= w else None,
        "interleaved-zb": (p - 1) * (f + i - w) / v if w <= min(f, i) else None,
        "dualpipe": (p / 2 - 1) * (f + 2 * (i + w) - 3 * w) if f == i >= w else None,
        "dualpipe-v": (p - 1) * (f + 2 * (i + w) - 3 * w) / 2 if f == i >= w else None,
    }
    return closed.get(name)


@settings(max_examples=200, deadline=None)
@given(
    schedule=schedules(names=[name for name in COMBINATORIC if name != "looped-bfs"]),
    times=st.tuples(st.integers(1, 9), st.integers(1, 9), st.integers(1, 9)),
    is_equal=st.booleans(),
)
def test_bubbles_are_e5_1(schedule: PipelineSchedule, times: tuple[int, int, int], is_equal: bool) -> None:
    forward, back_in, back_weight = (times[0], times[0], min(times)) if is_equal else times
    expected = bubble(schedule.name, schedule.pp, schedule.vpp, forward, back_in, back_weight)
    full = 2 * schedule.pp - 1 if schedule.name in {"zb-h2", "zb-v"} else schedule.pp
    if expected is None or schedule.microbatches < (full if schedule.name not in {"gpipe", "1f1b"} else 1):
        return
    profile = profile_of(
        schedule,
        forward=forward / schedule.vpp,
        backward_input=back_in / schedule.vpp,
        backward_weight=back_weight / schedule.vpp,
    )
    timing = time_schedule(schedule, profile)
    longest = timing.longest_span if schedule.name in {"zb-h2", "zb-v"} else timing.makespan
    assert longest - schedule.microbatches * (forward + back_in + back_weight) == near(expected)
