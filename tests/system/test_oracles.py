"""Worked values of whole steps: what a middle rank sends and holds, and how long the layers alone take."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import numpy as np
import yaml

from simulator.config.library import Kind, builtin_path
from simulator.config.scenario import Scenario
from simulator.cost.collectives import Collective
from simulator.cost.memory import MEMORY, Memory
from simulator.cost.validity import broken_rules
from simulator.engine import run
from simulator.engine.program import PICOSECONDS_PER_SECOND
from simulator.lowering.builder import Direction, Exchange
from simulator.model.operators import AttentionCore, Move, Streamed
from simulator.model.spec import ModelSpec
from simulator.parallel.assumptions import Assumptions
from simulator.parallel.layout import Layout
from simulator.parallel.sharding import tensor_bytes
from simulator.parallel.training import Dtype, Training
from simulator.report.simulated import Simulated
from simulator.schedule import ActionKind, PipelineSchedule, build_schedule
from simulator.simulate import run_steps
from tests.oracles import Record, each, read, records
from tests.system.jobs import profile
from tests.system.pipelines import pipeline_program

MIDDLE = 1
"""A pipeline rank that holds neither table nor head, whatever the number of chunks."""


@each("integration", "integration.tp_sent")
def test_bytes_sent_on_the_tensor_axis(record: Record) -> None:
    """Without the all-reduce of the gradients of norms, which the record leaves out."""
    sent = _sent(record.inputs, lambda each: each.axis == "tp" and each.label != Collective.ALL_REDUCE)
    assert record.agrees_with(sent)


@each("integration", "integration.pp_sent")
def test_bytes_sent_on_the_pipeline_axis(record: Record) -> None:
    assert record.agrees_with(_sent(record.inputs, lambda each: each.axis == "pp"))


@each("integration", "integration.dp_sent")
def test_bytes_sent_on_the_data_axis(record: Record) -> None:
    """Without the all-reduce of the gradient's norm over all ranks, one number."""
    sent = _sent(record.inputs, lambda each: each.axis == "dp" and each.traffic.payload_bytes != Dtype.FP32.bytes)
    assert record.agrees_with(sent)


@each("integration", "integration.middle_states")
def test_resident_bytes_of_a_middle_rank(record: Record) -> None:
    resident = _simulated(**record.inputs).step.resident[MIDDLE]
    states = ("parameters of", "gradients of", "optimizer states of")
    assert record.agrees_with(sum(held.bytes for held in resident if held.name.startswith(states)))


@each("integration", "integration.rank0_activations")
def test_peak_activations_of_the_first_rank(record: Record) -> None:
    """Without what the embedding keeps and without statistics of norms and softmax, which the record leaves out."""
    simulated = _simulated(**record.inputs)
    highest = simulated.timeline.counter_peaks[0].highest[MEMORY.index(Memory.ACTIVATIONS)]
    in_flight = _chunks_at_peak(simulated)
    left_out = sum(count * _left_out_bytes(simulated, stage) for stage, count in in_flight.items())
    assert record.agrees_with(highest - left_out)


@each("integration", "integration.compute_only")
def test_the_layers_alone_at_peak(record: Record) -> None:
    inputs = record.inputs
    simulated = _simulated(**{name: value for name, value in inputs.items() if name != "flops_per_s"})
    pp, vpp = inputs["pp"], inputs["vpp"]
    seq, tokens = inputs["seq"], inputs["seq"] * inputs["micro_batch"]
    layer_flops = {
        sum(
            operator.forward_flops_per_key * seq // 2
            if isinstance(operator, AttentionCore)
            else operator.forward_flops_per_token
            for operator in layer.operators
            if not isinstance(operator, Streamed | Move)
        )
        for layer in simulated.model.layers
    }
    assert len(layer_flops) == 1
    layers = len(simulated.model.layers) // (pp * vpp)
    forward_s = layer_flops.pop() * tokens * layers / inputs["tp"] / inputs["flops_per_s"]
    forward_ps = round(forward_s * PICOSECONDS_PER_SECOND)
    times = [forward_ps] * (pp * vpp)
    schedule = _schedule(pp, vpp, inputs["microbatches"])
    timeline = run(pipeline_program(schedule, times, [2 * ps for ps in times], hop_ps=0))
    assert record.agrees_with(timeline.makespan_ps / PICOSECONDS_PER_SECOND)


def test_every_copied_worked_value_is_used() -> None:
    tested = ("compute_only", "tp_sent", "pp_sent", "dp_sent", "rank0_activations", "middle_states")
    assert len(records("integration")) == 36
    for record in records("integration"):
        assert record.id.split(".")[1] in tested
    assert len(read("integration")["records"]) == 36


@cache
def _simulated(**inputs: Any) -> Simulated:
    """The step of a record: Megatron's bf16 recipe with a sharded optimizer, no padding of the vocabulary."""
    dp, micro_batch = inputs["dp"], inputs["micro_batch"]
    scenario = Scenario(
        name="worked value",
        model=_model(inputs["model"]),
        cluster=profile("h100-superpod"),
        devices=inputs["tp"] * inputs["pp"] * dp,
        layout=Layout(
            tp=inputs["tp"], sp=inputs["sequence_parallel"], pp=inputs["pp"], vpp=inputs["vpp"], dp=dp, zero=1
        ),
        training=Training(
            sequence_length=inputs["seq"],
            global_batch=dp * micro_batch * inputs["microbatches"],
            micro_batch=micro_batch,
        ),
        assumptions=Assumptions(vocab_padding=0),
    )
    assert broken_rules(scenario) == ()
    return run_steps(scenario)


@cache
def _model(name: str) -> ModelSpec:
    path = builtin_path(Kind.MODELS, name)
    assert path is not None
    return ModelSpec.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))


def _schedule(pp: int, vpp: int, microbatches: int) -> PipelineSchedule:
    name = "interleaved-1f1b" if vpp > 1 else "1f1b"
    return build_schedule(name, pp=pp, vpp=vpp, microbatches=microbatches)


def _sent(inputs: dict[str, Any], counts: Callable[[Exchange], bool]) -> int:
    """Bytes that a middle rank sends in a step in the exchanges that count."""
    step = _simulated(**inputs).step
    called = np.bincount(step.program.classes[MIDDLE].calls[:, 0], minlength=len(step.exchanges)).tolist()
    return sum(
        times * exchange.traffic.sent_bytes
        for times, exchanges in zip(called, step.exchanges, strict=True)
        for exchange in exchanges
        if counts(exchange) and exchange.direction is not Direction.RECEIVE
    )


def _chunks_at_peak(simulated: Simulated) -> dict[int, int]:
    """Microbatches of each stage of rank 0 that are in flight when most bytes are."""
    schedule = simulated.schedule
    kept = {stage: sum(_kept(simulated, stage)) for stage in schedule.stages_of(0)}
    level = dict.fromkeys(kept, 0)
    held, highest, at_peak = 0, 0, dict(level)
    for action in schedule.actions(0):
        change = 1 if action.kind is ActionKind.FORWARD else -1
        level[action.stage] += change
        held += change * kept[action.stage]
        if held > highest:
            highest, at_peak = held, dict(level)
    return at_peak


def _left_out_bytes(simulated: Simulated, stage: int) -> int:
    return sum(_kept(simulated, stage, only_left_out=True))


def _kept(simulated: Simulated, stage: int, *, only_left_out: bool = False) -> Iterator[int]:
    """Bytes of each tensor that a stage keeps; those that the records leave out: statistics, and the embedding's."""
    rules, share = simulated.costs.memory, simulated.costs.stages[stage].share
    for place, layer in enumerate(share.layers):
        for tensor in rules.tapes(share, place).kept:
            if not only_left_out or tensor.statistic or layer.layer is simulated.model.embedding:
                yield int(tensor_bytes(tensor, rules.workload, rules.degrees))
