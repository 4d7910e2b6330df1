"""Facts about the file of published peaks of memory and the script that reads it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import memory_accuracy
import pytest
import yaml
from memory_accuracy import (
    MEASURES,
    RUNS,
    Figure,
    Result,
    Suite,
    percentile,
    read_frameworks,
    read_suites,
    simulate_row,
)
from published import LAYOUT, OVERLAP, TRAINING, WHOLE

FILE: dict[str, Any] = yaml.safe_load(RUNS.read_text(encoding="utf-8"))
SUITES = {suite.name: suite for suite in read_suites(FILE)}
FRAMEWORKS = read_frameworks(FILE)
FACTS = {
    "id",
    "framework",
    "edge_layers",
    *WHOLE,
    *LAYOUT,
    *TRAINING,
    *MEASURES,
    *(f"overlap_{axis}" for axis in OVERLAP),
}
PRINTED_PEAKS = {
    "SimuMax": 25,
    "torchtitan": 12,
    "Zero bubble": 68,
    "BLOOM": 55,
    "BigScience": 14,
    "InternEvo": 16,
    "ml-engineering": 14,
    "torchtune": 18,
    "Megatron-Bridge": 10,
    "MLPerf Llama 3.1": 4,
    "MLPerf Llama 2": 6,
    "NeMo AutoModel": 5,
}
"""Rows with a measured peak in each source."""


def results(suite: str, row: str, folder: Path) -> list[Result]:
    """The predictions of one row."""
    (found,) = (each for each in SUITES[suite].rows if each["id"] == row)
    return simulate_row(found, SUITES[suite], FRAMEWORKS[found["framework"]], folder)


@pytest.mark.parametrize(("source", "count"), PRINTED_PEAKS.items())
def test_every_printed_peak_is_simulated_or_skipped_with_a_reason(source: str, count: int) -> None:
    suites = [suite for name, suite in SUITES.items() if name.startswith(source)]
    skipped = [row for suite in suites for entry in suite.skipped for row in entry["rows"] if entry["reason"]]
    assert sum(len(suite.rows) for suite in suites) + len(skipped) == count


@pytest.mark.parametrize(
    "suite", [suite for suite in SUITES.values() if suite.name != "ZeRO model states"], ids=lambda s: s.name
)
def test_a_row_holds_facts_and_no_assumption(suite: Suite) -> None:
    for row in suite.rows:
        assert set(row) <= FACTS, row["id"]
        assert set(row) & set(MEASURES), row["id"]
        assert row["framework"] in FRAMEWORKS


def test_names_of_rows_are_unique() -> None:
    for suite in SUITES.values():
        names = [row["id"] for row in suite.rows if "id" in row]
        assert sorted(set(names)) == sorted(names)


def test_model_states_are_those_of_the_zero_paper(tmp_path: Path) -> None:
    suite = SUITES["ZeRO model states"]
    for row in suite.rows:
        for one in simulate_row(row, suite, FRAMEWORKS[row["framework"]], tmp_path):
            assert one.figure is Figure.STATE
            assert abs(one.error) < 0.03, one.id  # printed with two digits where the value is small


def test_a_list_of_peaks_is_compared_by_pipeline_rank(tmp_path: Path) -> None:
    found = results("SimuMax, one B200 node", "llama3-70b-l12-tp1-pp2-dp4-mbc4", tmp_path)
    assert [(one.id[-7:], one.figure) for one in found] == [
        (f"stage {rank}", figure) for figure in (Figure.ALLOCATED, Figure.RESERVED) for rank in (0, 1)
    ]
    allocated = [one.predicted_bytes for one in found if one.figure is Figure.ALLOCATED]
    assert allocated[0] > allocated[1]  # rank 0 holds two microbatches, rank 1 one
    assert all(abs(one.error) < 0.1 for one in found)


def test_device_figures_count_what_lies_outside_the_allocator(tmp_path: Path) -> None:
    suite = SUITES["Zero bubble, 1F1B rows"]
    (found,) = (row for row in suite.rows if row["id"] == "t12-14.6b-1f1b-m4")
    both = {**found, "device_gb": 19, "reserved_gb": 19}
    simulated = simulate_row(both, suite, FRAMEWORKS["megatron-2023"], tmp_path)
    predicted = {one.figure: one.predicted_bytes for one in simulated}
    assert predicted[Figure.ALLOCATED] <= predicted[Figure.RESERVED] < predicted[Figure.DEVICE]
    assert predicted[Figure.ALLOCATED] == pytest.approx(19e9, rel=0.1)


def test_the_percentile_is_a_value_that_nine_of_ten_do_not_exceed() -> None:
    assert percentile([float(value) for value in range(1, 11)], memory_accuracy.PERCENTILE) == 9
    assert percentile([5.0], memory_accuracy.PERCENTILE) == 5
