"""Simulates the published runs of `published_memory.yaml` and prints predicted beside measured peaks of memory.

Usage: python benchmarks/memory_accuracy.py [--write] [--only SUITE]

`--write` puts the tables into docs/accuracy.md, between its two marks. A row says what ran; what its source left out is
assumed by its framework or its suite, by name, never by row.
"""

from __future__ import annotations

import argparse
import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from statistics import fmean, median
from typing import Any

import yaml
from published import HERE, Row, filled_rows, read_models, scenario_document, write_section

from simulator.config.scenario import read_scenario
from simulator.cost.states import state_bytes
from simulator.model.tensors import TensorAxis, Weight
from simulator.parallel.degrees import Degrees
from simulator.parallel.training import Training
from simulator.report.result import ClassMemory
from simulator.report.summary import summarise
from simulator.simulate import run_steps

RUNS = HERE / "published_memory.yaml"
BEGIN, END = "<!-- begin: written by benchmarks/memory_accuracy.py -->", "<!-- end -->"
PERCENTILE = 0.9


class Figure(StrEnum):
    """What a printed peak counts."""

    ALLOCATED = "allocated"
    RESERVED = "reserved"
    DEVICE = "device"
    STATE = "state"


BYTES = {"gib": 1 << 30, "gb": 10**9}
MEASURES = {f"{figure}_{unit}": (figure, size) for figure in Figure for unit, size in BYTES.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Framework:
    """What is assumed of every run of one framework."""

    about: str
    scenario: Row
    """Keys of layout and training that hold for all its rows."""
    assumptions: Row
    """Values of the scenario's `assumptions`, by name."""
    assumed: tuple[str, ...]
    """In words."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Suite:
    """Runs of one source."""

    name: str
    source: str
    assumed: tuple[str, ...]
    """What the source does not print."""
    assumptions: Row
    """Values of the scenario's `assumptions` that hold for this source, beside those of the framework."""
    explained: tuple[str, ...]
    """Why rows err by more than a tenth."""
    rows: tuple[Row, ...]
    """Each with the keys that are common to the suite, `framework` among them."""
    skipped: tuple[Row, ...]
    """Rows that no scenario expresses, as printed, with the reason."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """One printed peak, simulated."""

    id: str
    """Row, and pipeline rank if the source prints them."""
    figure: Figure
    predicted_bytes: int
    measured_bytes: float

    @property
    def error(self) -> float:
        """(predicted - measured) / measured."""
        return self.predicted_bytes / self.measured_bytes - 1


def read_frameworks(runs: Row) -> dict[str, Framework]:
    """Returns the frameworks of the file."""
    return {
        name: Framework(
            about=entry["about"],
            scenario={**entry.get("layout", {}), **entry.get("training", {})},
            assumptions=entry.get("assumptions", {}),
            assumed=tuple(entry["assumed"]),
        )
        for name, entry in runs["frameworks"].items()
    }


def read_suites(runs: Row) -> list[Suite]:
    """Returns the suites of the file, models and common keys filled in."""
    models = read_models(runs)
    return [
        Suite(
            name=suite["name"],
            source=suite["source"],
            assumed=tuple(suite["assumed"]),
            assumptions=suite.get("assumptions", {}),
            explained=tuple(suite.get("explained", ())),
            rows=tuple({"framework": suite["framework"], **row} for row in filled_rows(suite, models)),
            skipped=tuple(suite.get("skipped", ())),
        )
        for suite in runs["suites"]
    ]


def simulate_row(row: Row, suite: Suite, framework: Framework, folder: Path) -> list[Result]:
    """Returns the predictions of a row beside its measurements."""
    if "state_gb" in row:
        return _state_results(row, framework)
    path = folder / "scenario.yaml"
    document = scenario_document(
        {**framework.scenario, **row}, assumptions={**framework.assumptions, **suite.assumptions}
    )
    path.write_text(yaml.safe_dump(document), encoding="utf-8")
    classes = summarise(run_steps(read_scenario(path, {}))).memory.classes
    return [
        Result(id=name, figure=figure, predicted_bytes=predicted, measured_bytes=value * size)
        for key, (figure, size) in MEASURES.items()
        if key in row
        for name, predicted, value in _by_rank(row["id"], classes, figure, row[key])
    ]


def _by_rank(
    name: str, classes: Sequence[ClassMemory], figure: Figure, value: float | Sequence[float]
) -> list[tuple[str, int, float]]:
    """Returns (name, predicted bytes, printed value) for the fullest rank, or for each pipeline rank of a list."""
    if isinstance(value, int | float):
        return [(name, max(_figure_bytes(entry, figure) for entry in classes), value)]
    return [
        (f"{name}, stage {rank}", max(_figure_bytes(e, figure) for e in classes if e.pipeline_rank == rank), each)
        for rank, each in enumerate(value)
    ]


def _figure_bytes(memory: ClassMemory, figure: Figure) -> int:
    """Returns what a figure counts: PyTorch's allocator sees neither device context nor communicators' buffers."""
    outside = memory.steady["framework"] + memory.steady["communication"]
    match figure:
        case Figure.ALLOCATED:
            return memory.peak_bytes - outside
        case Figure.RESERVED:
            return memory.reserved_peak_bytes - outside
        case _:
            return memory.reserved_peak_bytes


def _state_results(row: Row, framework: Framework) -> list[Result]:
    """Returns weights, gradients and optimizer state of a model of so many parameters, by ZeRO stage."""
    weight = Weight(name="all", axes=((TensorAxis.HIDDEN, row["parameters"]),))
    training = Training(sequence_length=1, global_batch=1, precision=framework.scenario["precision"])
    results = []
    for zero, value in row["state_gb"].items():
        degrees = Degrees(
            tp=1, sequence=1, cp=1, dp=row["dp"], pp=1, vpp=1, ep=1, etp=1, zero=zero, shard_group=row["dp"]
        )
        states = state_bytes([weight], degrees, training, vocab_padding=0)
        total = states.parameters + states.gradients + states.optimizer
        name = f"{row['parameters'] / 1e9:g}B, dp {row['dp']}, zero {zero}"
        results.append(Result(id=name, figure=Figure.STATE, predicted_bytes=total, measured_bytes=value * BYTES["gb"]))
    return results


def simulate_suites(suites: Sequence[Suite], frameworks: Mapping[str, Framework]) -> list[tuple[Suite, list[Result]]]:
    """Returns every suite with its results."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        return [
            (
                suite,
                [one for row in suite.rows for one in simulate_row(row, suite, frameworks[row["framework"]], folder)],
            )
            for suite in suites
        ]


def tables(done: Sequence[tuple[Suite, Sequence[Result]]], frameworks: Mapping[str, Framework]) -> str:
    """Returns the summary and one table a suite, as Markdown."""
    lines = [
        "Errors: (predicted - measured) / measured. A figure is one printed peak; a row may have several.",
        "",
        "| suite | figure | figures | rows skipped | mean abs. error | median | 90th percentile | bias |",
        "| --- | --- | --: | --: | --: | --: | --: | --: |",
    ]
    for suite, results in done:
        skipped = sum(len(entry["rows"]) for entry in suite.skipped)
        lines += [
            _summary(suite.name, figure, [one.error for one in results if one.figure is figure], skipped)
            for figure in Figure
            if any(one.figure is figure for one in results)
        ] or [f"| {suite.name} | | 0 | {skipped} | | | | |"]
    for figure in (Figure.ALLOCATED, Figure.RESERVED, Figure.DEVICE):
        errors = [one.error for _, results in done for one in results if one.figure is figure]
        if errors:
            lines.append(_summary("all measured", figure, errors, 0))
    for suite, results in done:
        used = {name: frameworks[name] for name in dict.fromkeys(row["framework"] for row in suite.rows)}
        lines += ["", f"### Memory: {suite.name}", "", f"Source: {suite.source}."]
        assumed = [text for framework in used.values() for text in framework.assumed]
        if assumed or suite.assumed:
            lines.append(f"Assumed: {'; '.join(dict.fromkeys([*suite.assumed, *assumed]))}.")
        lines += [
            f"Not expressed: {', '.join(row['id'] for row in entry['rows'])}: {entry['reason']}."
            for entry in suite.skipped
        ]
        lines += [f"Beyond 10 %: {text}" for text in suite.explained]
        if results:
            lines += ["", "| run | figure | predicted GB | measured GB | error |", "| --- | --- | --: | --: | --: |"]
            lines += [_row(one) for one in results]
    return "\n".join(lines) + "\n"


def _summary(name: str, figure: Figure, errors: Sequence[float], skipped: int) -> str:
    absolute = sorted(map(abs, errors))
    numbers = (fmean(absolute), median(absolute), percentile(absolute, PERCENTILE))
    cells = [name, figure.value, str(len(errors)), str(skipped), *(f"{100 * number:.1f}%" for number in numbers)]
    return f"| {' | '.join(cells)} | {100 * fmean(errors):+.1f}% |"


def percentile(ordered: Sequence[float], share: float) -> float:
    """Returns the smallest value that at least a share of the ordered values do not exceed."""
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def _row(result: Result) -> str:
    predicted, measured = result.predicted_bytes / BYTES["gb"], result.measured_bytes / BYTES["gb"]
    return f"| {result.id} | {result.figure} | {predicted:.2f} | {measured:.2f} | {100 * result.error:+.1f}% |"


def main() -> None:
    """Print or write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="put the tables into docs/accuracy.md")
    parser.add_argument("--only", metavar="SUITE", default="", help="only suites whose name has this text")
    options = parser.parse_args()
    if options.write and options.only:
        parser.error("--write puts all suites into the page: leave --only away")
    runs: dict[str, Any] = yaml.safe_load(RUNS.read_text(encoding="utf-8"))
    frameworks = read_frameworks(runs)
    chosen = [suite for suite in read_suites(runs) if options.only.lower() in suite.name.lower()]
    text = tables(simulate_suites(chosen, frameworks), frameworks)
    print(text)
    if options.write:
        write_section(BEGIN, END, text)


if __name__ == "__main__":
    main()
