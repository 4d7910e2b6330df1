"""Several reports side by side: the same quantities, the settings that differ, the best of each marked."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from simulator.report import wording
from simulator.report.drawing import INDENT, Column, heading, print_table, say, table_width
from simulator.report.result import BREAKDOWN_CATEGORIES, Report

if TYPE_CHECKING:
    from rich.console import Console

UNCOMPARED_SETTINGS = ("name", "description", "variants")
"""Keys of a scenario that may differ without changing the job."""
SETTING_PREFIX = "scenario."
MAX_SIDE_BY_SIDE = 8
_AXES = ("tp", "cp", "ep", "pp", "dp")
_BEST_MARK, _BEST_STYLE = " *", "bold green"


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantity:
    """A figure that every report has."""

    key: str
    """Name in tables, with its unit."""
    label: str
    """Name on the terminal."""
    of: Callable[[Report], float]
    """The figure, SI."""
    words: Callable[[float], str]
    """The figure with its unit, as text."""
    best: Callable[[Sequence[float]], float] | None = min
    """Which of several is best; none if that is a matter of taste."""
    expendable: int = 0
    """In a table with one scenario a row: which column goes first where room is short; 0 stays."""


def _rate(value: float) -> str:
    return wording.per_second(value, "tokens")


def _breakdown(name: str) -> Quantity:
    return Quantity(
        key=f"breakdown_s.{name}",
        label=f"  {name} exposed" if name in _AXES else f"  {name}",
        of=lambda report: report.step.breakdown_s.get(name, 0.0),
        words=wording.seconds,
        best=None if name in ("compute", "other") else min,
        expendable=20 + BREAKDOWN_CATEGORIES.index(name),
    )


QUANTITIES = (
    Quantity(key="step_time_s", label="step", of=lambda report: report.step.time_s, words=wording.seconds),
    *(_breakdown(name) for name in BREAKDOWN_CATEGORIES),
    Quantity(
        key="tokens_per_s",
        label="throughput",
        of=lambda report: report.step.tokens_per_s,
        words=_rate,
        best=max,
        expendable=2,
    ),
    Quantity(
        key="tokens_per_s_per_device",
        label="  of a device",
        of=lambda report: report.step.tokens_per_s_per_device,
        words=_rate,
        best=max,
        expendable=5,
    ),
    Quantity(key="mfu", label="MFU", of=lambda report: report.step.mfu, words=wording.percent, best=max, expendable=1),
    Quantity(key="hfu", label="HFU", of=lambda report: report.step.hfu, words=wording.percent, best=None, expendable=7),
    Quantity(
        key="reserved_peak_bytes",
        label="peak reserved",
        of=lambda report: report.memory.reserved_peak_bytes,
        words=wording.memory,
    ),
    Quantity(
        key="shortfall_bytes",
        label="  short of capacity",
        of=lambda report: report.memory.shortfall_bytes,
        words=wording.memory,
        best=None,
        expendable=4,
    ),
    Quantity(
        key="bubble_fraction",
        label="bubble share",
        of=lambda report: report.pipeline.bubble_fraction,
        words=wording.percent,
        expendable=3,
    ),
    Quantity(
        key="sent_bytes_total",
        label="sent by all ranks",
        of=lambda report: report.communication.sent_bytes_total,
        words=lambda value: wording.si(value, "B"),
        expendable=6,
    ),
)


OF_A_STEP = ("step_time_s", "sent_bytes_total")
"""Quantities that grow with the batch: the best is marked only among steps of the same number of tokens."""


def comparison_table(reports: Sequence[Report]) -> list[dict[str, object]]:
    """Returns one row a report: its figures in SI units and the settings in which the scenarios differ.

    A row has `scenario`, `fits`, the keys of `QUANTITIES`, `step_time_ratio` (to the fastest that fits) and, as
    `scenario.<dotted key>`, each setting that is not the same in all.
    """
    base_s = fastest_s(reports)
    differences = differing_settings(reports)
    rows: list[dict[str, object]] = []
    for position, report in enumerate(reports):
        row: dict[str, object] = {"scenario": wording.scenario_name(report), "fits": report.memory.fits}
        row |= {quantity.key: quantity.of(report) for quantity in QUANTITIES}
        row["step_time_ratio"] = _time_per_token_s(report) / base_s if base_s else None
        row |= {f"{SETTING_PREFIX}{key}": values[position] for key, values in differences.items()}
        rows.append(row)
    return rows


def fastest_s(reports: Sequence[Report]) -> float:
    """Returns the shortest step time per token among the reports that fit, or among all if none does; 0 without any."""
    fitting = [report for report in reports if report.memory.fits] or reports
    return min((_time_per_token_s(report) for report in fitting), default=0.0)


def _time_per_token_s(report: Report) -> float:
    return report.step.time_s / report.step.tokens


def differing_settings(reports: Sequence[Report]) -> dict[str, list[object]]:
    """Returns the dotted scenario keys whose values differ, each with its value in every report.

    Where the models (or clusters) have different names, the name alone stands for the whole of them.
    """
    settings = []
    for report in reports:
        scenario = {key: value for key, value in report.scenario.items() if key not in UNCOMPARED_SETTINGS}
        settings.append(scenario)
    for part in ("model", "cluster"):
        names = [wording.named(scenario.get(part), "") for scenario in settings]
        if len(set(names)) > 1:
            settings = [scenario | {part: name} for scenario, name in zip(settings, names, strict=True)]
    leaves = [dict(wording.flat(scenario)) for scenario in settings]
    keys = dict.fromkeys(key for entry in leaves for key in entry)
    found = {key: [entry.get(key) for entry in leaves] for key in keys}
    return {key: values for key, values in found.items() if any(value != values[0] for value in values)}


def print_comparison(reports: Sequence[Report], console: Console) -> None:
    """Prints the reports side by side, in the order given; a row a scenario where they are too many or too wide."""
    if not reports:
        return
    names = [wording.scenario_name(report) for report in reports]
    differences = differing_settings(reports)
    columns = _side_by_side(reports, names, differences)
    if len(reports) <= MAX_SIDE_BY_SIDE and table_width(columns) <= console.width - INDENT:
        say(console, f"{len(reports)} scenario{'s' if len(reports) > 1 else ''}", style="bold")
        print_table(console, columns)
    else:
        _print_rows(reports, names, differences, console)
    say(
        console,
        "* best among those that fit" if any(r.memory.fits for r in reports) else "* best; none fits",
        style="dim",
    )
    if len(reports) > 1 and not differences:
        say(console, "the scenarios differ in no setting", style="dim")


def _side_by_side(
    reports: Sequence[Report], names: Sequence[str], differences: Mapping[str, Sequence[object]]
) -> list[Column]:
    labels, lines, styles = ["fits"], [_fits(reports)], [["green" if r.memory.fits else "red" for r in reports]]
    for quantity in QUANTITIES:
        if any(quantity.of(report) for report in reports):
            texts, marks = _marked(quantity, reports)
            labels.append(quantity.label)
            lines.append(texts)
            styles.append(marks)
        if quantity.key == "step_time_s":
            labels.append("  to the fastest")
            lines.append([f"{text}  " for text in _ratios(reports)])
            styles.append([""] * len(reports))
    for key, values in differences.items():
        labels.append(key)
        lines.append([f"{wording.setting(value)}  " for value in values])
        styles.append(["yellow"] * len(reports))
    columns = [Column(header="", cells=labels, right=False)]
    for position, name in enumerate(names):
        cells = [line[position] for line in lines]
        marks = [style[position] for style in styles]
        columns.append(Column(header=f"{name}  ", cells=cells, styles=marks))
    return columns


def _print_rows(
    reports: Sequence[Report],
    names: Sequence[str],
    differences: Mapping[str, Sequence[object]],
    console: Console,
) -> None:
    say(console, f"{len(reports)} scenarios", style="bold")
    columns = [
        Column(header="", cells=[str(position) for position in range(1, len(reports) + 1)]),
        Column(header="scenario", cells=names, right=False),
        Column(
            header="fits",
            cells=["yes" if report.memory.fits else "no" for report in reports],
            right=False,
            styles=["green" if report.memory.fits else "red" for report in reports],
        ),
    ]
    for quantity in QUANTITIES:
        if any(quantity.of(report) for report in reports):
            texts, marks = _marked(quantity, reports)
            columns.append(
                Column(header=quantity.label.strip(), cells=texts, styles=marks, expendable=quantity.expendable)
            )
        if quantity.key == "step_time_s":
            columns.append(Column(header="to the fastest", cells=_ratios(reports), expendable=1))
    print_table(console, columns)
    if differences:
        heading(console, "Settings that differ")
        for position, name in enumerate(names):
            values = ", ".join(f"{key} {wording.setting(values[position])}" for key, values in differences.items())
            say(console, f"{position + 1} {name}: {values}", indent=INDENT)


def _fits(reports: Sequence[Report]) -> list[str]:
    return ["yes  " if report.memory.fits else "no  " for report in reports]


def _ratios(reports: Sequence[Report]) -> list[str]:
    base_s = fastest_s(reports)
    return [wording.ratio(_time_per_token_s(report), base_s) for report in reports]


def _marked(quantity: Quantity, reports: Sequence[Report]) -> tuple[list[str], list[str]]:
    """Returns the texts of a quantity and their styles; the best is marked unless all are alike."""
    values = [quantity.of(report) for report in reports]
    texts = [quantity.words(value) for value in values]
    candidates = [value for value, report in zip(values, reports, strict=True) if report.memory.fits] or values
    # Steps of different size are no race.
    comparable = quantity.key not in OF_A_STEP or len({report.step.tokens for report in reports}) == 1
    best = quantity.best(candidates) if quantity.best is not None and comparable and len(set(texts)) > 1 else None
    eligible = [report.memory.fits or len(candidates) == len(values) for report in reports]
    chosen = [value == best and allowed for value, allowed in zip(values, eligible, strict=True)]
    marked = [text + (_BEST_MARK if mark else "  ") for text, mark in zip(texts, chosen, strict=True)]
    return marked, [_BEST_STYLE if mark else "" for mark in chosen]
