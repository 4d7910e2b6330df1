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
from simulator.model.spec import Experts, LatentAttention, ModelSpec, Norm, Positions
from tests.oracles import read

LIBRARY = {path.stem: path for path in sorted((Path(simulator.model.__file__).parent / "library").glob("*.yaml"))}


def built_in(name: str) -> ModelSpec:
    return ModelSpec.model_validate(yaml.safe_load(LIBRARY[name].read_text(encoding="utf-8")))


def from_table(name: str) -> ModelSpec:
    """A model of the oracles' table, which knows nothing of this project's files. qk_norm is not expressible."""
    row = read("architectures")["models"][name]
    fields: dict[str, Any] = {
        "name": name,
        "layers": row["layers"],
        "hidden": row["hidden"],
        "heads": row["heads"],
        "kv_heads": row.get("kv_heads"),
        "head_dim": row.get("head_dim"),
        "ffn": row.get("ffn", row.get("dense_ffn")),
        "vocab": row["vocab"],
        "norm": row["norm"],
        "tied_embeddings": row["tied"],
    }
    if row["family"] == "gpt2":
        fields |= {"positions": "learned", "max_positions": row["positions"], "biases": True, "gated_mlp": False}
        fields |= {"dropout": True}
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
    return ModelSpec(**fields)


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
            shared=draw(st.integers(0, 2)),
            shared_ffn=draw(st.none() | st.integers(1, 20).map(lambda width: 4 * width)),
            first_dense_layers=draw(st.integers(0, layers)),
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
    positions = draw(st.sampled_from([Positions.LEARNED, Positions.ROTARY, Positions.NONE]))
    return ModelSpec(
        name="random",
        layers=layers,
        hidden=draw(st.integers(1, 300)),
        heads=heads,
        kv_heads=kv_heads,
        head_dim=draw(st.integers(1, 128)),
        latent_attention=draw(st.none() | mla),
        ffn=4 * draw(st.integers(1, 100)),
        gated_mlp=draw(st.booleans()),
        experts=experts,
        vocab=4 * draw(st.integers(1, 500)),
        norm=draw(st.sampled_from([Norm.LAYERNORM, Norm.RMSNORM])),
        positions=positions,
        max_positions=draw(st.integers(1, 100)) if positions is Positions.LEARNED else None,
        biases=draw(st.booleans()),
        tied_embeddings=draw(st.booleans()),
        dropout=draw(st.booleans()),
    )
