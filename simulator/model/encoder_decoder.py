"""An encoder and a decoder that attends to it (T5; E1.7)."""

from __future__ import annotations

from dataclasses import replace

from simulator.model.attention import cross_attention_block
from simulator.model.attention_core import gathered
from simulator.model.embedding import LOOKUP, embedding_block
from simulator.model.kernels import Kernels
from simulator.model.layers import Block, Layer, prefixed
from simulator.model.normalisation import norm
from simulator.model.spec import Encoder, ModelSpec
from simulator.model.tensors import Tokens
from simulator.model.transformer import (
    INPUT,
    MIDDLE,
    OUTPUT,
    LayerPlan,
    layer_blocks,
    plan_of,
    second_block,
    self_attention_block,
    stream,
)

CROSS = "cross"
"""Prefix of what belongs to attention to the encoder."""
ENCODED = "encoder output"
"""What the first layer of the decoder takes over from the last layer of the encoder."""


def encoder_length(encoder: Encoder, *, sequence_length: int) -> int:
    """Returns the tokens of the encoder's input, the default filled in."""
    return encoder.sequence_length or sequence_length


def encoder_decoder_layers(
    spec: ModelSpec, encoder: Encoder, *, sequence_length: int, kernels: Kernels
) -> tuple[Layer, ...]:
    """Returns the layers of the encoder, then those of the decoder; equal layers are one object.

    The last layer of the encoder also has its final norm and gathers its output. The first layer of the decoder saves
    that for all the others, and also embeds the decoder's tokens.
    """
    memory = encoder_length(encoder, sequence_length=sequence_length)
    layers = [
        _encoder_layer(spec, plan_of(spec, index, sequence_length=memory), memory, kernels, is_last=is_last)
        for index, is_last in ((index, index == encoder.layers - 1) for index in range(encoder.layers))
    ]
    layers += [
        _decoder_layer(
            spec,
            plan_of(spec, index, sequence_length=sequence_length),
            sequence_length,
            memory,
            kernels,
            is_first=index == 0,
        )
        for index in range(spec.layers)
    ]
    distinct = {layer.key: layer for layer in reversed(layers)}
    return tuple(distinct[layer.key] for layer in layers)


def _encoder_layer(spec: ModelSpec, plan: LayerPlan, memory: int, kernels: Kernels, *, is_last: bool) -> Layer:
    blocks = layer_blocks(spec, plan, sequence_length=memory, kernels=kernels, causal=False)
    output = OUTPUT
    if is_last:
        final = norm(spec, "encoder final norm", source=OUTPUT, feeds_gemm=False, kernels=kernels)
        gather = gathered(final.writes[0])
        output = gather.writes[0].name
        blocks += (Block(name="encoder end", entry=(final,), core=(gather,)),)
    return Layer(
        kind=plan.kind,
        variety=_variety("encoder", plan, "last" if is_last else ""),
        blocks=blocks,
        input=stream(spec, INPUT),
        output=output,
        sequence_length=memory,
    )


def _decoder_layer(
    spec: ModelSpec, plan: LayerPlan, sequence_length: int, memory: int, kernels: Kernels, *, is_first: bool
) -> Layer:
    embedding = _decoder_embedding(spec, kernels) if is_first else ()
    attention = self_attention_block(
        spec,
        plan,
        sequence_length=sequence_length,
        source=embedding[0].operators[-1].writes[0].name if embedding else INPUT,
        result=MIDDLE,
        kernels=kernels,
    )
    cross = cross_attention_block(
        spec,
        sequence_length=sequence_length,
        memory_tokens=memory,
        memory=ENCODED if is_first else None,
        source=stream(spec, MIDDLE),
        result="residual",
        kernels=kernels,
    )
    mlp = second_block(spec, plan, source=f"{CROSS} residual", kernels=kernels)
    return Layer(
        kind=plan.kind,
        variety=_variety("decoder", plan, "first" if is_first else ""),
        blocks=(*embedding, attention, *prefixed((cross,), CROSS), mlp),
        input=stream(spec, ENCODED, Tokens.MEMORY) if is_first else stream(spec, INPUT),
        output=OUTPUT,
        memory_tokens=memory,
    )


def _decoder_embedding(spec: ModelSpec, kernels: Kernels) -> tuple[Block, ...]:
    """The embedding of the decoder's tokens in the encoder's table; their ids, 8 bytes each, are left out."""
    block = embedding_block(spec, stores_table=False, kernels=kernels)
    core = tuple(
        replace(operator, reads=(), saves=()) if operator.name == LOOKUP else operator for operator in block.core
    )
    return (replace(block, core=core),)


def _variety(stack: str, plan: LayerPlan, place: str) -> str:
    return " ".join(filter(None, (stack, plan.variety, place)))
