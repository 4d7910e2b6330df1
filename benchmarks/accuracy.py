"""Simulates the published runs of `published_runs.yaml` and prints predicted beside measured step time.

Usage: python benchmarks/accuracy.py [--write] [--fit] [--only GROUP]

`--write` puts the tables into docs/accuracy.md, between its two marks. `--fit` prints the value of the assumption
`sustained_compute` for which the mean error of the rows marked `used_for: fit` is zero. Everything else is a default
of the package, or in the file of the rows.
"""

from __future__ import annotations

import argparse
import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import yaml
from published import HERE, filled_rows, read_models, scenario_document, write_section

from simulator.config.scenario import Scenario, read_scenario
from simulator.parallel.assumptions import Assumptions
from simulator.report.result import Report
from simulator.report.summary import summarise
from simulator.simulate import run_steps

RUNS = HERE / "published_runs.yaml"
BEGIN, END = "<!-- begin: written by benchmarks/accuracy.py -->", "<!-- end -->"

ASSUMPTIONS = ("attention_kernel", "cross_entropy")
MEASURES = ("step_time_s", "samples_per_s_per_device", "tokens_per_s_per_device", "sc21_tflops", "model_tflops")
SC21_VOCAB = 51200
TERA = 1e12


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Runs of one source."""

    name: str
    used_for: str
    """`fit`: `sustained_compute` was fitted to it; `check`: it was not."""
    source: str
    assumed: tuple[str, ...]
    """What the source does not print."""
    rows: tuple[Mapping[str, Any], ...]
    """Each with the keys that are common to the group."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """One run, simulated."""

    id: str
    devices: int
    predicted_s: float
    measured_s: float

    @property
    def error(self) -> float:
        """(predicted - measured) / measured."""
        return self.predicted_s / self.measured_s - 1


def read_groups(runs: Mapping[str, Any]) -> list[Group]:
    """Returns the groups of the file, models and common keys filled in."""
    models = read_models(runs)
    groups = []
    for group in runs["groups"]:
        facts = {"name": group["name"], "used_for": group["used_for"], "source": group["source"]}
        groups.append(Group(**facts, assumed=tuple(group["assumed"]), rows=filled_rows(group, models)))
    return groups


def simulate_row(row: Mapping[str, Any], folder: Path, overrides: Mapping[str, str]) -> Result:
    """Returns the prediction of a row beside its measurement."""
    path = folder / "scenario.yaml"
    path.write_text(
        yaml.safe_dump(scenario_document(row, assumptions={key: row[key] for key in ASSUMPTIONS if key in row})),
        encoding="utf-8",
    )
    scenario = read_scenario(path, overrides)
    report = summarise(run_steps(scenario))
    measured_s = measured_step_s(row, scenario, report)
    return Result(
        id=row["id"],
        devices=scenario.devices,
        predicted_s=report.step.time_s,
        measured_s=measured_s,
    )


def measured_step_s(row: Mapping[str, Any], scenario: Scenario, report: Report) -> float:
    """Returns the seconds of a step that the source's own measure means."""
    measure = next(name for name in MEASURES if name in row)
    value, devices, sequences = row[measure], scenario.devices, scenario.training.global_batch
    tokens = sequences * scenario.training.sequence_length
    match measure:
        case "step_time_s":
            return float(value)
        case "samples_per_s_per_device":
            return sequences / (value * devices)
        case "tokens_per_s_per_device":
            return tokens / (value * devices)
        case "sc21_tflops":
            layers, hidden = scenario.model.layers, scenario.model.hidden
            share = 1 + scenario.training.sequence_length / (6 * hidden) + SC21_VOCAB / (16 * layers * hidden)
            return 96 * tokens * layers * hidden**2 * share / (value * TERA * devices)
        case _:
            return report.step.model_flops / (value * TERA * devices)


def simulate_groups(groups: Sequence[Group], overrides: Mapping[str, str]) -> list[tuple[Group, list[Result]]]:
    """Returns every group with its results."""
    with tempfile.TemporaryDirectory() as name:
        return [(group, [simulate_row(row, Path(name), overrides) for row in group.rows]) for group in groups]


def fitted_sustained_compute(groups: Sequence[Group]) -> float:
    """Returns the `sustained_compute` for which the mean error of the groups is zero, by secants, to 0.0001."""

    def mean_error(value: float) -> float:
        done = simulate_groups(groups, {"assumptions.sustained_compute": repr(value)})
        return fmean(result.error for _, results in done for result in results)

    before, value = 0.9, 0.85
    error_before = mean_error(before)
    while abs(value - before) > 1e-4:
        error = mean_error(value)
        print(f"sustained_compute {value:.4f}: mean error {100 * error:+.2f}%")
        before, value, error_before = value, value - error * (value - before) / (error - error_before), error
    return value


def tables(done: Sequence[tuple[Group, Sequence[Result]]]) -> str:
    """Returns the summary and one table a group, as Markdown."""
    lines = [
        f"Assumption `sustained_compute`: {Assumptions().sustained_compute}. Errors: (predicted - measured) / measured."
    ]
    lines += [
        "",
        "| group | used for | rows | mean absolute error | bias | worst |",
        "| --- | --- | --: | --: | --: | --: |",
    ]
    lines += [_summary(group.name, group.used_for, results) for group, results in done]
    fitted = [result for group, results in done if group.used_for == "fit" for result in results]
    if fitted:
        lines.append(_summary("all fitted rows", "fit", fitted))
    for group, results in done:
        lines += ["", f"### {group.name}", "", f"Source: {group.source}.", f"Assumed: {'; '.join(group.assumed)}.", ""]
        lines += ["| run | devices | predicted s | measured s | error |", "| --- | --: | --: | --: | --: |"]
        lines += [_row(each) for each in results]
    return "\n".join(lines) + "\n"


def _row(result: Result) -> str:
    cells = [
        result.id,
        f"{result.devices:,}",
        _seconds(result.predicted_s),
        _seconds(result.measured_s),
        f"{100 * result.error:+.1f}%",
    ]
    return f"| {' | '.join(cells)} |"


def _summary(name: str, used_for: str, results: Sequence[Result]) -> str:
    errors = [result.error for result in results]
    absolute, bias, worst = fmean(map(abs, errors)), fmean(errors), max(errors, key=abs)
    return f"| {name} | {used_for} | {len(errors)} | {100 * absolute:.1f}% | {100 * bias:+.1f}% | {100 * worst:+.1f}% |"


def _seconds(value: float) -> str:
    return f"{value:.{max(0, 3 - math.floor(math.log10(value)))}f}"


def main() -> None:
    """Print, fit or write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="put the tables into docs/accuracy.md")
    parser.add_argument("--fit", action="store_true", help="print the fitted sustained_compute and stop")
    parser.add_argument("--only", metavar="GROUP", default="", help="only groups whose name has this text")
    options = parser.parse_args()
    groups = read_groups(yaml.safe_load(RUNS.read_text(encoding="utf-8")))
    if options.fit:
        value = fitted_sustained_compute([group for group in groups if group.used_for == "fit"])
        print(f"fitted: sustained_compute {value:.4f}; default: {Assumptions().sustained_compute}")
        return
    chosen = [group for group in groups if options.only.lower() in group.name.lower()]
    text = tables(simulate_groups(chosen, {}))
    print(text)
    if options.write:
        all_of_it = text if chosen == groups else tables(simulate_groups(groups, {}))
        write_section(BEGIN, END, all_of_it)


if __name__ == "__main__":
    main()
