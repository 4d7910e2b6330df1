from dataclasses import replace

import pytest

from simulator.report.comparison import comparison_table, differing_settings, fastest_s, print_comparison
from simulator.report.result import Report
from tests.report.builder import GIB, SCENARIO, captured, class_memory, make_report, memory, text_of, too_large


def variant(name: str, *, time_s: float, mfu: float, fits: bool = True, **layout: object) -> Report:
    base = make_report()
    reserved = None if fits else 90 * GIB
    return replace(
        base,
        scenario=SCENARIO | {"name": name, "description": name, "layout": {**SCENARIO["layout"], **layout}},  # type: ignore[dict-item]
        step=replace(base.step, time_s=time_s, mfu=mfu),
        memory=memory((class_memory(0, reserved=reserved),)),
    )


def printed(reports: list[Report], width: int) -> str:
    console = captured(width)
    print_comparison(reports, console)
    return text_of(console)


FAST = variant("fast", time_s=8.0, mfu=0.45, tp=8)
SLOW = variant("slow", time_s=10.0, mfu=0.36, tp=4, zero=3)
BROKEN = variant("broken", time_s=6.0, mfu=0.6, fits=False, tp=8)


def test_only_settings_that_differ_are_listed_with_all_their_values() -> None:
    assert differing_settings([FAST, SLOW]) == {"layout.tp": [8, 4], "layout.zero": [None, 3]}
    assert differing_settings([FAST, BROKEN]) == {}
    assert differing_settings([FAST]) == {}


def test_another_model_is_one_difference_and_not_one_for_each_of_its_figures() -> None:
    other = replace(SLOW, scenario=SCENARIO | {"model": {"name": "llama3.1-8b", "layers": 32, "hidden": 4096}})
    same_name = replace(SLOW, scenario=SCENARIO | {"model": {"name": "llama3.1-70b", "layers": 40, "hidden": 8192}})
    base = replace(FAST, scenario=SCENARIO)
    assert differing_settings([base, other]) == {"model": ["llama3.1-70b", "llama3.1-8b"]}
    assert differing_settings([base, same_name]) == {"model.layers": [80, 40]}


def test_the_table_has_a_row_a_scenario_in_the_order_given() -> None:
    table = comparison_table([FAST, SLOW, BROKEN])
    assert [row["scenario"] for row in table] == ["fast", "slow", "broken"]
    assert [row["step_time_ratio"] for row in table] == [1.0, 1.25, 0.75]
    assert [row["scenario.layout.tp"] for row in table] == [8, 4, 8]
    assert table[0].keys() == table[2].keys()


def test_the_fastest_is_one_that_fits_if_any_does() -> None:
    assert fastest_s([FAST, BROKEN]) == 8.0 / FAST.step.tokens
    assert fastest_s([BROKEN]) == 6.0 / BROKEN.step.tokens
    assert fastest_s([]) == 0.0


def test_scenarios_stand_side_by_side_with_the_best_of_each_row_marked() -> None:
    lines = {line.strip().split("  ")[0]: line.split() for line in printed([FAST, SLOW, BROKEN], 80).splitlines()}
    assert lines["step"] == ["step", "8.00", "s", "*", "10.0", "s", "6.00", "s"]
    assert lines["to the fastest"] == ["to", "the", "fastest", "1.00x", "1.25x", "0.75x"]
    assert lines["MFU"] == ["MFU", "45.0", "%", "*", "36.0", "%", "60.0", "%"]
    assert lines["fits"] == ["fits", "yes", "yes", "no"]
    assert lines["layout.tp"] == ["layout.tp", "8", "4", "8"]
    assert lines["layout.zero"] == ["layout.zero", "-", "3", "-"]
    assert "* best among those that fit" in printed([FAST, SLOW, BROKEN], 80)


def test_alike_values_have_no_best() -> None:
    line = next(line for line in printed([FAST, SLOW], 80).splitlines() if "throughput" in line)
    assert "*" not in line


def test_without_any_that_fits_the_best_is_still_marked() -> None:
    other = variant("other", time_s=7.0, mfu=0.5, fits=False)
    text = printed([BROKEN, other], 80)
    assert "* best; none fits" in text
    assert "6.00 s *" in text


@pytest.mark.parametrize("count", [9, 40])
def test_many_scenarios_have_a_row_each(count: int) -> None:
    many = [variant(f"run {at}", time_s=8.0 + at, mfu=0.4, tp=at + 1) for at in range(count)]
    lines = printed(many, 100).splitlines()
    assert lines[0] == f"{count} scenarios"
    assert lines[2].split()[:5] == ["1", "run", "0", "yes", "8.00"]
    assert len([line for line in lines if line.split()[:3] == [str(count), "run", str(count - 1)]]) == 1
    assert f"{count} run {count - 1}: layout.tp {count}" in printed(many, 100)


@pytest.mark.parametrize("width", [20, 60, 80, 120, 200])
def test_no_line_of_a_comparison_is_wider_than_the_console(width: int) -> None:
    lines = printed([FAST, SLOW, BROKEN, too_large()], width).splitlines()
    assert max(map(len, lines)) <= width


def test_one_scenario_and_none_are_no_error() -> None:
    assert "1 scenario\n" in printed([FAST], 80)
    assert printed([], 80) == "\n"


def test_scenarios_that_do_not_differ_are_told_so() -> None:
    assert "the scenarios differ in no setting" in printed([FAST, BROKEN], 80)


def test_the_best_is_coloured() -> None:
    console = captured(80, color=True)
    print_comparison([FAST, SLOW], console)
    assert "\x1b[1;32m" in text_of(console)
