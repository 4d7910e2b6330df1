"""Simulating one rank of each pipeline rank is the same as simulating all of them, to the last digit."""

from __future__ import annotations

from hypothesis import given, settings

from simulator.config.scenario import Scenario
from simulator.simulate import run_steps
from tests.system.jobs import scenarios


@settings(max_examples=40, deadline=None, derandomize=True)
@given(scenario=scenarios(max_ranks=24, max_microbatches=4))
def test_simulating_every_rank_alone_equals_the_folded_run(scenario: Scenario) -> None:
    folded = run_steps(scenario)
    single = run_steps(scenario, fold=False)
    assert len(single.step.program.classes) == scenario.devices
    assert single.timeline.makespan_ps == folded.timeline.makespan_ps
    per_class = scenario.devices // scenario.layout.pp
    for number, pipeline_rank in enumerate(single.step.pipeline_ranks):
        assert folded.step.pipeline_ranks[pipeline_rank] == pipeline_rank
        assert folded.step.program.classes[pipeline_rank].count == per_class
        assert single.timeline.end_ps[number] == folded.timeline.end_ps[pipeline_rank]
        assert (single.timeline.time_ps[number] == folded.timeline.time_ps[pipeline_rank]).all()
        assert (single.timeline.busy_ps[number] == folded.timeline.busy_ps[pipeline_rank]).all()
        assert single.timeline.counter_peaks[number] == folded.timeline.counter_peaks[pipeline_rank]
