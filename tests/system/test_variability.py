"""Ranks that are not alike: classes by colour refinement give what simulating every rank alone gives."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.config.scenario import Scenario
from simulator.parallel.variability import SlowLink, Straggler, Tokens, Variability
from simulator.simulate import run_steps
from tests.system.jobs import scenarios


@st.composite
def marked(draw: st.DrawFn, scenario: Scenario) -> Scenario:
    """The scenario with random stragglers, slow links and uneven microbatches."""
    ranks = st.sets(st.integers(0, scenario.devices - 1), min_size=1, max_size=3).map(
        lambda found: tuple(sorted(found))
    )
    stragglers = draw(
        st.lists(st.builds(Straggler, ranks=ranks, slowdown=st.sampled_from([1.1, 1.3, 2.0])), max_size=2)
    )
    tiers = [tier.name for tier in scenario.cluster.tiers]
    slow_links = draw(
        st.lists(
            st.builds(SlowLink, ranks=ranks, tier=st.sampled_from(tiers), bandwidth=st.sampled_from([0.5, 0.75])),
            max_size=2,
        )
    )
    tokens = draw(st.none() | st.builds(Tokens, spread=st.sampled_from([0.2, 0.7])))
    return replace(
        scenario,
        seed=draw(st.integers(0, 3)),
        variability=Variability(stragglers=tuple(stragglers), slow_links=tuple(slow_links), tokens=tokens),
    )


@settings(max_examples=60, deadline=None, derandomize=True)
@given(data=st.data(), scenario=scenarios(max_ranks=24, max_microbatches=4))
def test_classes_by_colour_equal_every_rank_alone_to_the_last_digit(data: Any, scenario: Scenario) -> None:
    different = data.draw(marked(scenario))
    coloured = run_steps(different)
    single = run_steps(different, fold=False)
    assert single.timeline.makespan_ps == coloured.timeline.makespan_ps
    classes = coloured.step.program.classes
    assert sum(each.count for each in classes) == different.devices == len(single.step.program.classes)
    for number, first in enumerate(coloured.step.first_ranks):
        for timeline in ("end_ps", "time_ps", "busy_ps"):
            assert (getattr(single.timeline, timeline)[first] == getattr(coloured.timeline, timeline)[number]).all()
