import io
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from typer.testing import CliRunner

from simulator.cli import app
from simulator.engine.program import PICOSECONDS_PER_SECOND
from simulator.errors import ScenarioError
from simulator.report.spans import classes_to_draw, classes_to_show, span_table, table_format
from tests.config.files import SCENARIO, write
from tests.report.runs import simulated

COLUMNS = [
    *("class", "count", "pipeline_rank", "stream", "routine", "action", "microbatch", "task", "category"),
    *("begin_s", "end_s"),
]


def test_the_table_has_a_row_for_every_task_and_all_of_their_time() -> None:
    step = simulated(2, 2, 4)
    table = span_table(step, [0, 1])
    assert table.columns == COLUMNS
    assert table.height == step.timeline.events
    program = step.step.program
    for number, rank_class in enumerate(program.classes):
        for category, busy_ps in zip(program.categories, step.timeline.busy_ps[number].tolist(), strict=True):
            mine = table.filter((pl.col("class") == rank_class.name) & (pl.col("category") == category))
            assert (mine["end_s"] - mine["begin_s"]).sum() == pytest.approx(busy_ps / PICOSECONDS_PER_SECOND, abs=1e-12)


@pytest.mark.parametrize("schedule", ["", "zb-h1", "dualpipe"])
def test_every_task_names_its_action(schedule: str) -> None:
    step = simulated(schedule=schedule)
    table = span_table(step, range(4))
    for number, rank in enumerate(step.step.pipeline_ranks):
        mine = table.filter(pl.col("class") == step.step.program.classes[number].name)
        of_actions = mine.filter(pl.col("action").is_not_null())
        on_compute = of_actions.filter(pl.col("stream") == "compute")
        assert " ".join(dict.fromkeys(on_compute["action"].to_list())) == step.schedule.order(rank)
        first = of_actions["action"].str.extract(r"^[FBIW]\d+\.(\d+)").cast(pl.Int64)
        assert (first == of_actions["microbatch"]).all()
        outside = mine.filter(pl.col("action").is_null())
        assert outside["microbatch"].null_count() == outside.height
        assert set(outside["routine"]) <= {"begin of step", "end of step"}


def test_classes_are_chosen_by_name_or_number_or_by_the_room_there_is() -> None:
    step = simulated().step
    assert classes_to_show(step, ["pipeline rank 2", "0", "2"]) == [0, 2]
    assert classes_to_show(step) == [0, 1, 2, 3]
    assert classes_to_show(step, max_spans=1) == [0]
    assert classes_to_draw(step, max_spans=1) == [0]
    assert span_table(simulated(), [1])["pipeline_rank"].unique().to_list() == [1]
    with pytest.raises(ScenarioError, match="--timeline-class rank 9: is not a rank class of this job"):
        classes_to_show(step, ["rank 9"])


def test_rows_are_in_the_order_of_class_stream_and_time() -> None:
    table = span_table(simulated(), range(4))
    for _, part in table.group_by("class", "stream", maintain_order=True):
        assert part["begin_s"].is_sorted()
    assert table["class"].unique(maintain_order=True).to_list() == [f"pipeline rank {rank}" for rank in range(4)]


def test_the_ending_chooses_the_format() -> None:
    assert (table_format("x.csv"), table_format("-"), table_format("a.PARQUET")) == ("csv", "csv", "parquet")
    with pytest.raises(ScenarioError, match=r"--timeline x\.txt: ends in \.txt, which is no kind of table"):
        table_format("x.txt")


@pytest.fixture
def scenario(tmp_path: Path) -> str:
    return write(tmp_path, SCENARIO)


def run(*arguments: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["run", *arguments], prog_name="shardsim")
    return result.exit_code, result.stdout, result.stderr


def test_the_table_is_written_as_csv_and_as_parquet(scenario: str, tmp_path: Path) -> None:
    files = [str(tmp_path / name) for name in ("out.csv", "out.parquet")]
    for name in files:
        assert run(scenario, "-q", "--timeline", name) == (0, "", "")
    text, binary = pl.read_csv(files[0]), pl.read_parquet(files[1])
    assert text.columns == binary.columns == COLUMNS
    assert text.equals(binary)
    code, printed, told = run(scenario, "--timeline", "-")
    assert (code, told) == (0, "")
    assert pl.read_csv(io.StringIO(printed)).equals(text)


def test_chosen_classes_are_shown_by_the_table_and_the_trace(scenario: str, tmp_path: Path) -> None:
    trace = tmp_path / "trace.json"
    chosen = ("--timeline-class", "1", "--timeline-class", "pipeline rank 1")
    code, printed, told = run(scenario, "--timeline", "-", "--trace", str(trace), *chosen)
    assert (code, told) == (0, "")
    assert set(pl.read_csv(io.StringIO(printed))["class"]) == {"pipeline rank 1"}
    assert '"rank_classes_left_out":["pipeline rank 0"]' in trace.read_text()


def test_what_is_left_out_is_told(scenario: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(classes_to_show, "__kwdefaults__", {"max_spans": 1})
    code, printed, told = run(scenario, "--timeline", "-")
    assert set(pl.read_csv(io.StringIO(printed))["class"]) == {"pipeline rank 0"}
    assert code == 0
    assert told == (
        "shardsim: the timeline leaves out 1 rank class to stay within a size that viewers open; --timeline-class "
        "chooses\n"
    )


def test_a_picture_is_drawn_of_a_run(scenario: str, tmp_path: Path) -> None:
    file = tmp_path / "out.svg"
    assert run(scenario, "-q", "--picture", str(file), "--window", "0:2") == (0, "", "")
    assert file.read_text().startswith("<?xml")
    code, printed, told = run(scenario, "--picture", "-")
    assert (code, told) == (0, "")
    assert printed.startswith("1f1b: 2 pipeline ranks, ")
    assert "Memory" not in printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--timeline-class", "0"], "--timeline-class: is given without --timeline or --trace\n"),
        (["--window", "0:1"], "--window: is given without --picture\n"),
        (["--timeline", "x.txt"], "--timeline x.txt: ends in .txt, which is no kind of table\n"),
        (["--picture", "x"], "--picture x: ends in nothing, which is no kind of picture\n"),
        (["--picture", "-", "--window", "x"], "--window x: has no colon\n"),
        (["--picture", "-", "--timeline", "-"], "--picture -: is written by --timeline too\n"),
        (["--timeline", "-", "--timeline-class", "9"], "--timeline-class 9: is not a rank class of this job\n"),
    ],
)
def test_options_that_make_no_sense_are_refused(
    scenario: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    code, printed, told = run(scenario, *arguments)
    assert (code, printed) == (2, "")
    assert told.startswith(message)
    assert np.array([line.strip().startswith(("why:", "mend:")) for line in told.splitlines()[1:]]).all()
