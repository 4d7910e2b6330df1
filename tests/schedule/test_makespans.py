"""Makespans, bubbles and idle times: SimPy runs the orders and finds the worked values of equations.md section 5."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.schedule import build_schedule, walk
from tests.schedule.simpy_pipeline import simpy_makespan, simpy_run
from tests.schedule.test_orders import ORACLES, scheduled

STEP = re.compile(r"pipeline\.(gpipe|1f1b|interleaved-1f1b)\.p\d+\.m\d+\.(eq|uneq|v\d+)$")


def matching(pattern: str) -> list[Any]:
    return [pytest.param(record, id=record["id"]) for record in ORACLES if re.match(pattern, record["id"])]


def chunk_times(inputs: dict[str, Any]) -> tuple[float, float]:
    vpp = inputs.get("vpp", 1)
    return inputs["forward_s"] / vpp, (inputs["backward_input_s"] + inputs["backward_weight_s"]) / vpp


def near(expected: Any) -> Any:
    return pytest.approx(expected, rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("record", matching(STEP.pattern))
def test_makespan_span_peak_and_sends(record: dict[str, Any]) -> None:
    schedule = scheduled(record["inputs"])
    run = simpy_run(schedule, *chunk_times(record["inputs"]))
    expected = record["expected"]
    assert run.makespan_s == near(expected["makespan_s"])
    assert max(run.span_s) == near(expected["longest_rank_span_s"])
    assert list(schedule.in_flight_max()) == expected["in_flight_max"]
    assert list(schedule.messages_sent()) == list(run.sends) == expected["sends"]


@pytest.mark.parametrize("record", matching(r"pipeline\.bubble\."))
def test_bubble_is_makespan_less_work(record: dict[str, Any]) -> None:
    inputs = record["inputs"]
    forward_s, backward_s = chunk_times(inputs)
    makespan_s = simpy_makespan(scheduled(inputs), forward_s, backward_s)
    work_s = inputs["microbatches"] * inputs["vpp"] * (forward_s + backward_s)
    assert makespan_s - work_s == near(record["expected"])


@pytest.mark.parametrize("record", matching(r"pipeline\.bubble_(fraction|over_work)\."))
def test_bubble_fractions(record: dict[str, Any]) -> None:
    # Half a million actions at the largest: counted in rounds of one forward or one backward, without SimPy.
    pp, vpp, microbatches = (record["inputs"][key] for key in ("pp", "vpp", "microbatches"))
    name = "1f1b" if vpp == 1 else "interleaved-1f1b"
    makespan = max(ticks[-1] for ticks in walk(build_schedule(name, pp=pp, vpp=vpp, microbatches=microbatches)))
    work = 2 * microbatches * vpp
    over = makespan if "fraction" in record["id"] else work
    assert (makespan - work) / over == near(record["expected"])


@pytest.mark.parametrize("record", matching(r"pipeline\.comm\."))
def test_hops_lengthen_the_step(record: dict[str, Any]) -> None:
    inputs = record["inputs"]
    makespan_s = simpy_makespan(scheduled(inputs), *chunk_times(inputs), inputs["hop_s"])
    assert makespan_s == near(record["expected"])


@pytest.mark.parametrize("record", matching(r"pipeline\.comm_extra\."))
def test_hops_added_to_the_makespan(record: dict[str, Any]) -> None:
    schedule = scheduled(record["inputs"])
    hop_s = 0.25
    extra_s = simpy_makespan(schedule, 1.0, 2.0, hop_s) - simpy_makespan(schedule, 1.0, 2.0)
    assert extra_s / hop_s == near(record["expected"])


@pytest.mark.parametrize("record", matching(r"pipeline\.uneven\."))
def test_unequal_stages(record: dict[str, Any]) -> None:
    forward_s = record["inputs"]["forward_s"]
    run = simpy_run(scheduled(record["inputs"]), forward_s, [2 * seconds for seconds in forward_s])
    assert run.makespan_s == near(record["expected"]["makespan_s"])
    assert list(run.idle_s) == near(record["expected"]["idle_s"])


def test_every_copied_worked_value_is_used() -> None:
    used = r"pipeline\.(order|messages_total|bubble|bubble_fraction|bubble_over_work|comm|comm_extra|uneven)\."
    assert [
        record["id"] for record in ORACLES if not re.match(used, record["id"]) and not STEP.match(record["id"])
    ] == []


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
