"""Steps with states, weights or activations outside the device: what it saves, what it moves, what it takes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.config.scenario import Scenario
from simulator.cost.memory import MEMORY
from simulator.cost.offload import HostResource
from simulator.cost.resident import OUTSIDE_ALLOCATOR
from simulator.engine.program import PICOSECONDS_PER_SECOND
from simulator.lowering.allocation import allocation_trace
from simulator.model.parts import Encoder
from simulator.parallel.lora import BaseType, Lora
from simulator.parallel.training import Offload, Recompute
from simulator.report.host import host_use
from simulator.report.result import Report
from simulator.report.summary import Simulated, summarise
from simulator.simulate import run_steps
from tests.system.jobs import tiny, tiny_model

rarely = settings(max_examples=15, deadline=None, derandomize=True)
PLACES = st.sampled_from(["none", "cpu", "nvme"])


def _job(offload: Offload | None = None, **changes: Any) -> Scenario:
    scenario = tiny(dp=4, **changes)
    return scenario if offload is None else _with(scenario, offload)


def _with(scenario: Scenario, offload: Offload) -> Scenario:
    return replace(scenario, training=scenario.training.model_copy(update={"offload": offload}))


def _report(scenario: Scenario) -> Report:
    return summarise(run_steps(scenario))


def _sharded(zero: int) -> Scenario:
    scenario = _job()
    return replace(scenario, layout=scenario.layout.model_copy(update={"zero": zero}))


def _moved(simulated: Simulated, resource: HostResource) -> float:
    """Bytes that the ranks of a class put on a resource of their host, from the tasks that ran."""
    program = simulated.step.program
    number = next(at for at, item in enumerate(program.resources) if item.name.endswith(f" / {resource}"))
    slot = list(program.classes[0].resources).index(number)
    calls = program.classes[0].calls[:, 0].tolist()
    return sum(
        demand.bytes
        for routine in calls
        for task in program.routines[routine].tasks
        for demand in task.demands
        if demand.resource == slot
    )


@rarely
@given(zero=st.integers(0, 3), optimizer=PLACES, parameters=PLACES, activations=PLACES)
def test_an_offloaded_step_never_takes_more_of_the_device_and_never_less_time(
    zero: int, optimizer: str, parameters: str, activations: str
) -> None:
    plain = _sharded(zero)
    if zero < 3 or optimizer == "none":
        parameters = "none"
    offload = Offload(optimizer=optimizer, parameters=parameters, activations=activations)  # type: ignore[arg-type]
    before, after = _report(plain), _report(_with(plain, offload))
    assert after.memory.classes[0].steady["optimizer"] == (
        before.memory.classes[0].steady["optimizer"] if optimizer == "none" else 0
    )
    if parameters == "none":
        assert after.memory.peak_bytes <= before.memory.peak_bytes
    assert sum(after.step.breakdown_s.values()) == pytest.approx(after.step.time_s)
    assert (after.memory.host_peak_bytes_per_node > 0) == offload.used


@pytest.mark.parametrize("zero", [0, 1, 2, 3])
@pytest.mark.parametrize("overlap", [True, False])
def test_gradients_go_down_and_weights_come_up_once_a_step(zero: int, overlap: bool) -> None:
    scenario = _with(_sharded(zero), Offload(optimizer="cpu"))
    training = scenario.training
    overlaps = training.overlap.model_copy(update={"dp": overlap})
    simulated = run_steps(replace(scenario, training=training.model_copy(update={"overlap": overlaps})))
    outside = simulated.costs.stages[0].share.outside
    down, up, update = outside.gradients_down_bytes, outside.weights_up_bytes, outside.update_bytes
    assert down > 0 < up
    assert _moved(simulated, HostResource.LINK_DOWN) == down
    assert _moved(simulated, HostResource.LINK_UP) == up
    efficiency = scenario.assumptions.host_update_efficiency
    assert _moved(simulated, HostResource.MEMORY) == pytest.approx(down + up + update / efficiency, abs=1)


def test_the_host_updates_at_the_bandwidth_of_its_memory() -> None:
    scenario = _with(_sharded(1), Offload(optimizer="cpu"))
    simulated = run_steps(scenario)
    share = simulated.mesh.cluster.host.memory_bandwidth_bytes_per_s
    assert share is not None
    # Four ranks of a node share its memory.
    seconds = simulated.costs.stages[0].share.outside.update_bytes / (share / 4 * 0.45)
    plain = run_steps(_sharded(1)).timeline.makespan_ps
    assert simulated.timeline.makespan_ps > plain
    assert simulated.timeline.makespan_ps / PICOSECONDS_PER_SECOND > seconds


def test_states_on_nvme_are_read_and_written_once_a_step() -> None:
    simulated = run_steps(_with(_sharded(3), Offload(optimizer="nvme")))
    outside = simulated.costs.stages[0].share.outside
    assert _moved(simulated, HostResource.NVME) == outside.nvme_read_bytes + outside.nvme_written_bytes
    assert outside.nvme_read_bytes == outside.nvme_bytes


def test_offloaded_weights_come_up_for_each_pass_of_each_microbatch() -> None:
    scenario = _with(_sharded(3), Offload(optimizer="cpu", parameters="cpu"))
    simulated = run_steps(scenario)
    shard = sum(int(layer.fetched_bytes) for layer in simulated.costs.stages[0].share.layers)
    assert _moved(simulated, HostResource.LINK_UP) == 2 * simulated.schedule.microbatches * shard
    assert summarise(simulated).memory.classes[0].steady["parameters"] == 0


@pytest.mark.parametrize("recompute", [Recompute.NONE, Recompute.FULL])
def test_activations_go_down_and_come_back_for_all_layers_but_the_last(recompute: Recompute) -> None:
    scenario = _with(_job(), Offload(activations="cpu"))
    scenario = replace(scenario, training=scenario.training.model_copy(update={"recompute": recompute}))
    simulated = run_steps(scenario)
    rules, share = simulated.costs.memory, simulated.costs.stages[0].share
    layers = scenario.model.layers
    sizes = [int(rules.offloaded_bytes(share, position)) for position in rules.offloaded_layers(share)]
    assert len(sizes) == layers - 1
    moved = simulated.schedule.microbatches * sum(sizes)
    assert _moved(simulated, HostResource.LINK_DOWN) == _moved(simulated, HostResource.LINK_UP) == moved
    if recompute is Recompute.FULL:
        # A layer's input: 2·s·b·h bytes (E3.14).
        training = scenario.training
        assert set(sizes) == {2 * training.sequence_length * training.micro_batch * scenario.model.hidden}


def test_the_host_of_a_node_holds_what_its_ranks_offload() -> None:
    scenario = _with(_job(), Offload(activations="cpu"))
    simulated = run_steps(scenario)
    rules, share = simulated.costs.memory, simulated.costs.stages[0].share
    kept = sum(int(rules.offloaded_bytes(share, position)) for position in rules.offloaded_layers(share))
    use = host_use(simulated.costs, simulated.schedule, simulated.mesh, scenario.training.offload)
    assert use.host_bytes_per_rank == kept * simulated.schedule.in_flight_max()[0]
    report = summarise(simulated).memory
    assert report.host_peak_bytes_per_node == 4 * use.host_bytes_per_rank
    assert report.host_capacity_bytes_per_node == 2_000_000_000_000


def test_a_job_whose_host_is_full_does_not_fit() -> None:
    memory = _report(_with(_sharded(1), Offload(optimizer="cpu"))).memory
    assert memory.fits
    short = replace(memory, host_capacity_bytes_per_node=memory.host_peak_bytes_per_node - 1)
    assert short.host_shortfall_bytes == 1
    assert replace(memory, host_capacity_bytes_per_node=None).host_shortfall_bytes == 0


ADAPTERS = Lora(rank=4, base=BaseType.NF4)


@pytest.mark.parametrize(
    ("zero", "offload", "lora"),
    [
        (1, Offload(activations="cpu"), None),
        (3, Offload(optimizer="cpu", parameters="cpu", activations="nvme"), None),
        (3, Offload(), ADAPTERS),
        (0, Offload(activations="cpu"), ADAPTERS),
    ],
)
def test_the_allocations_of_a_step_reach_the_peak_of_its_timeline(
    zero: int, offload: Offload, lora: Lora | None
) -> None:
    scenario = _sharded(zero)
    changes = {"offload": offload, "lora": lora}
    simulated = run_steps(replace(scenario, training=scenario.training.model_copy(update=changes)))
    trace = allocation_trace(simulated.step, simulated.costs, simulated.schedule, 0)
    levels = np.cumsum(trace.tensor_bytes[trace.tensors] * np.where(trace.allocates, 1, -1))
    initial = simulated.step.program.classes[0].initial
    outside = sum(initial[MEMORY.index(category)] for category in OUTSIDE_ALLOCATOR)
    assert levels.max() + outside == simulated.timeline.counter_peaks[0].total
    assert levels.min() > 0


def test_stages_of_a_pipeline_offload_each_its_own() -> None:
    scenario = tiny(pp=2, dp=2)
    offload = Offload(optimizer="cpu", activations="cpu")
    zero_1 = replace(scenario, layout=scenario.layout.model_copy(update={"zero": 1}))
    simulated = run_steps(_with(zero_1, offload))
    held = [cost.share.outside.host_bytes for cost in simulated.costs.stages]
    assert len(held) == 2
    assert all(size > 0 for size in held)


def test_layers_of_an_encoder_leave_with_the_tokens_of_their_own_sequence() -> None:
    """An encoder of 24 tokens beside a decoder of 256: what leaves the device is what was on it."""
    encoder = Encoder(layers=2, sequence_length=24)
    job = tiny(model=tiny_model(encoder=encoder))
    training = job.training.model_copy(update={"offload": Offload(activations="cpu")})
    (peak,) = run_steps(replace(job, training=training)).timeline.counter_peaks
    assert min(peak.lowest) >= 0
    assert min(peak.at_peak) >= 0
