"""Several scenarios, simulated and put in order."""

from __future__ import annotations

from collections.abc import Sequence

from simulator.config.scenario import Scenario
from simulator.report.result import Report
from simulator.simulate import simulate


def compare(scenarios: Sequence[Scenario]) -> list[Report]:
    """Returns the reports of all scenarios, best first: see `ranked`."""
    return [report for _, report in ranked(scenarios)]


def ranked(scenarios: Sequence[Scenario]) -> list[tuple[Scenario, Report]]:
    """Returns each scenario with its report: those that fit first, then by step time per token, then as given."""
    results = [(scenario, simulate(scenario, with_levers=False)) for scenario in scenarios]
    return sorted(results, key=lambda result: _order(result[1]))


def _order(report: Report) -> tuple[bool, float]:
    return not report.memory.fits, report.step.time_s / report.step.tokens
