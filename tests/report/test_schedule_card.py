from pathlib import Path

import pytest
from typer.testing import CliRunner

from simulator.cli import app
from simulator.errors import ScenarioError
from simulator.report.schedule_card import PassTimes, parse_times, schedule_card
from simulator.schedule import SCHEDULES
from simulator.schedule.table import write_schedule_csv

UNIT = parse_times(None)


def show(*arguments: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["show", *arguments], prog_name="shardsim", env={"COLUMNS": "120"})
    return result.exit_code, result.stdout, result.stderr


@pytest.mark.parametrize("name", SCHEDULES)
def test_every_schedule_is_shown_with_its_source_its_rules_and_its_picture(name: str) -> None:
    code, printed, told = show("schedule", name)
    assert (code, told) == (0, "")
    assert printed.startswith(f"{name}: ")
    assert "\nsource: " in printed
    assert printed.count("\nrule on ") == len(SCHEDULES[name].rules)
    assert "\nrank 3 " in printed
    assert "\nmessages sent: " in printed
    assert schedule_card(name, times=UNIT).actions.passes_end >= 8 * 3


def test_figures_of_1f1b_are_those_of_the_papers() -> None:
    # p - r microbatches in flight, a bubble of (p - 1) / (m + p - 1); Narayanan et al. 2021, section 2.2.1.
    printed = show("schedule", "1f1b", "--pp", "4", "--microbatches", "8")[1]
    assert "bubble: 27.3 % of the ranks' time until 33," in printed
    assert "in flight, counted by stage: 4, 3, 2, 1 by rank" in printed
    assert "messages sent: 8, 16, 16, 8 by rank" in printed


def test_times_of_the_passes_count() -> None:
    # One rank: the step is the sum of its passes.
    card = schedule_card("1f1b", pp=1, microbatches=3, times=parse_times("1.5,2,0.5"))
    assert card.actions.end == pytest.approx(3 * 4.0)
    assert card.times == PassTimes(forward=1.5, backward_input=2.0, backward_weight=0.5)


def test_stages_of_a_rank_are_those_that_the_schedule_takes() -> None:
    assert schedule_card("1f1b", times=UNIT).schedule.vpp == 1
    assert schedule_card("interleaved-1f1b", times=UNIT).schedule.vpp == 2
    assert schedule_card("interleaved-1f1b", vpp=4, times=UNIT).schedule.vpp == 4


def test_the_table_of_actions_and_the_picture_are_written(tmp_path: Path) -> None:
    table, picture = tmp_path / "out.csv", tmp_path / "out.svg"
    code, printed, _ = show("schedule", "zb-h1", "--csv", str(table), "--picture", str(picture))
    assert code == 0
    assert printed.startswith("zb-h1: ")
    assert table.read_text() == write_schedule_csv(schedule_card("zb-h1", times=UNIT).schedule)
    assert picture.read_text().startswith("<?xml")
    assert show("schedule", "zb-h1", "--csv", "-")[1] == table.read_text()
    assert show("schedule", "zb-h1", "--picture", "-")[1].startswith("zb-h1: 4 pipeline ranks, 8 microbatches, idle")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["schedule", "1f1b", "--pp", "0"], "--pp: 0 is not a number of pipeline stages\n"),
        (["schedule", "1f1b", "--vpp", "2"], "--vpp: 2 model chunks per pipeline rank, but schedule 1f1b runs one\n"),
        (["schedule", "1f1b", "--microbatches", "0"], "--microbatches: gives 0 microbatches a replica\n"),
        (["schedule", "1f1c"], "'1f1c' is not a built-in schedule\n"),
        (["schedule", "1f1b", "--picture", "x.doc"], "--picture x.doc: ends in .doc, which is no kind of picture\n"),
        (["model", "gpt2-small", "--pp", "3"], "--pp: says nothing of models\n"),
    ],
)
def test_what_cannot_be_shown_is_refused(arguments: list[str], message: str) -> None:
    code, printed, told = show(*arguments)
    assert (code, printed) == (2, "")
    assert told.startswith(message)


@pytest.mark.parametrize("text", ["1,1", "1,1,1,1", "a,b,c", "0,1,1", "1,-1,1", "inf,1,1", "nan,1,1", ""])
def test_times_are_three_positive_numbers(text: str) -> None:
    with pytest.raises(ScenarioError, match="is not three positive numbers"):
        parse_times(text)
