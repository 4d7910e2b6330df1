"""Parameter counts: totals of public models to the single parameter, and their parts."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given

from simulator.model.decoder import build_model
from simulator.model.layers import Block, Layer, LayerKind, Model
from simulator.model.operators import ExpertMatMul
from simulator.model.spec import Experts, ModelSpec, Norm
from simulator.model.tensors import Weight
from simulator.parallel.sharding import is_expert, padded_vocab
from tests.model.architectures import LIBRARY, built_in, from_table, gpt, latent, model, specs
from tests.oracles import Record, each, read

GB = 1e9


def _block(layer: Layer, name: str) -> Block:
    return next(block for block in layer.blocks if block.name == name)


def _is_block_norm(weight: Weight) -> bool:
    """Whether a weight is of the norm before a block; norms of low-rank latents belong to the attention."""
    return weight.name.rsplit(" ", 1)[0] in ("attention norm", "mlp norm", "final norm")


def _norms(layer: Layer) -> int:
    return sum(weight.count for weight in layer.weights if _is_block_norm(weight))


def _without_norm(block: Block) -> int:
    weights = [weight for operator in block.operators for weight in operator.weights]
    return sum(weight.count for weight in weights if not _is_block_norm(weight))


def _named(layer: Layer, name: str) -> int:
    return sum(weight.count for weight in layer.weights if weight.name == name)


def _experts(layer: Layer) -> int:
    return sum(weight.count for weight in layer.weights if is_expert(weight))


def _one_expert(whole: Model) -> int:
    assert whole.spec.experts is not None
    return _experts(whole.layers[-1]) // whole.spec.experts.count


PARTS: dict[str, Callable[[Model], int]] = {
    "total": lambda whole: whole.num_parameters,
    "active": lambda whole: whole.num_active_parameters,
    "total_without_router_bias": lambda whole: sum(
        weight.count
        for layer in (whole.embedding, *whole.layers, whole.head)
        for weight in layer.weights
        if weight.trained
    ),
    "active_without_input_embedding": lambda whole: whole.num_active_parameters - whole.num_embedding_parameters,
    "mla_layer": lambda whole: _without_norm(_block(whole.layers[0], "attention")),
    "token_embedding": lambda whole: _named(whole.embedding, "token_table"),
    "one_embedding": lambda whole: _named(whole.head, "head_table"),
    "position_embedding": lambda whole: _named(whole.embedding, "position_table"),
    "attention_of_one_layer": lambda whole: _without_norm(_block(whole.layers[0], "attention")),
    "mlp_of_one_layer": lambda whole: _without_norm(_block(whole.layers[0], "mlp")),
    "dense_layer_mlp": lambda whole: _without_norm(_block(whole.layers[0], "mlp")),
    "norms_of_one_layer": lambda whole: _norms(whole.layers[0]),
    "final_norm": lambda whole: _norms(whole.head),
    "one_layer": lambda whole: whole.layers[0].num_parameters,
    "one_expert": _one_expert,
    "one_layer_experts": lambda whole: _experts(whole.layers[-1]),
    "router_of_one_layer": lambda whole: _named(whole.layers[-1], "router"),
    "moe_mlp_of_one_layer": lambda whole: _without_norm(_block(whole.layers[-1], "experts")),
}
MODELS = sorted({row["inputs"]["model"] for row in read("parameters")["records"] if "model" in row["inputs"]})


def _parts() -> tuple[str, ...]:
    rows = [row["id"] for row in read("parameters")["records"] if "model" in row["inputs"]]
    return tuple(name for name in rows if "layer_on_tp_rank" not in name)


@each("parameters", *_parts())
def test_a_count_of_a_public_model_is_that_of_its_authors_code(record: Record) -> None:
    part = record.id.rsplit(".", 1)[1]
    assert record.agrees_with(PARTS[part](model(record.inputs["model"])))


@pytest.mark.parametrize("name", [name for name in MODELS if name in LIBRARY])
def test_a_built_in_model_is_the_one_of_the_table(name: str) -> None:
    left_out = {"name", "description", "source", "nominal_parameters"}
    ours, theirs = built_in(name), from_table(name)
    assert (ours.key_value_heads, ours.head_size if ours.latent_attention is None else 0) == (
        theirs.key_value_heads,
        theirs.head_size if theirs.latent_attention is None else 0,
    )
    left_out |= {"kv_heads", "head_dim"}
    assert ours.model_dump(exclude=left_out) == theirs.model_dump(exclude=left_out)


@pytest.mark.parametrize("name", LIBRARY)
def test_a_built_in_model_has_about_its_nominal_parameters(name: str) -> None:
    spec = built_in(name)
    units = {"M": 1e6, "B": GB, "T": 1e12}
    nominal = float(spec.nominal_parameters[:-1]) * units[spec.nominal_parameters[-1]]
    assert model(name).num_parameters == pytest.approx(nominal, rel=0.06)
    assert spec.source


@each("parameters", "params.megatron-sc21.")
def test_gpt_models_of_the_megatron_paper_have_the_parameters_of_its_equation_2(record: Record) -> None:
    inputs = record.inputs
    built = build_model(
        gpt(
            layers=inputs["layers"],
            hidden=inputs["hidden"],
            heads=inputs["hidden"] // 64,
            vocab=inputs["vocab"],
            positions=inputs["seq"],
        ),
        sequence_length=inputs["seq"],
    )
    # The equation leaves out the 2h of the final norm.
    assert record.agrees_with(built.num_parameters - built.head.num_parameters)
    assert built.head.num_parameters == 2 * inputs["hidden"]


def _attention_spec(inputs: dict[str, int]) -> ModelSpec:
    return ModelSpec(
        name="block",
        layers=1,
        hidden=inputs["hidden"],
        heads=inputs["heads"],
        kv_heads=inputs.get("kv_heads"),
        head_dim=inputs.get("head_dim"),
        latent_attention=latent(inputs) if "kv_lora" in inputs else None,
        ffn=1,
        vocab=1,
        biases=bool(inputs.get("bias", False)),
    )


def _mlp_spec(inputs: dict[str, int]) -> ModelSpec:
    biases = bool(inputs.get("bias", False))
    fields = {"hidden": inputs["hidden"], "ffn": inputs["ffn"], "gated_mlp": not biases, "biases": biases}
    return ModelSpec(name="block", layers=1, heads=1, vocab=1, **fields)


def _norm_spec(inputs: dict[str, int], norm: Norm) -> ModelSpec:
    return ModelSpec(name="block", layers=1, hidden=inputs["hidden"], heads=1, ffn=1, vocab=1, norm=norm)


def _experts_spec(inputs: dict[str, int]) -> ModelSpec:
    experts = Experts(count=inputs["experts"], top_k=1, ffn=inputs["expert_ffn"], shared=inputs["shared_experts"])
    return ModelSpec(name="block", layers=1, hidden=inputs["hidden"], heads=1, vocab=1, experts=experts)


def _count_of_block(spec: ModelSpec, name: str) -> int:
    return _without_norm(_block(build_model(spec, sequence_length=1).layers[0], name))


def _count_of_final_norm(spec: ModelSpec) -> int:
    return _norms(build_model(spec, sequence_length=1).head)


@each("parameters", "params.block.m", "params.block.gqa")
def test_a_block_has_the_parameters_of_its_closed_form(record: Record) -> None:
    name = record.id.removeprefix("params.block.")
    if name.startswith("mlp"):
        count = _count_of_block(_mlp_spec(record.inputs), "mlp")
    elif name.startswith("moe"):
        count = _count_of_block(_experts_spec(record.inputs), "experts")
    else:
        count = _count_of_block(_attention_spec(record.inputs), "attention")
    assert record.agrees_with(count)


@each("parameters", "params.block.layernorm", "params.block.rmsnorm")
def test_a_norm_has_a_scale_and_a_layernorm_a_shift_too(record: Record) -> None:
    norm = Norm(record.id.removeprefix("params.block."))
    assert record.agrees_with(_count_of_final_norm(_norm_spec(record.inputs, norm)))


@each("parameters", "params.vocab_padding.")
def test_the_vocabulary_is_padded_as_megatron_pads_it(record: Record) -> None:
    inputs = record.inputs
    assert record.agrees_with(padded_vocab(inputs["vocab"], tp=inputs["tp"], multiple=inputs["make_divisible_by"]))


def test_layers_of_one_kind_are_one_object() -> None:
    deepseek = model("deepseek-v3")
    assert [layer.kind for layer in deepseek.layers] == [LayerKind.DENSE] * 3 + [LayerKind.EXPERTS] * 58
    assert len({id(layer) for layer in deepseek.layers}) == 2


@given(spec=specs())
def test_the_total_is_the_sum_of_the_closed_forms(spec: ModelSpec) -> None:
    h, a, g, d = spec.hidden, spec.heads, spec.key_value_heads, spec.head_size
    norm = h * (2 if spec.norm is Norm.LAYERNORM else 1)
    low = 2 if spec.norm is Norm.LAYERNORM else 1
    if (mla := spec.latent_attention) is not None:
        qk = mla.nope_head_dim + mla.rope_head_dim
        attention = h * (mla.kv_rank + mla.rope_head_dim) + low * mla.kv_rank
        attention += mla.kv_rank * a * (mla.nope_head_dim + mla.value_head_dim) + a * mla.value_head_dim * h
        query = h * mla.query_rank + low * mla.query_rank + mla.query_rank * a * qk
        attention += query if mla.query_rank else h * a * qk
        attention += h if spec.biases else 0
    else:
        attention = 2 * h * a * d + 2 * h * g * d + (a * d + 2 * g * d + h if spec.biases else 0)
    matrices = 3 if spec.gated_mlp else 2

    def mlp(width: int) -> int:
        return matrices * h * width + ((matrices - 1) * width + h if spec.biases else 0)

    moe = dense = 0
    num_dense = spec.layers
    if (experts := spec.experts) is not None:
        num_dense = experts.first_dense_layers
        width = experts.shared * (experts.shared_ffn or experts.ffn)
        moe = experts.count * (mlp(experts.ffn) + h + experts.router_bias) + (mlp(width) if width else 0)
    dense = mlp(spec.ffn or 0)
    tables = spec.vocab * h * (1 if spec.tied_embeddings else 2) + (spec.max_positions or 0) * h
    layers = spec.layers * (attention + 2 * norm) + num_dense * dense + (spec.layers - num_dense) * moe
    assert build_model(spec, sequence_length=1).num_parameters == tables + layers + norm


@given(spec=specs())
def test_active_parameters_are_all_but_the_experts_not_chosen(spec: ModelSpec) -> None:
    whole = build_model(spec, sequence_length=1)
    chosen = 1.0 if spec.experts is None else spec.experts.top_k / spec.experts.count
    routed = sum(
        weight.count
        for layer in whole.layers
        for operator in layer.operators
        if isinstance(operator, ExpertMatMul)
        for weight in operator.weights
    )
    assert whole.num_active_parameters == pytest.approx(whole.num_parameters - (1 - chosen) * routed)
