"""Builds a decoder: embedding, layers, head, from its specification."""

from __future__ import annotations

from simulator.errors import SimulatorFault
from simulator.model.attention import attention_block, gathered, reduced
from simulator.model.feedforward import experts_block, mlp_block
from simulator.model.kernels import FUSED, CrossEntropy, Kernels
from simulator.model.layers import Block, Layer, LayerKind, Model
from simulator.model.normalisation import dropout, norm
from simulator.model.operators import MatMul, Operator, Streamed
from simulator.model.spec import ModelSpec, Positions
from simulator.model.tensors import Axes, Element, Tensor, TensorAxis, Tokens, Weight

INPUT, MIDDLE, OUTPUT = "layer input", "residual after attention", "layer output"
"""The residual stream: what a layer takes over, what stands between its blocks, what it hands on."""

LOOKUP_BYTES = 4.0
"""Bytes an element of a table lookup: read a row, write it. Derived; backward adds into the table's gradient."""
LOSS_UNFUSED_FORWARD_BYTES, LOSS_UNFUSED_BACKWARD_BYTES = 14.0, 10.0
"""Bytes a logit of an unfused cross-entropy: cast to fp32 (2 + 4), maximum (4), exp and sum (4); backward: read
softmax, write gradient in fp32, cast to 16 bits (4 + 4 + 2). Derived from E3.10's tensors."""
LOSS_FUSED_FORWARD_BYTES, LOSS_FUSED_BACKWARD_BYTES = 4.0, 2.0
"""Bytes a logit of a fused cross-entropy that writes the gradient over the logits. Derived."""


def build_model(spec: ModelSpec, *, sequence_length: int, kernels: Kernels = FUSED) -> Model:
    """Returns the model: its layers of operators and weights.

    Args:
        spec: the architecture.
        sequence_length: tokens of a sequence.
        kernels: which operators are fused.
    """
    attention = attention_block(spec, sequence_length=sequence_length, source=INPUT, result=MIDDLE, kernels=kernels)
    dense = routed = None
    if spec.ffn is not None:
        mlp = mlp_block(spec, width=spec.ffn, source=MIDDLE, result=OUTPUT, kernels=kernels)
        dense = _layer(spec, LayerKind.DENSE, attention, mlp)
    if spec.experts is not None:
        experts = experts_block(spec, spec.experts, source=MIDDLE, result=OUTPUT, kernels=kernels)
        routed = _layer(spec, LayerKind.EXPERTS, attention, experts)
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
        head=_head(spec, kernels),
        tied_table=table if spec.tied_embeddings else None,
    )


def _layer(spec: ModelSpec, kind: LayerKind, *blocks: Block) -> Layer:
    return Layer(kind=kind, blocks=blocks, input=_stream(spec, INPUT), output=OUTPUT)


def _stream(spec: ModelSpec, name: str, tokens: Tokens = Tokens.SEQUENCE) -> Tensor:
    return Tensor(name=name, tokens=tokens, features=((TensorAxis.HIDDEN, spec.hidden),))


def _embedding(spec: ModelSpec, table: Weight) -> Layer:
    hidden: Axes = ((TensorAxis.HIDDEN, spec.hidden),)
    ids = Tensor(name="token ids", tokens=Tokens.TENSOR, features=(), element=Element.INDEX)
    rows = _stream(spec, "looked-up rows", Tokens.TENSOR)
    lookup = Streamed(
        name="token lookup",
        tokens=Tokens.TENSOR,
        features=hidden,
        forward_bytes_per_element=LOOKUP_BYTES,
        backward_bytes_per_element=LOOKUP_BYTES,
        weights=(table,),
        reads=(ids.name,),
        saves=(ids.name,),
        writes=(rows,),
    )
    after: list[Operator] = []
    last = "embedding branch"
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
                reads=(last,),
                writes=(_stream(spec, "rows with positions"),),
                passes_gradient=True,
            )
        )
        last = "rows with positions"
    if spec.dropout:
        after.append(dropout(spec, "embedding", source=last))
        last = "embedding dropout output"
    block = Block(name="embedding", core=(lookup, reduced("embedding", rows.name, spec.hidden)), exit=tuple(after))
    return Layer(kind=LayerKind.EMBEDDING, blocks=(block,), input=ids, output=last)


def _head(spec: ModelSpec, kernels: Kernels) -> Layer:
    hidden: Axes = ((TensorAxis.HIDDEN, spec.hidden),)
    vocab: Axes = ((TensorAxis.VOCAB, spec.vocab),)
    before = norm(spec, "final norm", source=INPUT, kernels=kernels)
    gather = gathered(before.writes[0])
    whole = gather.writes[0].name
    logits = Tensor(name="logits", tokens=Tokens.TENSOR, features=vocab)
    core: tuple[Operator, ...] = (
        gather,
        MatMul(
            name="head projection",
            tokens=Tokens.TENSOR,
            inputs=hidden,
            outputs=vocab,
            weights=() if spec.tied_embeddings else (Weight(name="head_table", axes=hidden + vocab),),
            reads=(whole,),
            saves=(before.writes[0].name,),
            gathers_again=(whole,),
            writes=(logits,),
        ),
        _loss(logits, kernels.cross_entropy),
    )
    block = Block(name="head", entry=(before,), core=core)
    return Layer(kind=LayerKind.HEAD, blocks=(block,), input=_stream(spec, INPUT), output=None)


def _loss(logits: Tensor, kind: CrossEntropy) -> Streamed:
    """The cross-entropy over the vocabulary: what it saves, and what its backward needs beside (E3.10).

    Unfused: an fp32 copy becomes the softmax in place and is saved; its gradient is written over it, then cast. Eager:
    the log-softmax is saved beside the copy, and the gradients of both are tensors of their own.
    """

    def fp32(name: str) -> Tensor:
        return Tensor(name=name, tokens=Tokens.TENSOR, features=logits.features, element=Element.FP32)

    fused = kind is CrossEntropy.FUSED
    made = {
        CrossEntropy.FUSED: (),
        CrossEntropy.UNFUSED: (fp32("fp32 softmax"),),
        CrossEntropy.EAGER: (fp32("fp32 log-softmax"), fp32("fp32 logits")),
    }[kind]
    workspace = (fp32("gradient of log-softmax"), fp32("gradient of fp32 logits"))
    return Streamed(
        name="cross-entropy",
        tokens=Tokens.TENSOR,
        features=logits.features,
        forward_bytes_per_element=LOSS_FUSED_FORWARD_BYTES if fused else LOSS_UNFUSED_FORWARD_BYTES,
        backward_bytes_per_element=LOSS_FUSED_BACKWARD_BYTES if fused else LOSS_UNFUSED_BACKWARD_BYTES,
        reads=(logits.name,),
        writes=made,
        saves=(made[0].name,) if made else (logits.name,),
        backward_workspace=workspace if kind is CrossEntropy.EAGER else (),
        in_place_gradient=fused,
    )
