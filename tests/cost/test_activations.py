"""Activations: what a layer keeps for backward, by tensor, and what the pipeline makes of it."""

from __future__ import annotations

from collections.abc import Iterable
from math import prod
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.cost.liveness import layer_tapes
from simulator.cost.tape import Splits, WeightGradients
from simulator.model.decoder import build_model
from simulator.model.kernels import ExpertWeighting, Kernels
from simulator.model.layers import Layer, Model
from simulator.model.operators import Part
from simulator.model.spec import ModelSpec
from simulator.model.tensors import Element, Tensor, TensorAxis, Tokens
from simulator.parallel.degrees import Degrees, candidates
from simulator.parallel.layout import Layout
from simulator.parallel.recompute import RecomputeChoice, recompute_choice
from simulator.parallel.sharding import Workload, local_elements, local_size, local_tokens, tensor_bytes
from simulator.parallel.stages import split_into_stages
from simulator.parallel.training import Dtype, FullRecompute, Recompute, Training
from simulator.schedule import build_schedule
from tests.model.architectures import gpt, latent, model, specs
from tests.oracles import Record, each
from tests.parallel.jobs import degrees, workload

UNFUSED = Kernels(flash_attention=False)
SIZES = ("22b", "175b", "530b", "1t")


def _kept(layer: Layer, block: int | None = None) -> list[Tensor]:
    """What a layer keeps without recompute, or one of its blocks."""
    names = {name for operator in layer.blocks[block or 0].operators for name in operator.saves}
    return [item for item in layer.kept if block is None or item.name in names]


def _bytes(items: Iterable[Tensor], shape: Workload, cut: Degrees) -> int:
    return sum(int(tensor_bytes(item, shape, cut)) for item in items)


def _without_statistics(layer: Layer, block: int | None = None) -> list[Tensor]:
    return [item for item in _kept(layer, block) if not item.statistic]


def _kept_with(layer: Layer, choice: RecomputeChoice, cut: Degrees) -> list[Tensor]:
    """What stays from forward to backward, statistics left out."""
    splits = Splits(
        sequence=cut.sequence > 1,
        experts=cut.ep > 1,
        context=cut.cp > 1,
        gradients=WeightGradients.ACCUMULATED,
        expert_gradients=WeightGradients.ACCUMULATED,
        other_gradients=WeightGradients.ACCUMULATED,
        quantised=False,
    )
    return [item for item in layer_tapes(layer, choice, splits).kept if not item.statistic]


def _gpt_layer(inputs: dict[str, Any]) -> Model:
    spec = gpt(layers=1, hidden=inputs["hidden"], heads=inputs["heads"], positions=inputs["seq"])
    return build_model(spec, sequence_length=inputs["seq"], kernels=UNFUSED)


RECOMPUTES = {"none": Recompute.NONE, "selective": Recompute.SELECTIVE, "full": Recompute.FULL}


def _layer_bytes(inputs: dict[str, Any], technique: str) -> int:
    """Kept bytes of a GPT layer by recompute mode, statistics left out as in the paper."""
    tp = inputs["tp"] if technique.startswith("tp") else 1
    cut = degrees(tp=tp, sequence=tp if "sp" in technique.split("_") else 1)
    recompute = RECOMPUTES.get(technique.rsplit("_", 1)[-1], Recompute.NONE)
    training = Training(sequence_length=inputs["seq"], global_batch=1, recompute=recompute)
    layer = _gpt_layer(inputs).layers[0]
    kept = _kept_with(layer, recompute_choice(training, layer.kind, 0), cut)
    return _bytes(kept, workload(inputs["seq"], inputs["micro_batch"]), cut)


@each("memory", *(f"memory.korthikanti.layer.{size}." for size in SIZES))
def test_a_gpt_layer_keeps_the_bytes_of_korthikantis_table_2(record: Record) -> None:
    assert record.agrees_with(_layer_bytes(record.inputs, record.inputs["technique"]))


@each("memory", "memory.korthikanti.attention_factor.")
def test_the_attention_core_keeps_5as_over_h(record: Record) -> None:
    inputs = record.inputs
    layer = _gpt_layer(inputs).layers[0]
    core = next(operator for operator in layer.operators if operator.part is Part.CORE_ATTENTION)
    made = {tensor.name for tensor in core.writes}
    core = [item for item in _kept(layer) if item.name in made - {"attention output"}]
    tokens = inputs["seq"]
    assert record.agrees_with(_bytes(core, workload(tokens), degrees()) / (tokens * inputs["hidden"]))


def _in_flight_of_first_rank(inputs: dict[str, Any]) -> int:
    name = "interleaved-1f1b" if inputs["vpp"] > 1 else "1f1b"
    many = 4 * inputs["pp"]
    return build_schedule(name, pp=inputs["pp"], vpp=inputs["vpp"], microbatches=many).in_flight_max()[0]


FIGURE_1 = {"tp_only": "tp", "sp_selective": "tp_sp_selective"}


@each("memory", *(f"memory.korthikanti.fig1.{size}.{bar}" for size in SIZES for bar in FIGURE_1))
def test_the_first_stage_keeps_the_activations_of_korthikantis_figure_1(record: Record) -> None:
    inputs = record.inputs
    layers_per_chunk = inputs["layers"] / (inputs["pp"] * inputs["vpp"])
    layer = _layer_bytes(inputs, FIGURE_1[record.id.rsplit(".", 1)[1]])
    assert record.agrees_with(_in_flight_of_first_rank(inputs) * layers_per_chunk * layer)


@each("memory", "memory.interleaved_factor.")
def test_the_first_interleaved_rank_holds_more_than_a_whole_model_of_stages(record: Record) -> None:
    assert record.agrees_with(_in_flight_of_first_rank(record.inputs) / (record.inputs["pp"] * record.inputs["vpp"]))


@each("memory", "memory.autograd.gpt")
def test_a_built_gpt_layer_keeps_these_bytes(record: Record) -> None:
    inputs = record.inputs
    shape = workload(inputs["seq"], inputs["micro_batch"])
    assert record.agrees_with(_bytes(_without_statistics(_gpt_layer(inputs).layers[0]), shape, degrees()))


@each("memory", "memory.autograd.llama", "memory.autograd.mla")
def test_a_built_layer_with_a_flash_kernel_keeps_these_bytes(record: Record) -> None:
    inputs = record.inputs
    spec = ModelSpec(
        name="tiny",
        layers=1,
        hidden=inputs["hidden"],
        heads=inputs["heads"],
        kv_heads=inputs.get("kv_heads"),
        head_dim=inputs.get("head_dim"),
        latent_attention=latent(inputs) if "kv_lora" in inputs else None,
        ffn=inputs.get("ffn", 1),
        vocab=1,
    )
    layer = build_model(spec, sequence_length=inputs["seq"]).layers[0]
    kept = _kept(layer, 0) if spec.latent_attention else _kept(layer)
    assert record.agrees_with(_bytes(kept, workload(inputs["seq"], inputs["micro_batch"]), degrees()))


@each("memory", "memory.activation.token_layer.")
def test_a_token_of_a_llama_layer_keeps_8h_4ad_4gd_6f(record: Record) -> None:
    layer = model(record.inputs["model"]).layers[0]
    assert record.agrees_with(_bytes(_without_statistics(layer), workload(1), degrees()))


@each("memory", "memory.activation.layer.")
def test_sequence_parallelism_divides_everything_that_a_layer_keeps(record: Record) -> None:
    inputs = record.inputs
    layer = model(inputs["model"], inputs["seq"]).layers[0]
    assert record.agrees_with(_bytes(_without_statistics(layer), workload(inputs["seq"]), degrees(tp=inputs["tp"])))


@each("memory", "memory.activation.full_recompute.")
def test_full_recompute_keeps_the_input_of_a_layer(record: Record) -> None:
    inputs = record.inputs
    whole = model(inputs["model"], inputs["seq"])
    training = Training(sequence_length=inputs["seq"], global_batch=1, recompute=Recompute.FULL)
    choice = recompute_choice(training, whole.layers[0].kind, 0)
    assert record.agrees_with(
        _bytes(_kept_with(whole.layers[0], choice, degrees()), workload(inputs["seq"]), degrees())
    )


@each("memory", "memory.activation.mla_token.")
def test_a_token_of_latent_attention_keeps_expanded_keys(record: Record) -> None:
    layer = model(record.inputs["model"]).layers[0]
    assert record.agrees_with(_bytes(_without_statistics(layer, 0), workload(1), degrees()))


@each("memory", "memory.activation.moe_token.")
def test_a_routed_token_keeps_its_copies_and_what_its_probability_multiplies(record: Record) -> None:
    after = record.inputs["probability_applied"] == "after the down projection"
    weighting = ExpertWeighting.OUTPUT if after else ExpertWeighting.ACTIVATION
    spec = model(record.inputs["model"]).spec
    whole = build_model(spec, sequence_length=1, kernels=Kernels(expert_weighting=weighting))
    assert whole.spec.experts is not None
    # The record leaves out what the router keeps, as it leaves out statistics.
    kept = [
        item
        for item in _without_statistics(whole.layers[-1], 1)
        if item.name not in ("router logits", "chosen experts")
    ]
    assert record.agrees_with(_bytes(kept, workload(1, top_k=whole.spec.experts.top_k), degrees()))


@each("memory", "memory.kv_cache.")
def test_a_token_in_the_cache_of_inference_has_its_keys_and_values_in_two_bytes(record: Record) -> None:
    assert record.agrees_with(2 * model(record.inputs["model"]).kv_cache_elements_per_token)


@each("memory", "memory.logits.")
def test_logits_are_split_over_the_tensor_group(record: Record) -> None:
    inputs = record.inputs
    spec = model(inputs["model"]).spec.model_copy(update={"vocab": inputs["vocab"]})
    head = build_model(spec, sequence_length=inputs["seq"]).head
    wanted = Element.FP32 if record.id.startswith("memory.logits.fp32") else Element.COMPUTE
    logits = [item for item in head.tensors.values() if item.is_logits and item.element is wanted]
    assert len(logits) == 1
    assert record.agrees_with(_bytes(logits, workload(inputs["seq"]), degrees(tp=inputs["tp"])))


@each("memory", "memory.pipeline.1f1b.")
def test_1f1b_keeps_the_layers_of_its_microbatches_in_flight(record: Record) -> None:
    inputs = record.inputs
    whole = model(inputs["model"], inputs["seq"])
    cut = degrees(tp=inputs["tp"], pp=inputs["pp"])
    stage = split_into_stages(whole, Layout(tp=inputs["tp"], pp=inputs["pp"]), cut)[inputs["stage"]]
    schedule = build_schedule("1f1b", pp=inputs["pp"], vpp=1, microbatches=inputs["microbatches"])
    layer = _bytes(_without_statistics(whole.layers[0]), workload(inputs["seq"], inputs["micro_batch"]), cut)
    held = schedule.in_flight_max()[inputs["stage"]]
    assert record.agrees_with(held * stage.num_transformer_layers * layer)


@pytest.mark.parametrize("compute", [Dtype.BF16, Dtype.FP8])
def test_fp8_keeps_the_inputs_of_gemms_in_one_byte(compute: Dtype) -> None:
    whole = model("llama3.1-8b", 8192)
    spec, s = whole.spec, 8192
    h, f = spec.hidden, spec.ffn or 0
    ad, gd = spec.heads * spec.head_size, spec.key_value_heads * spec.head_size
    per_token = 8 * h + 4 * ad + 4 * gd + 6 * f
    if compute is Dtype.FP8:
        # E3.9, and one fp32 scale for each 128 elements of the fp8 tensors; the flash backward keeps its output in
        # bf16 beside the fp8 copy.
        fp8_elements = 2 * h + ad + f
        per_token = 4 * h + 2 * h + 2 * ad + 4 * gd + ad + 4 * f + f + 2 * ad + fp8_elements * 4 // 128
    kept = _without_statistics(whole.layers[0])
    assert _bytes(kept, workload(s, compute=compute), degrees()) == s * per_token


def test_a_rank_of_the_first_stage_keeps_token_ids_and_the_embeddings_mask() -> None:
    spec = gpt(layers=1, hidden=1024, heads=16)
    embedding = build_model(spec, sequence_length=2048).embedding
    assert _bytes(_kept(embedding), workload(2048, 4), degrees(tp=8)) == 8 * 2048 * 4 + 2048 * 4 * 1024 // 8


def test_full_recompute_keeps_the_layers_input_alone_and_only_of_the_layers_asked_for() -> None:
    whole = build_model(gpt(layers=2, hidden=1024, heads=16), sequence_length=2048, kernels=UNFUSED)
    layer = whole.layers[0]
    training = Training(sequence_length=2048, global_batch=1, recompute=FullRecompute(full_layers=1))
    first, second = (recompute_choice(training, layer.kind, position) for position in (0, 1))
    assert [item.name for item in _kept_with(layer, first, degrees())] == ["layer input"]
    assert second.nothing
    for part in (whole.embedding, whole.head):
        assert recompute_choice(training, part.kind, 0).nothing


@pytest.mark.parametrize(("imbalance", "etp"), [(1.0, 1), (1.0, 4), (1.25, 1), (1.1, 2)])
def test_routed_copies_grow_with_imbalance_and_expert_tensor_degree(imbalance: float, etp: int) -> None:
    shape = workload(4096, top_k=8, expert_imbalance=imbalance)
    cut = degrees(tp=4, cp=2, etp=etp)
    # 4096 tokens / 2 context ranks / 4 tensor ranks, 8 copies each, gathered over the expert tensor ranks.
    assert local_tokens(Tokens.ROUTED, shape, cut) == pytest.approx(512 * 8 * etp * imbalance, abs=1)
    assert local_tokens(Tokens.SEQUENCE, shape, cut) == 512
    assert local_tokens(Tokens.TENSOR, shape, cut) == 2048


@given(spec=specs(), compute=st.sampled_from(Dtype), flash=st.booleans())
def test_a_layer_keeps_the_same_over_all_ranks_whatever_the_layout(
    spec: ModelSpec, compute: Dtype, flash: bool
) -> None:
    """With sequence parallelism every kept activation is cut, none is held twice (kv heads up to their number)."""
    whole = build_model(spec, sequence_length=64, kernels=Kernels(flash_attention=flash))
    shape = workload(64, 8, top_k=spec.experts.top_k if spec.experts else 1, compute=compute)
    for tp, cp in ((2, 1), (1, 4), (4, 2)):
        cut = degrees(tp=tp, cp=cp)
        for layer in whole.layers:
            for item in _kept(layer):
                copies = prod(tp / min(tp, size) for axis, size in item.features if axis is TensorAxis.KV_HEADS)
                if item.statistic and all(axis is TensorAxis.LATENT for axis, _ in item.features):
                    # Of a norm over all heads (OLMo 2): each rank has a part of them, and the statistics of all.
                    copies *= tp if item.tokens is Tokens.TENSOR else 1
                alone = _elements(item, shape, degrees())
                assert tp * cp * _elements(item, shape, cut) == pytest.approx(alone * copies)


def _elements(item: Tensor, shape: Workload, cut: Degrees) -> int:
    return int(local_tokens(item.tokens, shape, cut) * local_elements(item.features, cut))


ROWS = st.lists(
    st.tuples(*(st.sampled_from([1, 2, 4]) for _ in range(4)), st.booleans(), st.integers(1, 4)), min_size=1, max_size=8
)


@given(spec=specs(), rows=ROWS, compute=st.sampled_from(Dtype), imbalance=st.sampled_from([1.0, 1.3]))
def test_activations_of_an_array_of_candidates_equal_those_of_each(
    spec: ModelSpec, rows: list[tuple[Any, ...]], compute: Dtype, imbalance: float
) -> None:
    whole = build_model(spec, sequence_length=64)
    top_k = spec.experts.top_k if spec.experts else 1
    more = {"top_k": top_k, "expert_imbalance": imbalance, "vocab_padding": 16, "compute": compute}
    alone = [
        degrees(tp=tp, cp=cp, ep=ep, etp=etp, dp=ep * etp, sequence=tp if sp else 1) for tp, cp, ep, etp, sp, _ in rows
    ]
    names = Degrees.__dataclass_fields__
    together = candidates(**{name: [getattr(cut, name) for cut in alone] for name in names})
    micro_batches = [row[-1] for row in rows]
    many = workload(64, np.array(micro_batches), **more)
    for layer in (whole.embedding, *set(whole.layers), whole.head):
        for item in _kept(layer):
            found = np.broadcast_to(tensor_bytes(item, many, together), len(alone))
            for index, cut in enumerate(alone):
                assert found[index] == tensor_bytes(item, workload(64, micro_batches[index], **more), cut), item.name


@given(axis=st.sampled_from(TensorAxis), size=st.integers(1, 64), tps=st.lists(st.integers(1, 8), min_size=1))
def test_local_sizes_of_an_array_equal_those_of_each(axis: TensorAxis, size: int, tps: list[int]) -> None:
    names = Degrees.__dataclass_fields__
    alone = [degrees(tp=tp) for tp in tps]
    together = candidates(**{name: [getattr(cut, name) for cut in alone] for name in names})
    found = np.broadcast_to(local_size(axis, size, together, vocab_padding=8), len(tps))
    assert found.tolist() == [local_size(axis, size, cut, vocab_padding=8) for cut in alone]
