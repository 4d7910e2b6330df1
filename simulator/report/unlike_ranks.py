"""What a report tells of ranks that are not alike: the spread of step times, and what slow ranks cost."""

from __future__ import annotations

from typing import TYPE_CHECKING

from simulator.parallel.scenario import Scenario
from simulator.parallel.variability import Fold
from simulator.report import wording
from simulator.report.drawing import Column, heading, print_table, say
from simulator.report.result import Report, Step

if TYPE_CHECKING:
    from rich.console import Console

MAX_NAMED = 4
"""Slowest classes that are named at a terminal."""


def print_spread(report: Report, console: Console) -> None:
    """Prints how the times of steps with jitter spread, if any were drawn."""
    step, spread = report.step, report.step.spread
    if spread is None:
        return
    note = f"{spread.steps} steps simulated, seed {report.scenario['seed']}; all else is of the step without jitter"
    heading(console, "Step time with jitter", note)
    rows = {
        "without jitter": step.time_s,
        "mean": spread.mean_s,
        "p50": spread.p50_s,
        "p95": spread.p95_s,
        "p99": spread.p99_s,
        "shortest": spread.min_s,
        "longest": spread.max_s,
    }
    scale = wording.time_scale(step.time_s)
    columns = [
        Column(header="step", cells=list(rows), right=False),
        Column(header="time", cells=[scale.format(time_s) for time_s in rows.values()]),
        Column(header="vs without", cells=[f"{time_s / step.time_s - 1:+.2%}" for time_s in rows.values()]),
    ]
    print_table(console, columns)
    deviation, error = scale.format(spread.std_s), scale.format(spread.std_error_s)
    say(console, f"standard deviation {deviation}, of the mean {error}", indent=2)
    named = list(spread.slowest.items())[:MAX_NAMED]
    listed = ", ".join(f"{name} in {count}" for name, count in named)
    say(console, f"slowest, by steps: {listed}{', …' if len(spread.slowest) > len(named) else ''}", indent=2)


def unlike_warnings(scenario: Scenario, step: Step) -> list[str]:
    """Returns what a careful user should know about ranks that are not alike."""
    variability = scenario.variability
    found = []
    if step.time_without_slow_ranks_s is not None:
        without_s = step.time_without_slow_ranks_s
        lost = 1 - without_s / step.time_s
        found.append(
            f"stragglers and slow links cost {lost:.1%} of the step: without them it takes {wording.seconds(without_s)}"
        )
    full = scenario.training.sequence_length * scenario.training.global_batch
    if variability.tokens is not None:
        found.append(
            f"microbatches have {step.tokens / full:.1%} of their tokens: compute time and FLOPs are taken in "
            "proportion, memory and traffic stay those of full microbatches"
        )
    if step.spread is not None and variability.jitter is not None and variability.jitter.fold is Fold.TENSOR:
        found.append(
            "tensor groups take the slowest of their ranks' jitter in each action: what lies outside their "
            "collectives makes the steps a little too long"
        )
    return found
