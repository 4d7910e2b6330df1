"""Tokens of microbatches from a CSV file: read into the scenario, faults with the place in that file."""

from __future__ import annotations

from pathlib import Path

import pytest

from simulator.config.scenario import read_scenario
from simulator.errors import ScenarioError

SCENARIO = """
name: uneven
model: gpt2-small
cluster: h100-superpod
devices: 2
training: {sequence_length: 1024, global_batch: 6}
variability:
  tokens: {file: tokens.csv}
"""


def written(folder: Path, table: str | None, scenario: str = SCENARIO) -> Path:
    if table is not None:
        (folder / "tokens.csv").write_text(table, encoding="utf-8")
    path = folder / "scenario.yaml"
    path.write_text(scenario.lstrip(), encoding="utf-8")
    return path


def problem(path: Path) -> str:
    with pytest.raises(ScenarioError) as caught:
        read_scenario(path)
    return str(caught.value)


def test_a_csv_file_beside_the_scenario_is_the_table(tmp_path: Path) -> None:
    tokens = read_scenario(written(tmp_path, "1024, 900,800\n\n700,600 ,500\n")).variability.tokens
    assert tokens is not None
    assert tokens.table == ((1024, 900, 800), (700, 600, 500))
    assert tokens.file == "tokens.csv"


def test_a_cell_that_is_no_number_is_told_with_its_line_and_column(tmp_path: Path) -> None:
    said = problem(written(tmp_path, "1,2,3\n4, x,6\n"))
    assert "tokens.csv:2:4: variability.tokens.table.1.1: expected a whole number, got 'x'" in said


def test_a_table_of_another_shape_is_told_at_the_key_of_the_file(tmp_path: Path) -> None:
    path = written(tmp_path, "1,2,3\n")
    assert f"{path}:7:18: variability.tokens.file: 1 rows, but the layout has 2 data-parallel replicas" in problem(path)


def test_a_file_that_is_not_there_is_told(tmp_path: Path) -> None:
    said = problem(written(tmp_path, None))
    assert "tokens.csv:1:1: there is no such file" in said
    assert "why:  a table of tokens is a CSV file of whole numbers" in said


def test_a_file_stands_alone(tmp_path: Path) -> None:
    both = SCENARIO.replace("{file: tokens.csv}", "{file: tokens.csv, table: [[1]]}")
    assert "variability.tokens.file: stands beside table" in problem(written(tmp_path, "1\n", both))
