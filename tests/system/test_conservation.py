"""What holds for every scenario: parameters, bytes, memory and time add up."""

from __future__ import annotations

from collections import defaultdict
from fractions import Fraction

import pytest
from hypothesis import given, settings

from simulator.config.scenario import Scenario
from simulator.lowering.builder import CATEGORIES, Category
from simulator.model.tensors import TensorAxis, Weight
from simulator.parallel.sharding import is_expert, is_split_over_tensor, local_elements
from simulator.report.result import BREAKDOWN_CATEGORIES, MEMORY_CATEGORIES
from simulator.report.summary import Simulated, summarise
from simulator.simulate import run_steps
from tests.system.jobs import PROFILES, profile, scenarios, tiny, tiny_model

AXES = ("tp", "cp", "ep", "pp", "dp", "embedding")
many = settings(max_examples=60, deadline=None, derandomize=True)
some = settings(max_examples=30, deadline=None, derandomize=True)


@some
@given(scenario=scenarios())
def test_shards_sum_to_the_model(scenario: Scenario) -> None:
    """Every rank's part of a weight, over the number of ranks that hold the same part, sums to the weight."""
    simulated = run_steps(scenario)
    degrees, schedule = simulated.mesh.degrees, simulated.schedule
    per_stage = degrees.devices // degrees.pp
    held = Fraction(0)
    for rank in range(schedule.pp):
        for stage in schedule.stages_of(rank):
            for layer in simulated.costs.stages[stage].stage.layers:
                for weight in layer.weights:
                    parts = _parts(weight, simulated)
                    assert per_stage % parts == 0
                    local = local_elements(_unpadded(weight), degrees) if parts > 1 else weight.count
                    held += Fraction(local * per_stage, per_stage // parts)
    padding = sum(
        (weight.count - _whole(weight, simulated)) for layer in _layers(simulated) for weight in layer.weights
    )
    assert held == simulated.model.num_parameters - padding
