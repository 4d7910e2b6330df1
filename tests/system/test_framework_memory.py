"""What frameworks keep beside the tensors of a step, by accelerator and recipe."""

from __future__ import annotations

from dataclasses import replace

import pytest

from simulator.config.scenario import Scenario
from simulator.cost.memory import Memory
from simulator.lowering.evaluation import evaluate
from simulator.parallel.lora import Lora
from simulator.parallel.training import RecomputedOperators, SelectiveRecompute
from simulator.simulate import run_steps
from tests.system.jobs import profile, tiny, tiny_model


def _resident(scenario: Scenario, name: str) -> int:
    (held,) = [held for held in run_steps(scenario).step.resident[0] if held.name == name]
    return int(held.bytes)


@pytest.mark.parametrize(
    "name", ["placeholders of weight gradients", "workspaces of GEMMs", "buffers of communicators"]
)
def test_libraries_of_gpus_keep_tensors_that_a_tpu_has_not(name: str) -> None:
    job = tiny(tp=2, pp=2)
    assert _resident(job, name) > 0
    assert _resident(replace(job, cluster=profile("tpu-v5p")), name) == 0


@pytest.mark.parametrize("most", [0, 1000, 10**9])
def test_buckets_hold_a_gradient_and_a_parameter_for_each_element_but_no_more_than_there_are(most: int) -> None:
    job = tiny()
    job = replace(job, assumptions=job.assumptions.model_copy(update={"bucket_copies": most}))
    elements = sum(int(cost.share.num_parameters) for cost in run_steps(job).costs.stages)
    # bf16 recipe: gradients of 4 bytes, parameters of 2.
    assert _resident(job, "buckets of gradients and parameters") == (4 + 2) * min(most, elements)


def test_raw_gradients_stay_beside_the_buffers_in_two_bytes() -> None:
    job = tiny()
    job = replace(job, assumptions=job.assumptions.model_copy(update={"raw_gradients": True}))
    elements = sum(int(cost.share.num_parameters) for cost in run_steps(job).costs.stages)
    assert _resident(job, "gradients as autograd makes them") == 2 * elements


@pytest.mark.parametrize("target", ["query", "gate", "down"])
@pytest.mark.parametrize("operators", [("activation",), ("norm", "activation"), ("mlp",)])
def test_adapters_and_recomputed_operators_free_what_they_hold(target: str, operators: tuple[str, ...]) -> None:
    """What a frozen layer without an adapter needs nothing of is not run again."""
    job = tiny(model=tiny_model(gated_mlp=True))
    training = job.training.model_copy(
        update={
            "lora": Lora(rank=4, targets=(target,)),
            "recompute": SelectiveRecompute(operators=tuple(RecomputedOperators(name) for name in operators)),
        }
    )
    job = replace(job, training=training)
    simulated = run_steps(job)
    assert simulated.timeline.counter_peaks[0].final == simulated.step.program.classes[0].initial
    assert simulated.timeline.counter_peaks[0].total == evaluate(job).peak_bytes
    assert evaluate(job).at_peak(0)[Memory.ACTIVATIONS] > 0
