"""The memory of a step in three ways that must agree: the engine's timeline, the walk without time, the allocations."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings

from simulator.config.scenario import Scenario
from simulator.cost.memory import MEMORY
from simulator.cost.resident import OUTSIDE_ALLOCATOR
from simulator.lowering.allocation import allocation_trace
from simulator.lowering.memory_walk import RankMemory, walk_step
from simulator.report.summary import Simulated
from simulator.simulate import run_steps
from tests.system.jobs import scenarios


def _walked(simulated: Simulated) -> tuple[RankMemory, ...]:
    initial: dict[int, tuple[int, ...]] = {}
    for rank, rank_class in zip(simulated.step.pipeline_ranks, simulated.step.program.classes, strict=True):
        initial[rank] = rank_class.initial
    shares = [stage.share for stage in simulated.costs.stages]
    return walk_step(simulated.costs.memory, shares, simulated.schedule, [initial[rank] for rank in sorted(initial)])


@settings(max_examples=40)
@given(scenario=scenarios())
def test_a_walk_without_time_finds_the_peak_of_the_timeline(scenario: Scenario) -> None:
    simulated = run_steps(scenario)
    walked = _walked(simulated)
    for number, rank in enumerate(simulated.step.pipeline_ranks):
        assert walked[rank].peak_bytes == simulated.timeline.counter_peaks[number].total
        assert walked[rank].final == simulated.step.program.classes[number].initial


@settings(max_examples=40)
@given(scenario=scenarios())
def test_a_step_frees_every_tensor_that_it_allocates_and_no_other(scenario: Scenario) -> None:
    """The k-th event of a tensor allocates it for odd k and frees it for even k; its peak is that of the walk."""
    simulated = run_steps(scenario)
    walked = _walked(simulated)
    for number, rank in enumerate(simulated.step.pipeline_ranks):
        trace = allocation_trace(simulated.step, simulated.costs, simulated.schedule, number)
        order = np.argsort(trace.tensors, kind="stable")
        tensors, allocates = trace.tensors[order], trace.allocates[order]
        same = tensors[1:] == tensors[:-1]
        assert np.all(allocates[1:][same] != allocates[:-1][same])
        assert np.all(allocates[np.concatenate([[True], ~same])])
        levels = np.cumsum(trace.tensor_bytes[trace.tensors] * np.where(trace.allocates, 1, -1))
        initial = simulated.step.program.classes[number].initial
        outside = sum(initial[MEMORY.index(category)] for category in OUTSIDE_ALLOCATOR)
        assert levels.max() + outside == walked[rank].peak_bytes
        assert levels[-1] + outside == sum(initial)
