"""What a model is, in numbers: transformers of every common shape, and residual convolutional networks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from simulator.model.parts import (
    MAX_LAYERS,
    MAX_WIDTH,
    Attention,
    Bias,
    Convolution,
    Count,
    Diffusion,
    Embedding,
    Encoder,
    Experts,
    Image,
    LatentAttention,
    Layers,
    Norm,
    NormPlacement,
    OutputHead,
    ParallelBlocks,
    Positions,
    QKNorm,
)

__all__ = [
    "MAX_LAYERS",
    "MAX_WIDTH",
    "Attention",
    "Bias",
    "Convolution",
    "Diffusion",
    "Embedding",
    "Encoder",
    "Experts",
    "Image",
    "LatentAttention",
    "ModelSpec",
    "Norm",
    "NormPlacement",
    "OutputHead",
    "ParallelBlocks",
    "Positions",
    "QKNorm",
]
ALL_LINEAR = frozenset({Bias.QKV, Bias.ATTENTION_OUTPUT, Bias.MLP})
"""What `biases: true` means: the linear layers of attention and MLP, not the router."""
TABLES = (Positions.LEARNED, Positions.SINUSOIDAL)
"""Positions that are rows of a table."""


class ModelSpec(BaseModel):
    """A model; every built-in one and every model file is one of these.

    The top level describes a decoder transformer. Groups make it something else: `attention.causal: false` an
    encoder, `encoder` an encoder-decoder, `image` a vision transformer, with `diffusion` a diffusion transformer,
    with `convolution` a ResNet.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", str_strip_whitespace=True)

    name: str = Field(min_length=1, max_length=200, description="Name shown in reports.")
    description: str = Field("", description="Free text.")
    source: str = Field("", description="Where the figures come from.")
    nominal_parameters: str = Field("", description="Parameter count as its authors print it.")
    layers: Layers = Field(description="Transformer layers (of the decoder), or residual blocks of a ResNet.")
    hidden: Count = Field(description="Hidden size h; of a ResNet: channels that leave its last group.")
    heads: Count = Field(1, description="Query heads a; a transformer must say it.")
    kv_heads: Count | None = Field(None, description="Key-value heads g (GQA; 1 is MQA); default: as many as heads.")
    head_dim: Count | None = Field(None, description="Head size d; default: hidden / heads.")
    attention: Attention = Field(Attention(), description="What attention looks at: mask, windows, norms, sinks.")
    latent_attention: LatentAttention | None = Field(None, description="Multi-head latent attention instead of GQA.")
    ffn: Count | None = Field(None, description="Width f of a dense MLP; needed unless every layer has experts.")
    gated_mlp: bool = Field(True, description="Three matrices (SwiGLU, GeGLU) instead of two.")
    experts: Experts | None = Field(None, description="Mixture of experts.")
    parallel_blocks: ParallelBlocks = Field(ParallelBlocks.NONE, description="Attention and MLP side by side.")
    norm: Norm = Field(Norm.RMSNORM, description="Kind of the norms of layers and of the end.")
    norm_placement: NormPlacement = Field(NormPlacement.PRE, description="Where the norms of a layer stand.")
    biases: bool | tuple[Bias, ...] = Field(
        False, description="Biases on all linear layers of attention and MLP, or the list of those that have one."
    )
    dropout: bool = Field(False, description="Dropout in training (its masks are kept for backward).")
    distinct_layers: Layers | None = Field(
        None, description="Layers that are stored, each used layers / distinct_layers times in a row (ALBERT: 1)."
    )
    vocab: Annotated[int, Field(ge=0, le=MAX_WIDTH)] = Field(
        0, description="Rows of the token table, without padding; a model of text must say it."
    )
    positions: Positions = Field(Positions.ROTARY, description="Position encoding.")
    max_positions: Count | None = Field(
        None, description="Rows of the table of positions; of a model of images: default, one for each token."
    )
    position_buckets: Count = Field(32, description="Rows of the table of relative position biases.")
    embedding: Embedding = Field(Embedding(), description="What the token embedding has beside its table.")
    tied_embeddings: bool = Field(False, description="The head shares the token table.")
    output_head: OutputHead = Field(OutputHead(), description="What stands behind the last layer.")
    mtp_layers: Annotated[int, Field(ge=0, le=64)] = Field(
        0, description="Multi-token-prediction modules behind the last layer (DeepSeek-V3: 1)."
    )
    encoder: Encoder | None = Field(None, description="An encoder that the decoder attends to.")
    image: Image | None = Field(None, description="Images in place of tokens.")
    diffusion: Diffusion | None = Field(None, description="Diffusion transformer over image patches.")
    convolution: Convolution | None = Field(None, description="Residual convolutional network over images.")

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if problem := next(self._problems(), None):
            raise ValueError(problem)
        return self

    def _problems(self) -> Iterator[str]:
        """Yields what does not fit together."""
        if self.convolution is not None:
            yield from self._network_problems(self.convolution)
            return
        yield from self._attention_problems()
        yield from self._layer_problems()
        yield from self._end_problems()

    def _network_problems(self, convolution: Convolution) -> Iterator[str]:
        if self.image is None or self.image.patch is not None:
            yield "convolution works on an image without patches; give image with size and channels only"
        if self.layers != sum(convolution.blocks):
            yield f"layers is {self.layers}, but convolution.blocks add up to {sum(convolution.blocks)}"
        if self.hidden != convolution.features:
            yield f"hidden is {self.hidden}, but {convolution.features} channels leave the last group of convolution"
        strange = {"vocab", "encoder", "diffusion", "experts", "latent_attention", "ffn"}
        if given := sorted(name for name in strange if getattr(self, name)):
            yield f"{given[0]} is given, but a convolutional network has none; remove it"

    def _attention_problems(self) -> Iterator[str]:
        if "heads" not in self.model_fields_set:
            yield "heads is missing; give the query heads of the transformer"
        if self.head_dim is None and self.latent_attention is None and self.hidden % self.heads:
            yield f"heads is {self.heads}, which does not divide hidden, {self.hidden}; give head_dim"
        if self.heads % self.key_value_heads:
            yield f"kv_heads is {self.key_value_heads}, which does not divide heads, {self.heads}"
        latent = self.latent_attention is not None
        if latent and (self.attention.sinks or self.attention.qk_norm is not QKNorm.NONE):
            yield "latent_attention has norms of its own and no sinks; remove attention.qk_norm and attention.sinks"
        if latent and self.encoder is not None:
            yield "latent_attention with an encoder is not known; remove one of them"
        if latent and self.positions is Positions.RELATIVE_PROJECTED:
            yield "latent_attention with projected relative positions is not known; use rotary positions"
        if len(self.attention.windows) > self.num_layers:
            yield f"attention.windows lists {len(self.attention.windows)} layers, but there are {self.num_layers}"

    def _layer_problems(self) -> Iterator[str]:
        if self.num_dense_layers and self.ffn is None:
            yield "a model with dense layers needs ffn, the width of their MLP"
        if self.experts is not None and self.experts.first_dense_layers > self.layers:
            yield f"first_dense_layers is {self.experts.first_dense_layers}, but there are only {self.layers} layers"
        placement = self.norm_placement
        if self.parallel_blocks is not ParallelBlocks.NONE and placement is not NormPlacement.PRE:
            yield f"norm_placement is {placement}, but parallel blocks have their norms before them; use pre"
        if self.parallel_blocks is not ParallelBlocks.NONE and (self.experts is not None or self.encoder is not None):
            yield "parallel_blocks with experts or an encoder is not known; remove one of them"
        if self.distinct_layers is not None:
            if self.layers % self.distinct_layers:
                yield f"distinct_layers is {self.distinct_layers}, which does not divide layers, {self.layers}"
            if self.experts is not None or self.encoder is not None or len(set(self.attention.windows)) > 1:
                yield "distinct_layers needs layers that are all alike; remove experts, encoder and attention.windows"
        if self.diffusion is not None and (self.experts is not None or placement is not NormPlacement.PRE):
            yield "diffusion layers have a dense MLP and norms before their blocks; remove experts and norm_placement"

    def _end_problems(self) -> Iterator[str]:
        if self.image is None and not self.vocab:
            yield "vocab is missing; give the rows of the token table, or an image"
        if self.image is not None:
            if self.image.patch is None:
                yield "image.patch is missing; give the edge of a patch, or convolution"
            if self.vocab or self.encoder is not None or self.mtp_layers or self.has_language_head:
                yield "image stands in place of tokens; remove vocab, encoder, mtp_layers and the language head"
        if self.image is None and self.diffusion is not None:
            yield "diffusion needs an image"
        if self.positions in TABLES and self.num_positions is None:
            yield f"{self.positions} positions need max_positions, the rows of their table"
        if self.tied_embeddings and not self.has_language_head:
            yield "tied_embeddings is true, but there is no head over the vocabulary; set it to false"
        narrow = self.embedding.width is not None and self.embedding.width != self.hidden
        if narrow and self.has_language_head and not self.output_head.transform:
            yield "embedding.width is not hidden, so that the logits need output_head.transform; set it to true"
        if self.mtp_layers and (not self.attention.causal or self.encoder is not None or not self.has_language_head):
            yield "mtp_layers predict further tokens, which only a causal decoder with a language head does; remove it"

    @property
    def key_value_heads(self) -> int:
        """Key-value heads g, the default filled in."""
        return self.heads if self.kv_heads is None else self.kv_heads

    @property
    def head_size(self) -> int:
        """Head size d, the default filled in."""
        return self.hidden // self.heads if self.head_dim is None else self.head_dim

    @property
    def num_layers(self) -> int:
        """Layers that a pipeline can deal out: of encoder, decoder and multi-token prediction together."""
        return self.layers + (0 if self.encoder is None else self.encoder.layers)

    @property
    def num_dense_layers(self) -> int:
        """Layers, of the encoder too, whose MLP is dense."""
        stacks = (self.layers,) if self.encoder is None else (self.encoder.layers, self.layers)
        return sum(self.experts is None or not self.experts.at(layer) for stack in stacks for layer in range(stack))

    @property
    def num_positions(self) -> int | None:
        """Rows of the table of positions, the default of images filled in."""
        return self.image.tokens if self.max_positions is None and self.image is not None else self.max_positions

    @property
    def has_language_head(self) -> bool:
        """Whether logits over the vocabulary are computed, the default filled in."""
        given = self.output_head.language_model
        return self.image is None if given is None else given

    def has_bias(self, layer: Bias) -> bool:
        """Returns whether a linear layer has a bias."""
        return layer in (ALL_LINEAR if self.biases is True else self.biases or ())

    def window(self, layer: int) -> int | None:
        """Returns the keys that a token of a layer, counted from 0, sees; None: all of them."""
        window = self.attention.windows[layer % len(self.attention.windows)]
        return None if window == "all" else window
