"""What a transformer is, in numbers: the architecture of a decoder, dense or mixture of experts."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

MAX_LAYERS = 100_000
MAX_WIDTH = 100_000_000
Count = Annotated[int, Field(ge=1, le=MAX_WIDTH)]
"""A size of a tensor axis: a positive whole number small enough to be meant."""


class Norm(StrEnum):
    """Kind of normalisation."""

    LAYERNORM = "layernorm"
    RMSNORM = "rmsnorm"


class Positions(StrEnum):
    """How a token knows its place."""

    LEARNED = "learned"
    ROTARY = "rotary"
    NONE = "none"


class LatentAttention(BaseModel):
    """Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434): low-rank queries, keys and values."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    query_rank: Annotated[int, Field(ge=0, le=MAX_WIDTH)] = Field(
        0, description="Low-rank size of the queries; 0: queries are not compressed."
    )
    kv_rank: Count = Field(description="Low-rank size of keys and values.")
    nope_head_dim: Count = Field(description="Size of a head's part without rotary positions.")
    rope_head_dim: Count = Field(description="Size of a head's rotary part; its key is shared by all heads.")
    value_head_dim: Count = Field(description="Size of a value head.")


class Experts(BaseModel):
    """The mixture-of-experts MLP that replaces the dense one from layer `first_dense_layers` on."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    count: Count = Field(description="Routed experts of a layer.")
    top_k: Count = Field(description="Routed experts chosen for each token.")
    ffn: Count = Field(description="Width of one expert's hidden layer.")
    shared: Annotated[int, Field(ge=0, le=1024)] = Field(0, description="Shared experts, applied to every token.")
    shared_ffn: Count | None = Field(None, description="Width of a shared expert; default: that of a routed expert.")
    first_dense_layers: Annotated[int, Field(ge=0, le=MAX_LAYERS)] = Field(
        0, description="Layers at the start that keep a dense MLP of width `ffn`."
    )
    router_bias: bool = Field(False, description="Per-expert correction bias beside the router (not gradient-trained).")

    @model_validator(mode="after")
    def _chosen_exist(self) -> Self:
        if self.top_k > self.count:
            raise ValueError(f"top_k is {self.top_k}, but there are only {self.count} experts")
        return self


class ModelSpec(BaseModel):
    """A decoder transformer; every built-in model and every model file is one of these."""

    model_config = ConfigDict(frozen=True, extra="forbid", str_strip_whitespace=True)

    name: str = Field(min_length=1, max_length=200, description="Name shown in reports.")
    description: str = Field("", description="Free text.")
    source: str = Field("", description="Where the figures come from.")
    layers: Annotated[int, Field(ge=1, le=MAX_LAYERS)] = Field(description="Transformer layers.")
    hidden: Count = Field(description="Hidden size h.")
    heads: Count = Field(description="Query heads a.")
    kv_heads: Count | None = Field(None, description="Key-value heads g (GQA; 1 is MQA); default: as many as heads.")
    head_dim: Count | None = Field(None, description="Head size d; default: hidden / heads.")
    latent_attention: LatentAttention | None = Field(None, description="Multi-head latent attention instead of GQA.")
    ffn: Count | None = Field(None, description="Width f of a dense MLP; needed unless every layer has experts.")
    gated_mlp: bool = Field(True, description="Three matrices (SwiGLU, GeGLU) instead of two.")
    experts: Experts | None = Field(None, description="Mixture of experts.")
    vocab: Count = Field(description="Rows of the token table, without padding.")
    norm: Norm = Field(Norm.RMSNORM, description="Normalisation before attention and MLP and at the end.")
    positions: Positions = Field(Positions.ROTARY, description="Position encoding.")
    max_positions: Count | None = Field(None, description="Rows of the table of learned positions.")
    biases: bool = Field(False, description="Biases on all linear layers of attention and MLP.")
    tied_embeddings: bool = Field(False, description="The head shares the token table.")
    dropout: bool = Field(False, description="Dropout in training (its masks are kept for backward).")
    nominal_parameters: str = Field("", description="Parameter count as its authors print it.")

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.head_dim is None and self.latent_attention is None and self.hidden % self.heads:
            raise ValueError(f"heads is {self.heads}, which does not divide hidden, {self.hidden}; give head_dim")
        if self.heads % self.key_value_heads:
            raise ValueError(f"kv_heads is {self.key_value_heads}, which does not divide heads, {self.heads}")
        if self.positions is Positions.LEARNED and self.max_positions is None:
            raise ValueError("learned positions need max_positions, the rows of their table")
        dense_layers = self.layers if self.experts is None else self.experts.first_dense_layers
        if dense_layers and self.ffn is None:
            raise ValueError("a model with dense layers needs ffn, the width of their MLP")
        if dense_layers > self.layers:
            raise ValueError(f"first_dense_layers is {dense_layers}, but there are only {self.layers} layers")
        return self

    @property
    def key_value_heads(self) -> int:
        """Key-value heads g, the default filled in."""
        return self.heads if self.kv_heads is None else self.kv_heads

    @property
    def head_size(self) -> int:
        """Head size d, the default filled in."""
        return self.hidden // self.heads if self.head_dim is None else self.head_dim
