import csv
import io
from dataclasses import replace

import polars as pl
import pytest

from simulator.report.comparison import comparison_table
from simulator.report.tables import (
    breakdown_frame,
    communication_frame,
    comparison_csv,
    memory_frame,
    report_csv,
    unit_of,
)
from tests.report.builder import GIB, SCENARIO, make_report, single_device, too_large


def rows_of(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def leaves(value: object) -> int:
    """Counts leaves on its own, to compare with what the CSV has."""
    if isinstance(value, dict):
        return sum(map(leaves, value.values()))
    if isinstance(value, list | tuple):
        return sum(map(leaves, value))
    return 1


def test_the_csv_has_every_number_of_the_report() -> None:
    report = too_large()
    data = report.to_dict()
    scenario = data.pop("scenario")
    # The names of 2 classes, 3 levers, 4 axes with their collectives and 2 tiers are items and not rows.
    assert len([row for row in rows_of(report_csv(report)) if row["section"] != "scenario"]) == leaves(data) - 15
    # Of the scenario: one row for `order`, which holds three names, and one for each empty mapping.
    in_scenario = [row for row in rows_of(report_csv(report)) if row["section"] == "scenario"]
    assert len(in_scenario) == leaves(scenario) - 2 + 2


def test_the_csv_is_exact_and_names_its_units() -> None:
    base = make_report()
    report = replace(base, step=replace(base.step, time_s=0.1 + 0.2, tokens=123_456_789_012_345_678))
    rows = {(row["section"], row["item"], row["quantity"]): row for row in rows_of(report_csv(report))}
    step = rows["step", "", "time_s"]
    assert (float(step["value"]), step["unit"]) == (0.1 + 0.2, "s")
    assert rows["step", "", "tokens"]["value"] == "123456789012345678"
    assert rows["memory.classes", "pipeline rank 0", "at_peak.activations"]["value"] == str(20 * GIB)
    assert rows["memory.classes", "pipeline rank 0", "at_peak.activations"]["unit"] == "B"
    assert rows["communication.by_axis", "tp all-gather", "exposed_s"]["value"] == "0.9"
    assert rows["scenario", "layout.order", "setting"]["value"] == "[tp, dp, pp]"
    assert rows["pipeline", "3", "in_flight_max"]["value"] == "1"
    assert rows["memory", "", "fits"]["value"] == "true"


@pytest.mark.parametrize(
    ("quantity", "unit"),
    [
        ("peak_bytes", "B"),
        ("sent_bytes_per_rank", "B"),
        ("bytes_per_rank_mean", "B"),
        ("capacity_bytes_per_s", "B/s"),
        ("tokens_per_s_per_device", "1/s"),
        ("model_flops", "FLOP"),
        ("model_tflops_per_device", "TFLOP/s"),
        ("breakdown_s.bubble", "s"),
        ("steady.parameters", "B"),
        ("busy_fraction", "1"),
        ("schedule", ""),
    ],
)
def test_the_unit_is_read_from_the_name(quantity: str, unit: str) -> None:
    assert unit_of(quantity) == unit


def test_a_comma_or_line_break_in_a_name_stays_in_its_cell() -> None:
    report = make_report(scenario=SCENARIO | {"name": 'a,"b"\nc'})
    assert rows_of(report_csv(report))[1]["value"] == 'a,"b"\nc'


def test_memory_frame_adds_up_by_class() -> None:
    frame = memory_frame(make_report())
    assert frame.height == 4
    parts = [name for name in frame.columns if name.startswith("at_peak_")]
    assert frame.select(pl.sum_horizontal(parts)).to_series().to_list() == frame["peak_bytes"].to_list()
    assert frame["class"].to_list()[3] == "pipeline rank 3"


def test_communication_frame_has_a_row_for_each_collective_and_its_types_when_empty() -> None:
    frame, empty = communication_frame(make_report()), communication_frame(single_device())
    assert frame.select("axis", "collective").rows()[1] == ("tp", "reduce-scatter")
    assert (empty.height, empty.schema) == (0, frame.schema)


def test_communication_frame_holds_the_bytes_of_a_million_ranks() -> None:
    base = make_report()
    row = replace(base.communication.by_axis[0], total_sent_bytes=10**20)
    huge = replace(base, communication=replace(base.communication, by_axis=(row,)))
    assert communication_frame(huge)["total_sent_bytes"].to_list() == [1e20]


def test_breakdown_frame_adds_up_to_the_step() -> None:
    frame = breakdown_frame(make_report())
    assert frame["time_s"].sum() == pytest.approx(10.0)
    assert frame["fraction"].sum() == pytest.approx(1.0)
    assert frame["category"].to_list()[:2] == ["compute", "tp"]


def test_comparison_csv_has_the_rows_of_the_comparison_table() -> None:
    reports = [make_report(), too_large(), single_device()]
    rows, table = rows_of(comparison_csv(reports)), comparison_table(reports)
    assert [list(row) for row in rows] == [list(row) for row in table]
    assert [float(row["step_time_s"]) for row in rows] == [row["step_time_s"] for row in table]
    assert [row["fits"] for row in rows] == ["true", "false", "true"]
    assert [row["scenario.cluster"] for row in rows] == ["h100-superpod", "h100-superpod", "laptop"]


def test_comparison_csv_of_nothing_is_a_header() -> None:
    assert comparison_csv([]) == "scenario\n"
