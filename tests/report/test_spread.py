"""The spread of step times: figures of known numbers, in JSON, CSV and at a terminal."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from simulator.report.result import Report
from simulator.report.spread import Draws, Spread, spread_of
from simulator.report.tables import report_csv
from simulator.report.terminal import print_report
from tests.report.builder import captured, make_report, text_of


def one_to_five() -> Spread:
    names = ("rank 1", "rank 0", "rank 1", "rank 1", "rank 2")
    return spread_of(Draws(makespans_ps=np.array([3, 1, 2, 5, 4]) * 10**12, slowest=names))


def with_spread() -> Report:
    base = make_report()
    return replace(base, step=replace(base.step, spread=one_to_five()))


def test_figures_of_the_numbers_one_to_five() -> None:
    spread = one_to_five()
    assert (spread.steps, spread.mean_s, spread.p50_s, spread.min_s, spread.max_s) == (5, 3.0, 3.0, 1.0, 5.0)
    assert spread.p95_s == pytest.approx(4.8)
    assert spread.p99_s == pytest.approx(4.96)
    assert spread.std_s == pytest.approx(2.5**0.5)
    assert spread.std_error_s == pytest.approx(0.5**0.5)
    assert spread.slowest == {"rank 1": 3, "rank 0": 1, "rank 2": 1}


def test_json_has_the_spread_and_null_without_jitter() -> None:
    step = with_spread().to_dict()["step"]
    assert step["spread"]["p99_s"] == pytest.approx(4.96)
    assert step["spread"]["slowest"] == {"rank 1": 3, "rank 0": 1, "rank 2": 1}
    assert make_report().to_dict()["step"]["spread"] is None


def test_csv_has_the_spread_with_units() -> None:
    lines = report_csv(with_spread()).splitlines()
    assert "step,,spread.steps,1,5" in lines
    assert "step,,spread.p50_s,s,3.0" in lines
    assert "step,,spread.slowest.rank 1,1,3" in lines


def test_a_terminal_shows_the_spread_beside_the_step_without_jitter() -> None:
    console = captured(100)
    print_report(with_spread(), console)
    shown = text_of(console)
    assert "Step time with jitter  5 steps simulated, seed 0" in shown
    assert "  without jitter  10.00 s      +0.00%" in shown
    assert "  p50              3.00 s     -70.00%" in shown
    assert "  slowest, by steps: rank 1 in 3, rank 0 in 1, rank 2 in 1" in shown


def test_a_terminal_says_nothing_of_jitter_without_any() -> None:
    console = captured(100)
    print_report(make_report(), console)
    assert "jitter" not in text_of(console)
