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

from simulator.config.scenario import Scenario, read_scenario
from simulator.parallel.assumptions import Assumptions
from simulator.report.result import ClassMemory, Report
from simulator.report.summary import summarise
from simulator.simulate import run_steps

HERE = Path(__file__).resolve().parent
RUNS = HERE / "published_runs.yaml"
SCENARIOS = HERE.parent / "scenarios"
PAGE = HERE.parent / "docs" / "accuracy.md"
BEGIN, END = "<!-- begin: written by benchmarks/accuracy.py -->", "<!-- end -->"

LAYOUT = ("tp", "sp", "pp", "vpp", "dp", "cp", "cp_method", "zero", "stages")
ASSUMPTIONS = ("attention_kernel", "cross_entropy")
TRAINING = ("sequence_length", "global_batch", "micro_batch", "precision", "recompute")
MEASURES = ("step_time_s", "samples_per_s_per_device", "tokens_per_s_per_device", "sc21_tflops", "model_tflops")
SC21_VOCAB = 51200
TERA = 1e12
GIB = 1 << 30


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
    predicted_gib: float
    """Peak of allocated memory on the fullest rank, what lies outside the allocator left out."""
    measured_gib: float | None
    """The same as PyTorch counts it, if the source prints it."""

    @property
    def error(self) -> float:
        """(predicted - measured) / measured."""
        return self.predicted_s / self.measured_s - 1

    @property
    def memory_error(self) -> float | None:
        """The same for peak memory."""
        return None if self.measured_gib is None else self.predicted_gib / self.measured_gib - 1


def read_groups(runs: Mapping[str, Any]) -> list[Group]:
    """Returns the groups of the file, models and common keys filled in."""
    models = {}
    for name, figures in runs["models"].items():
        own = {key: value for key, value in figures.items() if key != "family"}
        models[name] = {"name": name, "ffn": 4 * figures["hidden"], **runs["families"][figures["family"]], **own}
    groups = []
    for group in runs["groups"]:
        rows = [{**group["common"], **row} for row in group["rows"]]
        rows = [{**row, "model": models.get(row["model"], row["model"])} if "model" in row else row for row in rows]
        facts = {"name": group["name"], "used_for": group["used_for"], "source": group["source"]}
        groups.append(Group(**facts, assumed=tuple(group["assumed"]), rows=tuple(rows)))
    return groups


def scenario_document(row: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a row as a scenario file has it."""
    document: dict[str, Any] = {"layout": {}, "training": {}, "assumptions": {}}
    if "scenario" in row:
        document |= yaml.safe_load((SCENARIOS / f"{row['scenario']}.yaml").read_text(encoding="utf-8"))
    document["name"] = row["id"]
    document |= {key: row[key] for key in ("model", "cluster", "devices") if key in row}
    document["layout"] |= {key: row[key] for key in LAYOUT if key in row}
    document["training"] |= {key: row[key] for key in TRAINING if key in row}
    document["assumptions"] |= {key: row[key] for key in ASSUMPTIONS if key in row}
    document["training"]["overlap"] = {
        axis: row[f"overlap_{axis}"] for axis in ("dp", "tp") if f"overlap_{axis}" in row
    }
    if isinstance(row.get("model"), dict) and row["model"].get("positions") == "learned":
        document["model"] = {**row["model"], "max_positions": document["training"]["sequence_length"]}
    if row.get("vpp", 1) > 1:
        document["schedule"] = "interleaved-1f1b"
    if "edge_layers" in row:  # first and last stage have one layer, as embedding and loss count as one
        document["layout"]["stages"] = [1] + [2] * (row["pp"] * row["vpp"] - 2) + [1]
    return document


def simulate_row(row: Mapping[str, Any], folder: Path, overrides: Mapping[str, str]) -> Result:
    """Returns the prediction of a row beside its measurement."""
    path = folder / "scenario.yaml"
    path.write_text(yaml.safe_dump(scenario_document(row)), encoding="utf-8")
    scenario = read_scenario(path, overrides)
    report = summarise(run_steps(scenario))
    measured_s = measured_step_s(row, scenario, report)
    return Result(
        id=row["id"],
        devices=scenario.devices,
        predicted_s=report.step.time_s,
        measured_s=measured_s,
        predicted_gib=max(_allocated_bytes(entry) for entry in report.memory.classes) / GIB,
        measured_gib=row.get("allocated_gib"),
    )


def _allocated_bytes(memory: ClassMemory) -> int:
    """Bytes that PyTorch's allocator counts: all but the device context and the communicators' buffers."""
    return memory.peak_bytes - memory.steady["framework"] - memory.steady["communication"]


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
        has_memory = any(each.measured_gib is not None for each in results)
        more = " predicted GiB | measured GiB | error |" if has_memory else ""
        lines.append("| run | devices | predicted s | measured s | error |" + more)
        lines.append("| --- | --: | --: | --: | --: |" + (" --: | --: | --: |" if has_memory else ""))
        lines += [_row(each) for each in results]
        if has_memory:
            errors = [each.memory_error for each in results if each.memory_error is not None]
            absolute, bias = fmean(map(abs, errors)), fmean(errors)
            lines += ["", f"Peak memory: mean absolute error {100 * absolute:.1f}%, bias {100 * bias:+.1f}%."]
    return "\n".join(lines) + "\n"


def _row(result: Result) -> str:
    cells = [
        result.id,
        f"{result.devices:,}",
        _seconds(result.predicted_s),
        _seconds(result.measured_s),
        f"{100 * result.error:+.1f}%",
    ]
    if result.measured_gib is not None and result.memory_error is not None:
        cells += [f"{result.predicted_gib:.2f}", f"{result.measured_gib:.2f}", f"{100 * result.memory_error:+.1f}%"]
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
        page = PAGE.read_text(encoding="utf-8")
        head, tail = page.split(BEGIN)[0], page.split(END)[1]
        all_of_it = text if chosen == groups else tables(simulate_groups(groups, {}))
        PAGE.write_text(f"{head}{BEGIN}\n\n{all_of_it}\n{END}{tail}", encoding="utf-8")


if __name__ == "__main__":
    main()
