"""Models of the tests: the built-in ones, those of the oracles' table, GPT models of the papers, and random ones."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import yaml
from hypothesis import strategies as st

import simulator.model
from simulator.model.decoder import build_model
from simulator.model.kernels import Kernels
from simulator.model.layers import Model
from simulator.model.spec import (
    Attention,
    Bias,
    Embedding,
    Experts,
    LatentAttention,
    ModelSpec,
    Norm,
    NormPlacement,
    OutputHead,
    ParallelBlocks,
    Positions,
    QKNorm,
)
from tests.oracles import read

LIBRARY = {path.stem: path for path in sorted((Path(simulator.model.__file__).parent / "library").glob("*.yaml"))}


def built_in(name: str) -> ModelSpec:
    return ModelSpec.model_validate(yaml.safe_load(LIBRARY[name].read_text(encoding="utf-8")))


def from_table(name: str, variant: str = "") -> ModelSpec:
    """A model of the oracles' table, which knows nothing of this project's files.

    Args:
        name: in the table.
        variant: `mlm` and `pretrain`: with the heads of BERT's pretraining; `pooler`: without a classifier.
    """
    row = read("architectures")["models"][name]
    fields = FAMILIES[row["family"]](row, variant)
    return ModelSpec.model_validate({"name": name} | {key: value for key, value in fields.items() if value is not None})


def _transformer(row: dict[str, Any]) -> dict[str, Any]:
    names = ("layers", "hidden", "heads", "kv_heads", "head_dim", "ffn", "vocab", "norm")
    return {name: row.get(name) for name in names} | {"tied_embeddings": row.get("tied", False)}


def _gpt(row: dict[str, Any], _: str) -> dict[str, Any]:
    fields = _transformer(row) | {"biases": True, "gated_mlp": False}
    if row["family"] == "gpt2-alibi":
        return fields | {"positions": "alibi", "embedding": {"norm": row["embedding_layernorm"]}}
    return fields | {"positions": "learned", "max_positions": row["positions"], "dropout": True}


def _bert(row: dict[str, Any], variant: str) -> dict[str, Any]:
    heads = {
        "": {"language_model": False, "pooler": row["pooler"]},
        "mlm": {"transform": True, "bias": True},
        "pretrain": {"transform": True, "bias": True, "pooler": True, "classes": 2},
    }
    return _transformer(row) | {
        "attention": {"causal": False},
        "gated_mlp": False,
        "biases": True,
        "dropout": True,
        "norm_placement": "post",
        "distinct_layers": row.get("distinct_layers"),
        "positions": "learned",
        "max_positions": row["positions"],
        "embedding": {"norm": True, "token_types": row["token_types"], "width": row.get("embedding")},
        "output_head": heads[variant],
        "tied_embeddings": bool(variant),
    }


def _t5(row: dict[str, Any], _: str) -> dict[str, Any]:
    return _transformer(row) | {
        "layers": row["decoder_layers"],
        "encoder": {"layers": row["encoder_layers"]},
        "gated_mlp": row["gated"],
        "dropout": True,
        "positions": "relative",
        "position_buckets": row["relative_buckets"],
    }


def _vit(row: dict[str, Any], variant: str) -> dict[str, Any]:
    return _transformer(row) | {
        "attention": {"causal": False},
        "gated_mlp": False,
        "biases": True,
        "positions": "learned",
        "image": {"size": row["image"], "patch": row["patch"], "channels": row["channels"], "class_token": True},
        "output_head": {"pooler": True} if variant == "pooler" else {"classes": row["classes"]},
    }


def _resnet(row: dict[str, Any], _: str) -> dict[str, Any]:
    return {
        "layers": sum(row["depths"]),
        "hidden": 2048 if row["bottleneck"] else 512,
        "image": {"size": 224},
        "convolution": {"blocks": row["depths"], "bottleneck": row["bottleneck"]},
        "output_head": {"classes": row["classes"]},
    }


def _llama(row: dict[str, Any], _: str) -> dict[str, Any]:
    fields = _transformer(row) | {"ffn": row.get("ffn", row.get("dense_ffn"))}
    if row.get("qk_norm"):
        fields["attention"] = {"qk_norm": "head"}
    if (mla := row.get("mla")) is not None:
        fields["latent_attention"] = latent(mla)
    if "experts" in row:
        fields["experts"] = Experts(
            count=row["experts"],
            top_k=row["top_k"],
            ffn=row["expert_ffn"],
            shared=row["shared_experts"],
            first_dense_layers=row["dense_layers"],
            router_bias=row.get("router_bias", False),
        )
    return fields


def _palm(row: dict[str, Any], _: str) -> dict[str, Any]:
    return _transformer(row) | {"norm": "layernorm_no_bias", "parallel_blocks": "shared_norm"}


FAMILIES = {
    "gpt2": _gpt,
    "gpt2-alibi": _gpt,
    "bert": _bert,
    "albert": _bert,
    "t5": _t5,
    "vit": _vit,
    "resnet": _resnet,
    "llama": _llama,
    "llama-moe": _llama,
    "mla-moe": _llama,
    "palm": _palm,
}


def latent(sizes: dict[str, int]) -> LatentAttention:
    return LatentAttention(
        query_rank=sizes["q_lora"],
        kv_rank=sizes["kv_lora"],
        nope_head_dim=sizes["nope"],
        rope_head_dim=sizes["rope"],
        value_head_dim=sizes["v_head"],
    )


def gpt(*, layers: int, hidden: int, heads: int, vocab: int = 51200, positions: int = 2048, **more: Any) -> ModelSpec:
    """A GPT model as the Megatron papers have it: f = 4h, biases, dropout, learned positions, tied table."""
    fields: dict[str, Any] = {
        "name": "gpt",
        "layers": layers,
        "hidden": hidden,
        "heads": heads,
        "ffn": 4 * hidden,
        "vocab": vocab,
        "gated_mlp": False,
        "norm": Norm.LAYERNORM,
        "positions": Positions.LEARNED,
        "max_positions": positions,
        "biases": True,
        "tied_embeddings": True,
        "dropout": True,
    }
    return ModelSpec(**(fields | more))


@cache
def model(name: str, sequence_length: int = 1, *, flash: bool = True) -> Model:
    """A model by name: the built-in one where there is one, else that of the oracles' table."""
    spec = built_in(name) if name in LIBRARY else from_table(name)
    return build_model(spec, sequence_length=sequence_length, kernels=Kernels(flash_attention=flash))


@st.composite
def specs(draw: st.DrawFn) -> ModelSpec:
    """Random decoders whose widths divide by any of the tensor and expert degrees 1, 2, 4."""
    kv_heads = draw(st.sampled_from([1, 2, 4, 8]))
    heads = kv_heads * draw(st.sampled_from([1, 2, 3])) if kv_heads >= 4 else 8
    layers = draw(st.integers(1, 9))
    experts = None
    if draw(st.booleans()):
        count = 4 * draw(st.integers(1, 4))
        experts = Experts(
            count=count,
            top_k=draw(st.integers(1, count)),
            ffn=4 * draw(st.integers(1, 20)),
            gated=draw(st.none() | st.booleans()),
            shared=draw(st.integers(0, 2)),
            shared_ffn=draw(st.none() | st.integers(1, 20).map(lambda width: 4 * width)),
            shared_gate=draw(st.booleans()),
            first_dense_layers=draw(st.integers(0, layers)),
            every=draw(st.integers(1, 3)),
            router_bias=draw(st.booleans()),
        )
    ranks = st.integers(1, 64)
    mla = st.builds(
        LatentAttention,
        query_rank=st.integers(0, 64),
        kv_rank=ranks,
        nope_head_dim=ranks,
        rope_head_dim=ranks,
        value_head_dim=ranks,
    )
    latent_attention = draw(st.none() | mla)
    unknown_with_latent = {Positions.SINUSOIDAL} if latent_attention is None else {Positions.RELATIVE_PROJECTED}
    positions = draw(st.sampled_from([each for each in Positions if each not in unknown_with_latent]))
    placement = draw(st.sampled_from(NormPlacement))
    windows = draw(st.lists(st.just("all") | st.integers(1, 64), min_size=1, max_size=layers))
    parallel = st.sampled_from(ParallelBlocks)
    plain = latent_attention is None
    return ModelSpec(
        name="random",
        layers=layers,
        hidden=draw(st.integers(1, 300)),
        heads=heads,
        kv_heads=kv_heads,
        head_dim=draw(st.integers(1, 128)),
        attention=Attention(
            windows=tuple(windows),
            causal=draw(st.booleans()),
            qk_norm=draw(st.sampled_from(QKNorm)) if plain else QKNorm.NONE,
            sinks=plain and draw(st.booleans()),
        ),
        latent_attention=latent_attention,
        ffn=4 * draw(st.integers(1, 100)),
        gated_mlp=draw(st.booleans()),
        experts=experts,
        parallel_blocks=(
            draw(parallel) if plain and experts is None and placement is NormPlacement.PRE else ParallelBlocks.NONE
        ),
        vocab=4 * draw(st.integers(1, 500)),
        norm=draw(st.sampled_from(Norm)),
        norm_placement=placement,
        positions=positions,
        max_positions=draw(st.integers(1, 100)),
        biases=draw(st.booleans() | st.lists(st.sampled_from(Bias), unique=True).map(tuple)),
        embedding=Embedding(token_types=draw(st.integers(0, 3)), norm=draw(st.booleans())),
        output_head=OutputHead(
            bias=draw(st.booleans()),
            transform=draw(st.booleans()),
            pooler=draw(st.booleans()),
            classes=draw(st.integers(0, 9)),
        ),
        tied_embeddings=draw(st.booleans()),
        dropout=draw(st.booleans()),
    )
