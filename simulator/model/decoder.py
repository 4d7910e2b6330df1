"""Builds a decoder: embedding, layers, head, from its specification."""

from __future__ import annotations

from simulator.errors import SimulatorFault
from simulator.model.attention import attention_block
from simulator.model.feedforward import experts_block, mlp_block
from simulator.model.layers import Block, Layer, LayerKind, Model
from simulator.model.normalisation import dropout, norm
from simulator.model.operators import MatMul, Operator, Streamed
from simulator.model.spec import ModelSpec, Positions
from simulator.model.tensors import Axes, Element, Kept, TensorAxis, Tokens, Weight

LOOKUP_BYTES = 4.0
"""Bytes an element of a table lookup: read a row, write it. Derived; backward adds into the table's gradient."""
LOSS_UNFUSED_FORWARD_BYTES, LOSS_UNFUSED_BACKWARD_BYTES = 14.0, 10.0
"""Bytes a logit of an unfused cross-entropy: cast to fp32 (2 + 4), maximum (4), exp and sum (4); backward: read
softmax, write gradient in fp32, cast to 16 bits (4 + 4 + 2). Derived from E3.10's tensors."""
LOSS_FUSED_FORWARD_BYTES, LOSS_FUSED_BACKWARD_BYTES = 4.0, 2.0
"""Bytes a logit of a fused cross-entropy that writes the gradient over the logits. Derived."""


def build_model(
    spec: ModelSpec, *, sequence_length: int, flash_attention: bool = True, fused_cross_entropy: bool = False
) -> Model:
    """Returns the model: its layers of operators and weights.

    Args:
        spec: the architecture.
        sequence_length: tokens of a sequence.
        flash_attention: no score matrix in memory (Dao 2023).
        fused_cross_entropy: no fp32 copy of the logits.
    """
    attention = attention_block(spec, sequence_length=sequence_length, flash=flash_attention)
    dense = None if spec.ffn is None else _layer(LayerKind.DENSE, attention, mlp_block(spec, width=spec.ffn))
    routed = None
    if spec.experts is not None:
        routed = _layer(LayerKind.EXPERTS, attention, experts_block(spec, spec.experts))
    num_dense = spec.layers if spec.experts is None else spec.experts.first_dense_layers
    layers: list[Layer] = []
    for layer, count in ((dense, num_dense), (routed, spec.layers - num_dense)):
        if count and layer is None:
            raise SimulatorFault(f"model {spec.name} has {count} layers of a kind that its specification lacks")
        if layer is not None:
            layers += [layer] * count
    table = Weight(name="token_table", axes=((TensorAxis.VOCAB, spec.vocab), (TensorAxis.HIDDEN, spec.hidden)))
    return Model(
        spec=spec,
        sequence_length=sequence_length,
        embedding=_embedding(spec, table),
        layers=tuple(layers),
        head=_head(spec, fused=fused_cross_entropy),
        tied_table=table if spec.tied_embeddings else None,
    )


def _layer(kind: LayerKind, *blocks: Block) -> Layer:
    return Layer(kind=kind, blocks=blocks)


def _embedding(spec: ModelSpec, table: Weight) -> Layer:
    hidden: Axes = ((TensorAxis.HIDDEN, spec.hidden),)
    lookup = Streamed(
        name="token lookup",
        tokens=Tokens.TENSOR,
        features=hidden,
        forward_bytes_per_element=LOOKUP_BYTES,
        backward_bytes_per_element=LOOKUP_BYTES,
        weights=(table,),
        kept=(Kept(name="token ids", tokens=Tokens.TENSOR, features=(), element=Element.INDEX),),
    )
    after: list[Operator] = []
    if spec.positions is Positions.LEARNED and spec.max_positions is not None:
        positions: Axes = ((TensorAxis.POSITIONS, spec.max_positions), (TensorAxis.HIDDEN, spec.hidden))
        after.append(
            Streamed(
                name="position lookup",
                tokens=Tokens.SEQUENCE,
                features=hidden,
                forward_bytes_per_element=LOOKUP_BYTES,
                backward_bytes_per_element=LOOKUP_BYTES,
                weights=(Weight(name="position_table", axes=positions),),
            )
        )
    if spec.dropout:
        after.append(dropout(spec, "embedding"))
    block = Block(name="embedding", core=(lookup,), exit=tuple(after), reduced_features=spec.hidden)
    return _layer(LayerKind.EMBEDDING, block)


def _head(spec: ModelSpec, *, fused: bool) -> Layer:
    hidden: Axes = ((TensorAxis.HIDDEN, spec.hidden),)
    vocab: Axes = ((TensorAxis.VOCAB, spec.vocab),)
    logits: tuple[Kept, ...] = (Kept(name="logits", tokens=Tokens.TENSOR, features=vocab),)
    if not fused:
        logits += (Kept(name="fp32 softmax", tokens=Tokens.TENSOR, features=vocab, element=Element.FP32),)
    forward, backward = (
        (LOSS_FUSED_FORWARD_BYTES, LOSS_FUSED_BACKWARD_BYTES)
        if fused
        else (LOSS_UNFUSED_FORWARD_BYTES, LOSS_UNFUSED_BACKWARD_BYTES)
    )
    core: tuple[Operator, ...] = (
        MatMul(
            name="head projection",
            tokens=Tokens.TENSOR,
            inputs=hidden,
            outputs=vocab,
            weights=() if spec.tied_embeddings else (Weight(name="head_table", axes=hidden + vocab),),
        ),
        Streamed(
            name="cross-entropy",
            tokens=Tokens.TENSOR,
            features=vocab,
            forward_bytes_per_element=forward,
            backward_bytes_per_element=backward,
            kept=logits,
        ),
    )
    block = Block(name="head", entry=(norm(spec, "final norm"),), core=core, gathered_features=spec.hidden)
    return _layer(LayerKind.HEAD, block)
