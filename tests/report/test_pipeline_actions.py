import numpy as np
import pytest

from simulator.engine.program import PICOSECONDS_PER_SECOND
from simulator.errors import ScenarioError, SimulatorFault
from simulator.report.pipeline_actions import (
    action_bounds,
    actions_of_schedule,
    actions_of_step,
    call_of_action,
    pipeline_classes,
)
from simulator.report.pipeline_style import parse_window
from simulator.report.simulated import Simulated
from simulator.schedule import ActionKind
from tests.report.runs import paired_schedule, simulated, unit_actions

FORWARD, BACKWARD, INPUT, WEIGHT = ActionKind


SHAPES = [
    (4, 1, 8, ""),
    (2, 2, 4, ""),
    (1, 1, 3, ""),
    (4, 1, 8, "zb-h1"),
    (4, 1, 8, "dualpipe"),
    (2, 2, 4, "dualpipe-v"),
]


@pytest.fixture(params=SHAPES, ids=str)
def step(request: pytest.FixtureRequest) -> Simulated:
    pp, vpp, microbatches, schedule = request.param
    return simulated(pp, vpp, microbatches, schedule=schedule)


def test_every_action_of_the_schedule_has_its_time_and_they_follow_one_another(step: Simulated) -> None:
    actions = actions_of_step(step)
    assert [rank.rank for rank in actions.ranks] == list(range(step.schedule.pp))
    for rank in actions.ranks:
        assert (np.stack([rank.kind, rank.stage], axis=1) == step.schedule.ranks[rank.rank][:, :2]).all()
        assert (rank.end > rank.begin).all()
        second = np.append(False, rank.joined[:-1])
        assert (rank.begin[second] == rank.begin[rank.joined]).all()
        assert (rank.end[second] == rank.end[rank.joined]).all()
        assert (rank.end[~second][:-1] <= rank.begin[~second][1:]).all()


def test_an_action_begins_after_the_one_whose_message_it_needs(step: Simulated) -> None:
    schedule, times = step.schedule, {}
    for rank in actions_of_step(step).ranks:
        for action, begin, end in zip(schedule.actions(rank.rank), rank.begin, rank.end, strict=True):
            times[action.kind, action.stage, action.microbatch] = (begin, end)
    seen = 0
    for (kind, stage, microbatch), (begin, _) in times.items():
        before = schedule.previous(stage) if kind is FORWARD else schedule.next(stage)
        needed = {FORWARD: [FORWARD], BACKWARD: [BACKWARD, INPUT], INPUT: [BACKWARD, INPUT], WEIGHT: []}[kind]
        for other in needed:
            if before is not None and (other, before, microbatch) in times:
                assert begin >= times[other, before, microbatch][1]
                seen += 1
        if kind is WEIGHT:
            assert begin >= times[INPUT, stage, microbatch][1]
    assert seen == 2 * schedule.microbatches * (schedule.chain - 1)


def test_compute_time_of_a_rank_lies_in_its_actions_and_its_update(step: Simulated) -> None:
    # Begin and end of the step hold no compute but the update and what the category `other` counts.
    actions, categories = actions_of_step(step), step.step.program.categories
    for number, rank in enumerate(actions.ranks):
        compute_s = step.timeline.time_ps[number, categories.index("compute")] / PICOSECONDS_PER_SECOND
        update_s = step.timeline.time_ps[number, categories.index("optimizer")] / PICOSECONDS_PER_SECOND
        second = np.append(False, rank.joined[:-1])
        assert compute_s <= (rank.end - rank.begin)[~second].sum() + 1e-12
        assert rank.update is not None
        assert rank.update[1] - rank.update[0] == pytest.approx(update_s, rel=1e-9)
        assert rank.end.max() <= rank.update[0] < rank.update[1] <= actions.end


def test_a_message_that_holds_up_the_sender_is_no_part_of_its_action() -> None:
    free, blocking = (actions_of_step(simulated(sends_beside=beside)) for beside in (True, False))
    for one, other in zip(free.ranks, blocking.ranks, strict=True):
        assert np.allclose(one.end - one.begin, other.end - other.begin, rtol=1e-9)


def test_idle_share_of_1f1b_is_that_of_the_papers() -> None:
    # (p - 1) / (m + p - 1) with forward and backward of any time; Narayanan et al. 2021, section 2.2.1.
    assert unit_actions("1f1b", pp=4, microbatches=8).idle_fraction == pytest.approx(3 / 11)
    assert unit_actions("gpipe", pp=8, microbatches=4).idle_fraction == pytest.approx(7 / 11)


def test_a_joined_pair_counts_once_and_a_second_direction_counts_on() -> None:
    schedule = paired_schedule()
    actions = actions_of_schedule(schedule, [np.array([0.0, 1.0, 1.0, 4.0])], [np.array([1.0, 3.0, 3.0, 5.0])])
    assert actions.idle_fraction == pytest.approx(1 / 5)
    assert actions.ranks[0].microbatch.tolist() == [0, 1, 0, 1]
    assert actions.ranks[0].chunk.tolist() == [0, 1, 0, 1]


def test_a_joined_pair_is_one_call_or_two() -> None:
    schedule = paired_schedule()
    assert call_of_action(schedule, 0, 6).tolist() == [1, 2, 3, 4]
    assert call_of_action(schedule, 0, 5).tolist() == [1, 2, 2, 3]
    with pytest.raises(SimulatorFault, match="7 calls for 4 actions"):
        call_of_action(schedule, 0, 7)


def test_times_are_exact_to_the_picosecond() -> None:
    step = simulated()
    assert step.timeline.spans is not None
    begins, ends = action_bounds(step.schedule, step.step.program, step.timeline, 2, rank=2)
    mine = step.timeline.spans[(step.timeline.spans["class"] == 2) & (step.timeline.spans["stream"] == 0)]
    assert set(begins.tolist()) <= set(mine["begin_ps"].tolist())
    assert set(ends.tolist()) <= set(mine["end_ps"].tolist())


def test_one_pipeline_is_drawn_where_there_are_several() -> None:
    step = simulated(dp=2, fold=False)
    chosen = pipeline_classes(step.step.program, step.step.pipeline_ranks)
    names = [step.step.program.classes[number].name for number in chosen]
    assert [step.step.pipeline_ranks[number] for number in chosen] == [0, 1, 2, 3]
    assert len({int(name.removeprefix("rank ")) % 2 for name in names}) == 1
    folded, single = actions_of_step(simulated(dp=2)), actions_of_step(step)
    for one, other in zip(folded.ranks, single.ranks, strict=True):
        assert (one.begin == other.begin).all()
        assert (one.end == other.end).all()


def test_a_window_is_of_microbatches_or_of_times() -> None:
    actions = actions_of_step(simulated())
    first = min(rank.begin.min() for rank in actions.ranks)
    last = max(rank.end[rank.microbatch < 2].max() for rank in actions.ranks)
    assert (parse_window("0:2", actions).begin, parse_window(":2", actions).end) == (first, last)
    assert parse_window("7:", actions).end == actions.passes_end
    assert parse_window("1us:2us", actions).begin == pytest.approx(1e-6)
    assert parse_window("1us:", actions).end == actions.end


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("3", "has no colon"),
        ("3:3", "names no microbatch from 0 to 7"),
        ("90:99", "names no microbatch from 0 to 7"),
        ("5us:2us", "holds nothing of the step"),
        ("1 parsec:", "'parsec' is not a unit"),
        ("1:2us", "1 has no unit"),
    ],
)
def test_a_window_of_nothing_is_refused(text: str, problem: str) -> None:
    with pytest.raises(ScenarioError) as caught:
        parse_window(text, actions_of_step(simulated()))
    message = str(caught.value)
    assert message.startswith(f"--window {text}: {problem}")
    assert "mend: write microbatches, for example 0:16, or times with their unit" in message
