"""Facts about the page of pipeline schedules: it is what its script makes, and what it claims holds."""

from __future__ import annotations

from typing import Any

import pytest
import schedules
import yaml

from simulator.schedule import SCHEDULES

FIGURES: dict[str, Any] = yaml.safe_load(schedules.FIGURES.read_text(encoding="utf-8"))
FIRST, SECOND = FIGURES["zero_bubble"], FIGURES["zero_bubble_v"]
ROUNDED = 6e-5


def named(row: dict[str, Any]) -> Any:
    return pytest.param(row, id=f"{row['model']}-p{row['p']}-m{row['m']}")


def test_the_page_is_what_the_script_makes() -> None:
    assert schedules.PAGE.read_text(encoding="utf-8") == schedules.page()


def test_every_schedule_says_when_to_use_it() -> None:
    assert set(schedules.WHEN) == set(SCHEDULES)


@pytest.mark.parametrize("row", [named(row) for row in FIRST["rows"]])
def test_bubble_rates_of_the_zero_bubble_paper(row: dict[str, Any]) -> None:
    *times, hop = row["ms"]
    ours = dict(zip(FIRST["columns"], schedules.rates_of(row, FIRST["columns"], tuple(times), hop), strict=True))
    printed = dict(zip(FIRST["columns"], row["rates"], strict=True))
    for name in ("1f1b", "zb-h1", "zb-h2", "zb-1p"):
        assert ours[name] == pytest.approx(printed[name], abs=ROUNDED), name
    assert ours["zb-2p"] <= printed["zb-2p"] + ROUNDED
    assert 0 <= ours["1f1b-i"] - printed["1f1b-i"] <= 0.0036


@pytest.mark.parametrize("row", [named(row) for row in SECOND["rows"]])
def test_zb_h2_and_zb_v_are_predicted_from_1f1b_and_zb_h1(row: dict[str, Any]) -> None:
    times, hop = schedules.solved_times(row, SECOND["columns"])
    ours = dict(zip(SECOND["columns"], schedules.rates_of(row, SECOND["columns"], times, hop), strict=True))
    printed = dict(zip(SECOND["columns"], row["rates"], strict=True))
    assert ours["zb-h2"] == pytest.approx(printed["zb-h2"], abs=2e-4)
    assert ours["zb-v"] == pytest.approx(printed["zb-v"], abs=0.0031)
