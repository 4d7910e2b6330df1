"""Uplinks that the ranks of a domain share: folded as alone, and hand-computed max-min shares."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from hypothesis import assume, given, settings
from hypothesis import strategies as st

from simulator.config.scenario import Scenario
from simulator.cost.validity import broken_rules
from simulator.report.simulated import Simulated
from simulator.simulate import run_steps
from tests.system.jobs import scenarios
from tests.system.narrow import narrow
from tests.system.test_variability import marked

CLUSTERS = (
    narrow(1, 2, 64, ratios=(1, 3)),
    narrow(2, 4, 64, ratios=(1, 7)),
    narrow(2, 4, 64, ratios=(2, 1.5)),
    narrow(4, 64, ratios=(2.5,), vendor="tpu-v5p"),
    narrow(2, 6, 12, 96, ratios=(1, 4, 1.3)),
)
often = settings(max_examples=60, deadline=None, derandomize=True)


@st.composite
def crowded(draw: st.DrawFn) -> Scenario:
    """A scenario on a cluster whose uplinks are short, with and without what kernels take from compute."""
    scenario = draw(scenarios(max_ranks=24, max_microbatches=4))
    interference = {"communication_interference": draw(st.sampled_from([0.0, 1.0]))}
    scenario = replace(
        scenario,
        cluster=draw(st.sampled_from(CLUSTERS)),
        assumptions=scenario.assumptions.model_copy(update=interference),
    )
    assume(broken_rules(scenario) == ())
    return scenario


def assert_equal_by_rank(folded: Simulated, single: Simulated, class_of_rank: list[int]) -> None:
    assert single.timeline.makespan_ps == folded.timeline.makespan_ps
    for rank, number in enumerate(class_of_rank):
        for times in ("end_ps", "time_ps", "busy_ps"):
            assert (getattr(single.timeline, times)[rank] == getattr(folded.timeline, times)[number]).all()


@often
@given(scenario=crowded())
def test_folded_classes_share_uplinks_as_every_rank_alone_does(scenario: Scenario) -> None:
    folded, single = run_steps(scenario), run_steps(scenario, fold=False)
    assert_equal_by_rank(folded, single, list(single.step.pipeline_ranks))


@often
@given(data=st.data(), scenario=crowded())
def test_classes_by_colour_share_uplinks_as_every_rank_alone_does(data: Any, scenario: Scenario) -> None:
    different = data.draw(marked(scenario))
    coloured, single = run_steps(different), run_steps(different, fold=False)
    assert single.timeline.makespan_ps == coloured.timeline.makespan_ps
    for number, first in enumerate(coloured.step.first_ranks):
        for times in ("end_ps", "time_ps", "busy_ps"):
            assert (getattr(single.timeline, times)[first] == getattr(coloured.timeline, times)[number]).all()
