"""Rules of the schedules: each fails once with its exact text and passes once; and broken orders are found."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from simulator.errors import ScenarioError, SimulatorFault
from simulator.schedule import (
    SCHEDULES,
    ActionKind,
    PipelineSchedule,
    build_schedule,
    schedule_is_valid,
    schedule_violations,
    verify,
)

BROKEN = [
    (("gpipe", 4, 2, 8), "layout.vpp", "2 model chunks per pipeline rank, but schedule gpipe runs one"),
    (("1f1b", 4, 2, 8), "layout.vpp", "2 model chunks per pipeline rank, but schedule 1f1b runs one"),
    (("1f1b", 1, 2, 8), "layout.vpp", "2 model chunks per pipeline rank, but schedule 1f1b runs one"),
    (("interleaved-1f1b", 1, 2, 8), "schedule", "interleaved-1f1b needs layout.pp of 2 or more, which is 1"),
    (
        ("interleaved-1f1b", 4, 1, 8),
        "layout.vpp",
        "1 model chunk per pipeline rank, but schedule interleaved-1f1b interleaves several",
    ),
    (("zb-v", 4, 1, 8), "layout.vpp", "1 model chunk per pipeline rank, but schedule zb-v runs two"),
    (("dualpipe-v", 4, 3, 8), "layout.vpp", "3 model chunks per pipeline rank, but schedule dualpipe-v runs two"),
    (("dualpipe", 3, 1, 8), "layout.pp", "3 is odd, but schedule dualpipe needs an even number of pipeline ranks"),
    (
        ("dualpipe", 4, 1, 9),
        "training.global_batch",
        "gives 9 microbatches a replica, but schedule dualpipe needs an even number",
    ),
    (
        ("dualpipe-v", 4, 2, 7),
        "training.global_batch",
        "gives 7 microbatches a replica, but schedule dualpipe-v needs at least 8, twice layout.pp",
    ),
    (("1f1b", 0, 1, 8), "layout.pp", "0 is not a number of pipeline stages"),
    (("1f1b", 4, 0, 8), "layout.vpp", "0 is not a number of model chunks"),
    (("1f1b", 4, 1, 0), "training.global_batch", "gives 0 microbatches a replica"),
]


@pytest.mark.parametrize(("case", "path", "problem"), BROKEN)
def test_a_broken_rule_names_its_key(case: tuple[str, int, int, int], path: str, problem: str) -> None:
    (violation,) = schedule_violations(*case)
    assert (violation.path, violation.problem) == (path, problem)
    assert violation.why
    assert violation.mend
    name, pp, vpp, microbatches = case
    with pytest.raises(ScenarioError):
        build_schedule(name, pp=pp, vpp=vpp, microbatches=microbatches)


@pytest.mark.parametrize(
    "case",
    [("gpipe", 4, 1, 3), ("1f1b", 1, 1, 1), ("interleaved-1f1b", 4, 2, 10), ("dualpipe", 4, 1, 8), ("zb-v", 4, 2, 1)],
)
def test_a_valid_layout_breaks_no_rule(case: tuple[str, int, int, int]) -> None:
    assert schedule_violations(*case) == ()


def test_an_unknown_name_gets_the_nearest_valid_one() -> None:
    (violation,) = schedule_violations("interleved-1f1b", 4, 2, 8)
    assert violation.problem == "unknown schedule 'interleved-1f1b'"
    assert violation.mend == "did you mean interleaved-1f1b?"


def test_mends_name_values_that_work() -> None:
    (violation,) = schedule_violations("dualpipe-v", 4, 2, 7)
    assert "8 microbatches or more" in violation.mend
    assert schedule_violations("dualpipe-v", 4, 2, 8) == ()
    (violation,) = schedule_violations("1f1b", 4, 2, 8)
    assert violation.mend == "set schedule to interleaved-1f1b, or layout.vpp to 1"


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_mask_over_candidates_agrees_with_the_messages(name: str) -> None:
    pp, vpp, microbatches = np.meshgrid(np.arange(6), np.arange(4), np.arange(13), indexing="ij")
    mask = schedule_is_valid(name, pp, vpp, microbatches)
    for cell in np.ndindex(mask.shape):
        sizes = int(pp[cell]), int(vpp[cell]), int(microbatches[cell])
        assert bool(mask[cell]) == (schedule_violations(name, *sizes) == ())


def hand_made(*orders: str) -> PipelineSchedule:
    """A schedule from orders as text, one stage a rank."""
    codes = {kind.value: kind.code for kind in ActionKind}
    parsed = [[(codes[a[0]], *map(int, a[1:].split(".")), 0) for a in order.split()] for order in orders]
    microbatches = 1 + max(action[2] for order in parsed for action in order)
    return PipelineSchedule(
        name="hand-made",
        pp=len(orders),
        vpp=1,
        microbatches=microbatches,
        stage_to_rank=tuple(range(len(orders))),
        ranks=tuple(np.array(order, dtype=np.int32) for order in parsed),
    )


def test_an_order_with_split_backwards_is_accepted() -> None:
    schedule = verify(hand_made("F0.0 F0.1 I0.0 W0.0 I0.1 W0.1", "F1.0 I1.0 F1.1 I1.1 W1.0 W1.1"))
    assert schedule.in_flight_max() == (2, 2)
    assert schedule.messages_sent() == (2, 2)


@pytest.mark.parametrize(
    ("orders", "message"),
    [
        (("F0.0 B0.0", "F1.0 B1.0 B1.0"), "stage 1, microbatch 0 does not have exactly one"),
        (("F0.0 B0.0", "F1.0 I1.0"), "stage 1, microbatch 0 does not have exactly one"),
        (("F0.0 B0.0", "F1.0 B0.0"), "rank 1 runs B0.0"),
        (("F0.0 B0.0", "F1.0 B2.0"), "B2.0 names no stage"),
        (("B0.0 F0.0", "F1.0 B1.0"), "deadlock: rank 0 at B0.0 waits for F0.0 later in its own order$"),
        (
            ("F0.0 B0.0 F0.1 B0.1", "F1.0 F1.1 B1.0 B1.1"),
            "deadlock: rank 0 at B0.0 waits for B1.0 of rank 1, rank 1 at F1.1 waits for F0.1 of rank 0$",
        ),
        (("F0.0 W0.0 I0.0", "F1.0 B1.0"), "deadlock: rank 0 at W0.0 waits for I0.0 later in its own order"),
    ],
)
def test_a_wrong_order_is_a_fault(orders: tuple[str, ...], message: str) -> None:
    with pytest.raises(SimulatorFault, match=message):
        verify(hand_made(*orders))


def test_a_clock_that_proves_nothing_is_a_fault() -> None:
    schedule = build_schedule("1f1b", pp=3, vpp=1, microbatches=4)

    def backwards_too_early(stage: np.ndarray, microbatch: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return stage + 2 * microbatch, 4 - stage + 2 * microbatch

    with pytest.raises(SimulatorFault, match="does not prove"):
        verify(schedule, backwards_too_early)
    swapped = tuple(order[::-1] for order in schedule.ranks)
    with pytest.raises(SimulatorFault):
        verify(replace(schedule, ranks=swapped))
