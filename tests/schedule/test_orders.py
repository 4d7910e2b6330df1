"""Orders, peaks and messages of the built-in schedules against worked values and properties."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.schedule import ActionKind, PipelineSchedule, build_schedule, verify, walk
from simulator.schedule.interleaved import round_size
from tests.oracles import Record, each
from tests.schedule.built import COMBINATORIC, scheduled, schedules

WHOLE = ("gpipe", "1f1b", "interleaved-1f1b", "looped-bfs")
MANY_MICROBATCHES = 2048
MANY_RANKS = 512


@each("pipeline", "pipeline.order.")
def test_orders_are_those_of_the_literature(record: Record) -> None:
    schedule = scheduled(record.inputs)
    assert [schedule.order(rank) for rank in range(schedule.pp)] == record.expected


def test_one_rank_alternates_forward_and_backward() -> None:
    assert build_schedule("1f1b", pp=1, vpp=1, microbatches=2).order(0) == "F0.0 B0.0 F0.1 B0.1"
    assert build_schedule("gpipe", pp=1, vpp=1, microbatches=2).order(0) == "F0.0 F0.1 B0.0 B0.1"
    assert build_schedule("zb-h1", pp=1, vpp=1, microbatches=2).order(0) == "F0.0 I0.0 W0.0 F0.1 I0.1 W0.1"


@given(schedules())
def test_every_action_runs_once_on_the_rank_that_holds_its_stage(schedule: PipelineSchedule) -> None:
    seen = [
        (rank, action.stage, action.microbatch, "IW" if action.kind == "B" else str(action.kind))
        for rank in range(schedule.pp)
        for action in schedule.actions(rank)
    ]
    for rank in range(schedule.pp):
        cells = itertools.product(schedule.stages_of(rank), range(schedule.microbatches_per_direction))
        for stage, microbatch in cells:
            kinds = sorted(kind for where, *cell, kind in seen if (where, *cell) == (rank, stage, microbatch))
            assert "".join(kinds) in {"FIW"}
    assert len(seen) == schedule.num_actions


@settings(max_examples=300, deadline=None)
@given(schedules(max_pp=16))
def test_no_schedule_deadlocks(schedule: PipelineSchedule) -> None:
    # Building has proved it; the clock of a schedule is left out here, so that the order itself is walked.
    assert all(
        (np.diff(ticks)[order[:-1, 3] == 0] > 0).all()
        for ticks, order in zip(walk(schedule), schedule.ranks, strict=True)
    )


@given(schedules(names=("gpipe", "1f1b", "interleaved-1f1b")))
def test_whole_backwards_take_the_rounds_of_e5_1(schedule: PipelineSchedule) -> None:
    """With forward and backward of one round each: 2 m v rounds of work and a bubble of 2 (p - 1)."""
    rounds = max(ticks[-1] for ticks in walk(schedule))
    if schedule.microbatches >= schedule.pp or schedule.vpp == 1:
        assert rounds == 2 * schedule.microbatches * schedule.vpp + 2 * (schedule.pp - 1)


@pytest.mark.parametrize(("pp", "microbatches", "group"), [(4, 8, 4), (4, 10, 5), (3, 11, 4), (4, 3, 3), (8, 10, 10)])
def test_rounds_grow_until_none_is_smaller_than_the_pipeline(pp: int, microbatches: int, group: int) -> None:
    assert round_size(pp, microbatches) == group


@given(pp=st.integers(1, 40), microbatches=st.integers(1, 200))
def test_no_smaller_rounds_would_do(pp: int, microbatches: int) -> None:
    group = round_size(pp, microbatches)
    left_over = [microbatches % size for size in range(1, group + 1)]
    assert left_over[-1] == 0 or left_over[-1] >= pp
    assert not any(rest == 0 or rest >= pp for rest in left_over[pp - 1 : -1])


@given(schedules())
def test_the_peak_counts_what_a_rank_holds(schedule: PipelineSchedule) -> None:
    for share in (0.0, 0.25, 1.0):
        peaks = []
        for rank in range(schedule.pp):
            held, most, after = 0.0, 0.0, 0.0
            for action in schedule.actions(rank):
                freed = {"F": -1.0, "B": 1.0, "I": share, "W": 1.0 - share}[action.kind]
                held, after = held + max(-freed, 0), after + max(freed, 0)
                most = max(most, held)
                if not action.joined:  # a pair gives back only when both are over
                    held, after = held - after, 0.0
            peaks.append(most)
        assert schedule.in_flight_peak(share) == tuple(peaks)
    assert schedule.in_flight_max() == schedule.in_flight_peak(0.0)


def test_a_pair_holds_both_activations_whichever_comes_first() -> None:
    schedule = build_schedule("dualpipe-v", pp=1, vpp=2, microbatches=4)
    swapped = schedule.ranks[0].copy()
    (first,) = np.flatnonzero(swapped[:, 3])[:1]
    swapped[[first, first + 1], :3] = swapped[[first + 1, first], :3]
    assert verify(replace(schedule, ranks=(swapped,))).in_flight_max() == schedule.in_flight_max() == (3,)


def expected_peak(name: str, *, pp: int, rank: int, vpp: int, microbatches: int) -> tuple[int, int] | None:
    """Activations of a stage held until W and until I, by E3.11."""
    group = round_size(pp, microbatches)
    units = microbatches * vpp
    above = pp - rank
    peaks = {
        "gpipe": (microbatches, microbatches),
        "looped-bfs": (units, units),
        "1f1b": (min(above, microbatches),) * 2,
        "interleaved-1f1b": (min(2 * above - 1 + (vpp - 1) * group, units),) * 2,
        "zb-h1": (min(pp, microbatches), min(above, microbatches)),
        "zb-h2": (min(2 * pp - 1, microbatches), min(2 * above - 1, microbatches)),
        "interleaved-zb": (min(pp + (vpp - 1) * group, units), min(above + (vpp - 1) * group, units)),
        "dualpipe": (pp + 1,) * 2,
        "dualpipe-v": (2 * pp + 1,) * 2,
        "zb-v": (2 * pp,) * 2,
    }
    if name == "zb-v" and microbatches < 2 * pp:
        return None
    return peaks[name]


@settings(deadline=None)
@given(schedules())
def test_every_rank_holds_what_e3_11_says(schedule: PipelineSchedule) -> None:
    until_weight, until_input = schedule.in_flight_peak(0.0), schedule.in_flight_peak(1.0)
    for rank in range(schedule.pp):
        sizes = {"pp": schedule.pp, "vpp": schedule.vpp, "microbatches": schedule.microbatches}
        expected = expected_peak(schedule.name, rank=rank, **sizes)
        if expected is None:
            assert until_weight[rank] <= 2 * schedule.pp
        else:
            assert (until_weight[rank], until_input[rank]) == expected


@each("pipeline", "pipeline.partial_release.")
def test_activations_that_the_backward_of_inputs_frees_in_part(record: Record) -> None:
    peaks = scheduled(record.inputs).in_flight_peak(record.inputs["freed_at_backward_input"])
    assert list(peaks) == pytest.approx(record.expected, rel=record.tolerance["rel"])


@each("pipeline", "pipeline.messages_total.")
def test_messages_of_all_ranks(record: Record) -> None:
    pp, vpp, microbatches = (record.inputs[key] for key in ("pp", "vpp", "microbatches"))
    name = "1f1b" if vpp == 1 else "interleaved-1f1b"
    assert sum(build_schedule(name, pp=pp, vpp=vpp, microbatches=microbatches).messages_sent()) == record.expected


@given(schedules())
def test_messages_by_placement_are_e5_5(schedule: PipelineSchedule) -> None:
    pp, vpp, microbatches = schedule.pp, schedule.vpp, schedule.microbatches
    by_placement = {"dualpipe": pp - 1, "zb-v": 2 * pp - 2, "dualpipe-v": 2 * pp - 2}
    crossings = by_placement.get(schedule.name, pp * vpp - 1)
    assert sum(schedule.messages_sent()) == 2 * microbatches * crossings


@pytest.mark.parametrize(("name", "vpp", "passes"), [("1f1b", 1, 2), ("zb-h1", 1, 3), ("zb-v", 2, 6)])
def test_a_pipeline_of_512_ranks_and_millions_of_actions_is_built_and_proved(name: str, vpp: int, passes: int) -> None:
    schedule = build_schedule(name, pp=MANY_RANKS, vpp=vpp, microbatches=MANY_MICROBATCHES)
    assert schedule.num_actions == passes * MANY_RANKS * MANY_MICROBATCHES
    assert not schedule.ranks[0].flags.writeable


def test_whole_and_split_schedules_are_told_apart() -> None:
    for name in COMBINATORIC:
        schedule = build_schedule(
            name, pp=2, vpp=2 if "v" in name or name in WHOLE[2:] or "inter" in name else 1, microbatches=4
        )
        kinds = {action.kind for rank in range(2) for action in schedule.actions(rank)}
        assert (ActionKind.BACKWARD_WEIGHT in kinds) == (name not in WHOLE)
