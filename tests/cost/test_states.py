"""Bytes of weights, gradients and optimizer state on a rank, against ZeRO, Megatron-LM and the optimizers' papers."""

from __future__ import annotations

from dataclasses import replace
from math import ceil
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.cost.shares import StageShare, share_stages
from simulator.cost.stage_memory import MemoryRules
from simulator.cost.states import (
    StateBytes,
    bytes_per_parameter,
    gathered_bytes,
    gradient_copy_bytes,
    is_orthogonalised,
    parameter_share,
    state_bytes,
)
from simulator.cost.update import update_traffic_bytes
from simulator.model.decoder import build_model
from simulator.model.tensors import TensorAxis, Weight
from simulator.parallel.assumptions import Assumptions
from simulator.parallel.degrees import Degrees, candidates
from simulator.parallel.formats import base_format, weight_format
from simulator.parallel.layout import Layout
from simulator.parallel.lora import BaseType, Lora
from simulator.parallel.precision import Dtype, Precision, Scaling, WeightCopies
from simulator.parallel.stages import Stage, split_into_stages
from simulator.parallel.training import Optimizer, Training, UpdateRule
from tests.model.architectures import gpt, model, specs
from tests.oracles import Record, each
from tests.parallel.jobs import degrees, workload

MIXED = Precision(gradients=Dtype.BF16, reduce=Dtype.BF16)
"""ZeRO's recipe: 2 + 2 + 12."""
MATRIX = Weight(name="matrix", axes=((TensorAxis.HIDDEN, 512), (TensorAxis.FFN, 1024)))
WIDEST_STATE_BYTES = 18
"""No recipe stores more for one parameter."""


def _training(precision: str | Precision = "bf16", **more: Any) -> Training:
    return Training(sequence_length=1, global_batch=1, precision=precision, **more)


def _all(states: StateBytes) -> Any:
    return states.parameters + states.gradients + states.optimizer


def _vector(parameters: int) -> Weight:
    return Weight(name="parameters", axes=((TensorAxis.HIDDEN, parameters),))


def _rounded_up(value: float, expected: float) -> bool:
    """Whether a rank holds `expected` bytes and at most one more element of each state."""
    return expected <= value < expected + WIDEST_STATE_BYTES


@each("memory", "memory.zero.")
def test_zero_shards_the_states_as_in_its_paper(record: Record) -> None:
    inputs = record.inputs
    ranks = inputs.get("data_parallel", 64)
    cut = degrees(dp=ranks, zero=inputs.get("stage", 0))
    states = state_bytes([_vector(inputs["parameters"])], cut, _training(MIXED), vocab_padding=0)
    assert _rounded_up(_all(states), record.expected)
    # 2 bytes of weight, 2 of gradient, K of optimizer state, each divided from its own stage on.
    optimizer = inputs.get("optimizer_bytes_per_parameter", 12)
    for part, size, stage in ((states.parameters, 2, 3), (states.gradients, 2, 2), (states.optimizer, optimizer, 1)):
        share = ranks if cut.zero >= stage else 1
        assert part == size * ceil(inputs["parameters"] / share)


RECIPES: dict[str, tuple[str | Precision, Optimizer]] = {
    "adam_mixed_zero": ("fp16", Optimizer.ADAMW),
    "megatron_bf16_fp32grad": ("bf16", Optimizer.ADAMW),
    "megatron_fp32": ("fp32", Optimizer.ADAMW),
    "fp32_adam": ("fp32", Optimizer.ADAMW),
    "pure_bf16_adam": (
        Precision(gradients=Dtype.BF16, reduce=Dtype.BF16, master="none", optimizer=Dtype.BF16),
        Optimizer.ADAMW,
    ),
    "bf16_moments_fp32_master_fp32_grad": (Precision(optimizer=Dtype.BF16), Optimizer.ADAMW),
    "fp8_weight_bf16_moments": (Precision(parameters=Dtype.FP8, optimizer=Dtype.BF16), Optimizer.ADAMW),
    "sgd_momentum_mixed": (MIXED, Optimizer.SGD),
    "muon_mixed_bf16grad": (MIXED, Optimizer.MUON),
    "muon_mixed_fp32grad": ("bf16", Optimizer.MUON),
    "fsdp2_fp32_shard": (Precision(parameters=Dtype.FP32, master="none"), Optimizer.ADAMW),
}


@each("memory", *(f"memory.bytes_per_parameter.{name}" for name in RECIPES))
def test_a_recipe_stores_its_bytes_a_parameter(record: Record) -> None:
    precision, optimizer = RECIPES[record.id.rsplit(".", 1)[1]]
    training = _training(precision, optimizer=optimizer)
    assert record.agrees_with(sum(bytes_per_parameter(training)))
    resident = _all(state_bytes([MATRIX], degrees(dp=8), training, vocab_padding=0))
    # The record of fp8 weights leaves out their scales: four bytes for each of the 4 x 8 blocks of 128 x 128.
    scales = 4 * 32 if training.types.parameters is Dtype.FP8 else 0
    assert record.agrees_with((resident - scales) / MATRIX.count)


@each("memory", "memory.bytes_per_parameter.adam8bit.")
def test_8_bit_adam_keeps_a_scale_for_each_block(record: Record) -> None:
    rule = UpdateRule(name=Optimizer.ADAM8BIT, block=record.inputs["block"])
    training = _training(Precision(master="none"), optimizer=rule)
    assert record.agrees_with(bytes_per_parameter(training)[2])
    assert record.agrees_with(state_bytes([MATRIX], degrees(), training, vocab_padding=0).optimizer / MATRIX.count)


@each("memory", "memory.adafactor.")
def test_adafactor_keeps_a_row_and_a_column(record: Record) -> None:
    rows, columns = record.inputs["rows"], record.inputs["cols"]
    matrix = Weight(name="matrix", axes=((TensorAxis.HIDDEN, rows), (TensorAxis.FFN, columns)))
    training = _training(Precision(master="none"), optimizer=Optimizer.ADAFACTOR)
    assert record.agrees_with(state_bytes([matrix], degrees(), training, vocab_padding=0).optimizer)


@each("memory", "memory.distopt.")
def test_the_distributed_optimizer_keeps_weights_and_gradients_whole(record: Record) -> None:
    precision = {"bf16_fp32": "bf16", "fp32_fp32": "fp32", "fp16_fp16": "fp16"}[record.inputs["variant"]]
    cut = degrees(dp=record.inputs["data_parallel"], zero=1)
    assert record.agrees_with(_at_the_update(cut, _training(precision)) / MATRIX.count)


@each("memory", "memory.bytes_per_parameter.megatron_fp16_fp16grad")
def test_fp16_gradients_are_copied_for_the_update(record: Record) -> None:
    assert record.agrees_with(_at_the_update(degrees(), _training("fp16")) / MATRIX.count)


def _at_the_update(cut: Degrees, training: Training) -> int:
    resident = _all(state_bytes([MATRIX], cut, training, vocab_padding=0))
    return resident + gradient_copy_bytes([MATRIX], cut, training, vocab_padding=0)


def _stage_of(inputs: dict[str, Any], cut: Degrees) -> Stage:
    whole = model(inputs["model"])
    stages = split_into_stages(whole, Layout(tp=cut.tp, pp=cut.pp), cut)
    stage = stages[{"first": 0, "middle": len(stages) // 2, "last": -1}[inputs["stage"]]]
    assert stage.num_transformer_layers == inputs.get("layers_per_stage", len(whole.layers) // cut.pp)
    return stage


@each("memory", "memory.rank.")
def test_a_rank_holds_its_share_of_its_stage(record: Record) -> None:
    inputs = record.inputs
    cut = degrees(tp=inputs["tp"], pp=inputs["pp"], dp=inputs.get("dp", 1), zero=1)
    stage = _stage_of(inputs, cut)
    if record.id.endswith(".parameters"):
        share = parameter_share(stage.weights, cut, vocab_padding=0)
        assert share.expert == 0
        assert record.agrees_with(share.dense)
    else:
        assert record.agrees_with(_all(state_bytes(stage.weights, cut, _training(), vocab_padding=0)))


TENSOR_RANKS = ("llama2-7b", "llama2-70b", "llama3.1-8b", "llama3.1-70b", "llama3.1-405b", "dense-100t")


@each("parameters", *(f"params.{name}.layer_on_tp_rank." for name in TENSOR_RANKS))
def test_a_tensor_rank_holds_whole_norms_and_its_part_of_the_matrices(record: Record) -> None:
    layer = model(record.inputs["model"]).layers[0]
    share = parameter_share(layer.weights, degrees(tp=record.inputs["tp"]), vocab_padding=0)
    assert record.agrees_with(share.dense + share.expert)


@each("memory", "memory.states_total.", "memory.states_devices.")
def test_16_bytes_a_parameter_fill_so_many_devices(record: Record) -> None:
    whole = model(record.inputs["model"])
    weights = [weight for layer in (whole.embedding, *whole.layers, whole.head) for weight in layer.weights]
    states = _all(state_bytes(weights, degrees(), _training("fp16"), vocab_padding=0))
    # The record gives the routers' correction biases gradients and moments, which no optimizer does (E1.9).
    untrained = sum(weight.count for weight in weights if not weight.trained)
    total = states + 14 * untrained
    assert record.agrees_with(-(-total // record.inputs["device_bytes"]) if "device_bytes" in record.inputs else total)


WEIGHTS_OF_FIGURE_1 = tuple(
    f"memory.korthikanti.fig1.{size}.weights_optimizer" for size in ("22b", "175b", "530b", "1t")
)


SIZES = ("22b", "175b", "530b", "1t")


@each("memory", *(f"memory.korthikanti.fig1.{size}.weights_optimizer" for size in SIZES))
def test_the_matrices_of_a_gpt_rank_take_18_bytes_a_parameter(record: Record) -> None:
    inputs = record.inputs
    layer = build_model(
        gpt(layers=inputs["layers"], hidden=inputs["hidden"], heads=inputs["heads"]), sequence_length=inputs["seq"]
    ).layers[0]
    # Figure 1 counts 12h^2 a layer: matrices, without norms and biases.
    matrices = [weight for weight in layer.weights if is_orthogonalised(weight)]
    states = _all(state_bytes(matrices, degrees(tp=inputs["tp"]), _training(), vocab_padding=0))
    assert record.agrees_with(states * inputs["layers"] / inputs["pp"])


@each("memory", "memory.nccl.")
def test_a_communicator_stages_the_buffers_of_16_connections(record: Record) -> None:
    parts = record.expected
    assert sum(size for name, size in parts.items() if name != "sum") == parts["sum"]
    assert Assumptions().communicator_buffers == 16 * parts["sum"]


def _middle_stage(name: str, cut: Degrees, training: Training) -> tuple[MemoryRules, StageShare]:
    """Transformer layers alone: the middle one of three stages."""
    whole = model(name)
    layout = Layout(zero=3, pp=3)
    stages = split_into_stages(whole, layout, degrees(pp=3))
    share = share_stages(whole, stages, cut, training, vocab_padding=0)[1]
    return MemoryRules(
        workload=workload(1), degrees=cut, training=training, assumptions=Assumptions(), has_experts=False
    ), share


@each("memory", "memory.fsdp.")
def test_fsdp_gathers_layers_and_reduces_in_fp32(record: Record) -> None:
    training = _training(Precision(gradients=Dtype.BF16, reduce=Dtype.FP32))
    rules, share = _middle_stage(record.inputs["model"], degrees(dp=8, zero=3), training)
    wanted = ("gathered parameters", "all-gather buffer")
    if record.id.startswith("memory.fsdp.reduce"):
        wanted = ("gradients of the weights of ", "input of reduce-scatter")
    # Of a layer in the middle; the first of a pass also has the buffer that its own copy comes from.
    memory = rules.backward(share, first=True, last=True, keeps_output=False)
    for position in list(memory.layers)[1:-1]:
        layer = memory.layers[position]
        level = highest = 0
        for at in (*layer.before, layer.during, *layer.after):
            for number, sign in at.swing.events:
                if at.place == position and at.swing.held[number].name.startswith(wanted):
                    level += sign * at.swing.held[number].bytes
                    highest = max(highest, level)
        assert record.agrees_with(highest if wanted[0] != "gathered parameters" else 2 * highest)


def test_muon_keeps_tables_norms_and_biases_on_adam() -> None:
    whole = build_model(gpt(layers=1, hidden=256, heads=4), sequence_length=1)
    training = _training(optimizer=Optimizer.MUON)
    for layer in (whole.embedding, *whole.layers, whole.head):
        for weight in layer.weights:
            held = state_bytes([weight], degrees(), training, vocab_padding=0).optimizer
            is_matrix = len(weight.axes) > 1 and "bias" not in weight.name and "table" not in weight.name
            assert held == weight.count * (8 if is_matrix else 12), weight.name


ROUTER = Weight(name="router", axes=((TensorAxis.HIDDEN, 512), (TensorAxis.ROUTER, 64)))
SCALE = Weight(name="scale", axes=((TensorAxis.HIDDEN, 512),))
TABLE = Weight(name="table", axes=((TensorAxis.VOCAB, 1024), (TensorAxis.HIDDEN, 512)))

# Bytes of one orientation of MATRIX, 524,288 elements: fp8 with 32 blocks of 128 x 128 or one scale, mxfp8 with 16,384
# blocks of 32, nvfp4 with 32,768 blocks of 16 and one fp32.
COPY_BYTES = {
    ("fp8", "block"): 524_288 + 4 * 32,
    ("fp8", "tensor"): 524_288 + 4,
    ("mxfp8", "block"): 524_288 + 16_384,
    ("nvfp4", "block"): 262_144 + 32_768 + 4,
}


@pytest.mark.parametrize(("compute", "scaling"), COPY_BYTES)
@pytest.mark.parametrize(("copies", "count"), [("auto", 2), ("both", 2), ("one", 1), ("none", 0)])
def test_a_rank_keeps_quantised_copies_of_its_matrices(compute: str, scaling: str, copies: str, count: int) -> None:
    precision = Precision(compute=Dtype(compute), scaling=Scaling(scaling), weight_copies=WeightCopies(copies))
    held = state_bytes([MATRIX], degrees(), _training(precision), vocab_padding=0)
    assert held.parameters == 2 * 524_288 + count * COPY_BYTES[compute, scaling]
    assert (held.gradients, held.optimizer) == (4 * 524_288, 12 * 524_288)


@pytest.mark.parametrize("compute", ["fp8", "mxfp8", "nvfp4"])
def test_a_weight_stored_in_the_compute_type_is_one_of_its_copies(compute: str) -> None:
    one = COPY_BYTES[compute, "block"]
    for copies, count in ((WeightCopies.BOTH, 2), (WeightCopies.ONE, 1), (WeightCopies.NONE, 1)):
        precision = Precision(compute=Dtype(compute), parameters=Dtype(compute), weight_copies=copies)
        assert state_bytes([MATRIX], degrees(), _training(precision), vocab_padding=0).parameters == count * one


@pytest.mark.parametrize("weight", [ROUTER, SCALE, TABLE], ids=lambda weight: weight.name)
def test_only_matrices_of_linear_layers_are_quantised(weight: Weight) -> None:
    precision = Precision(compute=Dtype.FP8, parameters=Dtype.FP8, gather=Dtype.FP8)
    assert state_bytes([weight], degrees(), _training(precision), vocab_padding=0).parameters == 2 * weight.count
    assert gathered_bytes(weight, weight.count, degrees(dp=8, zero=3), _training(precision)) == 2 * weight.count


def test_sharded_weights_have_no_lasting_copies() -> None:
    training = _training("mxfp8")
    held = [
        state_bytes([MATRIX], degrees(dp=8, zero=zero), training, vocab_padding=0).parameters for zero in (0, 1, 2, 3)
    ]
    whole = 2 * 524_288 + 2 * COPY_BYTES["mxfp8", "block"]
    assert held == [whole, whole, whole, 2 * 524_288 // 8]


def test_fp8_weights_travel_in_8_bits() -> None:
    for types, sharded, size in (
        (Precision(), False, 2),
        (Precision(parameters=Dtype.FP32, master="none"), False, 4),
        (Precision(parameters=Dtype.FP32, master="none"), True, 2),
        (Precision(compute=Dtype.FP32, parameters=Dtype.FP32, master="none"), True, 4),
        (Precision(parameters=Dtype.FP32, master="none", gather=Dtype.FP32), True, 4),
        (Precision(parameters=Dtype.FP32, master="none", gather=Dtype.FP8, scaling=Scaling.TENSOR), True, 1),
        (Precision(compute=Dtype.FP8, parameters=Dtype.FP8, scaling=Scaling.TENSOR), False, 1),
    ):
        scale = 4 if size == 1 else 0
        assert (
            gathered_bytes(MATRIX, MATRIX.count, degrees(dp=8, zero=3 if sharded else 1), _training(types))
            == size * MATRIX.count + scale
        )


# QLoRA, section 3: a scale for each 64 weights costs 0.5 bits a weight, doubly quantised 0.127.
BASE_BITS = {
    ("bf16", True): 16,
    ("int8", True): 8 + 8 / 64 + 32 / (64 * 256),
    ("int4", False): 4 + 32 / 64,
    ("nf4", False): 4 + 32 / 64,
    ("nf4", True): 4 + 8 / 64 + 32 / (64 * 256),
}


@pytest.mark.parametrize(("base", "double"), BASE_BITS)
def test_frozen_matrices_are_stored_in_the_type_of_the_base(base: str, double: bool) -> None:
    training = _training(lora=Lora(rank=8, base=BaseType(base), double_quantisation=double))
    frozen = replace(MATRIX, trained=False)
    held = state_bytes([frozen], degrees(), training, vocab_padding=0)
    assert held.parameters * 8 == BASE_BITS[base, double] * MATRIX.count
    assert (held.gradients, held.optimizer) == (0, 0)
    assert gathered_bytes(frozen, MATRIX.count, degrees(dp=8, zero=3), training) == held.parameters


def test_double_quantisation_costs_an_eighth_of_a_bit() -> None:
    assert round(8 * base_format(Lora(rank=8, base=BaseType.NF4)).bytes_per_element, 3) == 4.127


def test_frozen_tables_and_trained_matrices_keep_the_type_of_the_parameters() -> None:
    training = _training(lora=Lora(rank=8, base=BaseType.NF4))
    for weight in (MATRIX, replace(TABLE, trained=False), replace(SCALE, trained=False)):
        assert state_bytes([weight], degrees(), training, vocab_padding=0).parameters == 2 * weight.count


@pytest.mark.parametrize(
    ("optimizer", "bytes_each"),
    [
        # Precision-aware optimizer of Megatron-LM: fp16 first moment, fp8 second, beside fp32 master weights.
        (Optimizer.ADAMW, 4 + 2 + 1),
        (Optimizer.SGD, 4 + 2),
        (UpdateRule(name=Optimizer.SGD, momentum=False), 4),
        (Optimizer.MUON, 4 + 2),
    ],
)
def test_each_moment_has_its_own_type(optimizer: Optimizer | UpdateRule, bytes_each: int) -> None:
    precision = Precision(optimizer=Dtype.FP32, moment1=Dtype.FP16, moment2=Dtype.FP8)
    training = _training(precision, optimizer=optimizer)
    held = state_bytes([MATRIX], degrees(), training, vocab_padding=0).optimizer
    assert held == bytes_each * MATRIX.count
    assert bytes_per_parameter(training)[2] == bytes_each


def test_adafactor_keeps_a_momentum_if_told() -> None:
    precision = Precision(master="none", moment1=Dtype.BF16)
    held = [
        state_bytes([MATRIX], degrees(), _training(precision, optimizer=optimizer), vocab_padding=0).optimizer
        for optimizer in (Optimizer.ADAFACTOR, UpdateRule(name=Optimizer.ADAFACTOR, momentum=True))
    ]
    assert held == [4 * (512 + 1024), 4 * (512 + 1024) + 2 * 512 * 1024]


@each("optimizer", "optimizer.adam.")
def test_adam_moves_its_states_twice_its_gradient_and_its_weight_once(record: Record) -> None:
    precision = Precision(gradients=Dtype.BF16) if "bf16_grad" in record.id else "bf16"
    count = record.inputs.get("parameters_on_rank", 1000)
    moved = update_traffic_bytes([_vector(count)], degrees(), _training(precision), vocab_padding=0)
    assert record.agrees_with(moved / record.inputs.get("bytes_per_s", count))


STATE_TYPES = st.sampled_from([Dtype.FP32, Dtype.BF16, Dtype.FP16, Dtype.FP8])
PRECISIONS = st.builds(
    Precision,
    compute=st.sampled_from(Dtype),
    parameters=st.sampled_from(Dtype),
    gradients=STATE_TYPES,
    reduce=STATE_TYPES,
    gather=st.sampled_from([*Dtype, "auto"]),
    master=st.sampled_from([Dtype.FP32, Dtype.BF16, "none"]),
    moment1=STATE_TYPES | st.none(),
    moment2=STATE_TYPES | st.none(),
    weight_copies=st.sampled_from(WeightCopies),
    scaling=st.sampled_from(Scaling),
)


@given(spec=specs(), precision=PRECISIONS, optimizer=st.sampled_from(Optimizer))
def test_states_of_weights_add_up(spec: Any, precision: Precision, optimizer: Optimizer) -> None:
    whole = build_model(spec, sequence_length=1)
    weights = [weight for layer in (whole.embedding, *whole.layers, whole.head) for weight in layer.weights]
    training = _training(precision, optimizer=optimizer)
    together = state_bytes(weights, degrees(dp=4, zero=2), training, vocab_padding=0)
    each_alone = [state_bytes([weight], degrees(dp=4, zero=2), training, vocab_padding=0) for weight in weights]
    for name in ("parameters", "gradients", "optimizer"):
        assert getattr(together, name) == sum(getattr(alone, name) for alone in each_alone), name


@given(precision=PRECISIONS, ranks=st.sampled_from([2, 4, 8]), rows=st.sampled_from([256, 384]))
def test_shards_are_the_whole_where_blocks_divide_evenly(precision: Precision, ranks: int, rows: int) -> None:
    matrix = Weight(name="matrix", axes=((TensorAxis.HIDDEN, 128 * ranks), (TensorAxis.FFN, rows)))
    training = _training(precision.model_copy(update={"weight_copies": WeightCopies.NONE}))
    whole = state_bytes([matrix], degrees(), training, vocab_padding=0)
    shared = state_bytes([matrix], degrees(dp=ranks, zero=3), training, vocab_padding=0)
    # The scale of a whole tensor is on every rank.
    of_tensor = weight_format(precision.parameters, precision.scaling).tensor_bytes
    assert ranks * shared.parameters == whole.parameters + (ranks - 1) * of_tensor
    assert ranks * shared.gradients == whole.gradients
    assert ranks * shared.optimizer == whole.optimizer


def test_experts_are_sharded_over_their_own_group() -> None:
    layer = model("mixtral-8x7b").layers[0]
    # 64 ranks hold the same dense weights, 64 / 8 = 8 the same experts.
    cut = degrees(dp=64, ep=8, zero=3)
    experts = [weight for weight in layer.weights if weight.axes[0][0] is TensorAxis.EXPERTS]
    dense = [weight for weight in layer.weights if weight.axes[0][0] is not TensorAxis.EXPERTS]
    for weights, shares in ((experts, 8 * 8), (dense, 64)):
        states = state_bytes(weights, cut, _training(), vocab_padding=0)
        assert _all(states) == 18 * sum(weight.count for weight in weights) // shares


@given(spec=specs(), stage=st.integers(0, 3), optimizer=st.sampled_from(Optimizer))
def test_more_sharding_never_takes_more_memory(spec: Any, stage: int, optimizer: Optimizer) -> None:
    whole = build_model(spec, sequence_length=1)
    weights = [weight for layer in (whole.embedding, *whole.layers, whole.head) for weight in layer.weights]
    training = _training(optimizer=optimizer)
    sizes = [
        _all(state_bytes(weights, degrees(dp=4, zero=zero, shard_group=group), training, vocab_padding=0))
        for zero, group in ((stage, 1), (stage, 2), (stage, 4), (min(3, stage + 1), 4))
    ]
    assert sizes == sorted(sizes, reverse=True)


COLUMNS = st.lists(
    st.tuples(*(st.sampled_from([1, 2, 4]) for _ in range(4)), st.sampled_from([1, 2, 8]), st.integers(0, 3)),
    min_size=1,
    max_size=8,
)


@given(spec=specs(), rows=COLUMNS, optimizer=st.sampled_from(Optimizer), padding=st.sampled_from([0, 1, 128]))
def test_states_of_an_array_of_candidates_equal_those_of_each(
    spec: Any, rows: list[tuple[int, ...]], optimizer: Optimizer, padding: int
) -> None:
    whole = build_model(spec, sequence_length=1)
    weights = [weight for layer in (whole.embedding, *whole.layers, whole.head) for weight in layer.weights]
    training = _training(optimizer=optimizer)
    alone = [degrees(tp=tp, ep=ep, etp=etp, dp=dp * ep * etp, cp=cp, zero=zero) for tp, ep, etp, cp, dp, zero in rows]
    names = Degrees.__dataclass_fields__
    together = candidates(**{name: [getattr(cut, name) for cut in alone] for name in names})
    many = state_bytes(weights, together, training, vocab_padding=padding)
    share = parameter_share(weights, together, vocab_padding=padding)
    for index, cut in enumerate(alone):
        one = state_bytes(weights, cut, training, vocab_padding=padding)
        for name in ("parameters", "gradients", "optimizer"):
            assert np.broadcast_to(getattr(many, name), len(alone))[index] == getattr(one, name), name
        one_share = parameter_share(weights, cut, vocab_padding=padding)
        assert np.broadcast_to(share.dense, len(alone))[index] == one_share.dense
        assert np.broadcast_to(share.expert, len(alone))[index] == one_share.expert


@pytest.mark.parametrize("padding", [0, 128])
def test_a_padded_vocabulary_takes_memory_on_every_tensor_rank(padding: int) -> None:
    table = Weight(name="table", axes=((TensorAxis.VOCAB, 50257), (TensorAxis.HIDDEN, 768)))
    held = parameter_share([table], degrees(tp=8), vocab_padding=padding).dense
    assert held == (51200 if padding else 50264) // 8 * 768
