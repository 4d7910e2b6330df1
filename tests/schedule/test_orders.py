"""Orders, peaks and messages of the built-in schedules against worked values and properties."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from simulator.schedule import ActionKind, PipelineSchedule, build_schedule, walk

ORACLES: list[dict[str, Any]] = yaml.safe_load(
    (Path(__file__).parents[1] / "oracles" / "pipeline.yaml").read_text(encoding="utf-8")
)["records"]


def records(prefix: str) -> list[Any]:
    found = [record for record in ORACLES if record["id"].startswith(prefix)]
    return [pytest.param(record, id=record["id"]) for record in found]


def scheduled(inputs: dict[str, Any]) -> PipelineSchedule:
    return build_schedule(
        inputs["schedule"], pp=inputs["pp"], vpp=inputs.get("vpp", 1), microbatches=inputs["microbatches"]
    )


@st.composite
def schedules(draw: st.DrawFn) -> PipelineSchedule:
    name = draw(st.sampled_from(["gpipe", "1f1b", "interleaved-1f1b"]))
    if name == "interleaved-1f1b":
        pp, vpp = draw(st.integers(2, 7)), draw(st.integers(2, 4))
        return build_schedule(name, pp=pp, vpp=vpp, microbatches=pp * draw(st.integers(1, 4)))
    return build_schedule(name, pp=draw(st.integers(1, 9)), vpp=1, microbatches=draw(st.integers(1, 20)))


@pytest.mark.parametrize("record", records("pipeline.order."))
def test_orders_are_those_of_the_literature(record: dict[str, Any]) -> None:
    schedule = scheduled(record["inputs"])
    assert [schedule.order(rank) for rank in range(schedule.pp)] == record["expected"]


def test_one_rank_alternates_forward_and_backward() -> None:
    assert build_schedule("1f1b", pp=1, vpp=1, microbatches=2).order(0) == "F0.0 B0.0 F0.1 B0.1"
    assert build_schedule("gpipe", pp=1, vpp=1, microbatches=2).order(0) == "F0.0 F0.1 B0.0 B0.1"


@given(schedules())
def test_every_action_runs_once_on_the_rank_that_holds_its_stage(schedule: PipelineSchedule) -> None:
    seen = [
        (rank, action.kind, action.stage, action.microbatch)
        for rank in range(schedule.pp)
        for action in schedule.actions(rank)
    ]
    kinds = (ActionKind.FORWARD, ActionKind.BACKWARD)
    cells = itertools.product(kinds, range(schedule.num_stages), range(schedule.microbatches))
    assert sorted(seen) == sorted((schedule.stage_to_rank[stage], kind, stage, mb) for kind, stage, mb in cells)


@given(schedules())
def test_the_order_runs_when_all_ranks_advance_in_lockstep(schedule: PipelineSchedule) -> None:
    rounds = walk(schedule)
    assert all((np.diff(ticks) > 0).all() for ticks in rounds)
    # With forward and backward of one round each, the pipeline takes E5.1: 2 m v rounds and a bubble of 2 (p - 1).
    assert max(ticks[-1] for ticks in rounds) == 2 * schedule.microbatches * schedule.vpp + 2 * (schedule.pp - 1)


@given(schedules())
def test_in_flight_maximum_counts_what_a_rank_holds(schedule: PipelineSchedule) -> None:
    counted = []
    for rank in range(schedule.pp):
        held: set[tuple[int, int]] = set()
        most = 0
        for action in schedule.actions(rank):
            (held.add if action.kind is ActionKind.FORWARD else held.remove)((action.stage, action.microbatch))
            most = max(most, len(held))
        counted.append(most)
    assert schedule.in_flight_max() == tuple(counted)


@given(pp=st.integers(1, 40), microbatches=st.integers(1, 80))
def test_1f1b_keeps_at_most_p_minus_stage_microbatches(pp: int, microbatches: int) -> None:
    schedule = build_schedule("1f1b", pp=pp, vpp=1, microbatches=microbatches)
    assert schedule.in_flight_max() == tuple(min(pp - rank, microbatches) for rank in range(pp))


@given(pp=st.integers(2, 12), vpp=st.integers(2, 5), groups=st.integers(1, 5))
def test_interleaving_keeps_the_chunks_of_e3_11(pp: int, vpp: int, groups: int) -> None:
    microbatches = pp * groups
    schedule = build_schedule("interleaved-1f1b", pp=pp, vpp=vpp, microbatches=microbatches)
    expected = [min(2 * (pp - rank - 1) + (vpp - 1) * pp + 1, microbatches * vpp) for rank in range(pp)]
    assert schedule.in_flight_max() == tuple(expected)


@pytest.mark.parametrize("record", records("pipeline.messages_total."))
def test_messages_of_all_ranks(record: dict[str, Any]) -> None:
    pp, vpp, microbatches = (record["inputs"][key] for key in ("pp", "vpp", "microbatches"))
    name = "1f1b" if vpp == 1 else "interleaved-1f1b"
    assert sum(build_schedule(name, pp=pp, vpp=vpp, microbatches=microbatches).messages_sent()) == record["expected"]


def test_a_pipeline_of_512_ranks_and_two_million_actions_is_built_and_proved() -> None:
    schedule = build_schedule("1f1b", pp=512, vpp=1, microbatches=2048)
    assert schedule.num_actions == 2 * 512 * 2048
    assert schedule.in_flight_max()[:2] == (512, 511)
    assert not schedule.ranks[0].flags.writeable
