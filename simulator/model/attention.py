"""Attention blocks: grouped-query (MHA and MQA are its ends) and multi-head latent attention."""

from __future__ import annotations

from simulator.model.layers import Block
from simulator.model.normalisation import norm, residual
from simulator.model.operators import AttentionCore, MatMul, Operator, Streamed
from simulator.model.spec import LatentAttention, ModelSpec, Positions
from simulator.model.tensors import Axes, Element, Kept, TensorAxis, Tokens, Weight

ROTARY_BYTES = 4.0
"""Bytes an element of a rotary embedding, one direction: read and write (E6.3)."""


def attention_block(spec: ModelSpec, *, sequence_length: int, flash: bool) -> Block:
    """Returns the attention half of a layer.

    Kept for backward, per token: E3.6 with a flash kernel and no dropout, E3.5's attention terms unfused with
    dropout, E3.7 for latent attention.
    """
    if spec.latent_attention is not None:
        return _latent_block(spec, spec.latent_attention, sequence_length=sequence_length, flash=flash)
    heads: Axes = ((TensorAxis.HEADS, spec.heads), (TensorAxis.HEAD_DIM, spec.head_size))
    kv_heads: Axes = ((TensorAxis.KV_HEADS, spec.key_value_heads), (TensorAxis.HEAD_DIM, spec.head_size))
    hidden: Axes = ((TensorAxis.HIDDEN, spec.hidden),)
    core: list[Operator] = [
        MatMul(
            name="query projection",
            tokens=Tokens.TENSOR,
            inputs=hidden,
            outputs=heads,
            weights=_linear("query", hidden, heads, bias=spec.biases),
            kept=(Kept(name="query", tokens=Tokens.TENSOR, features=heads),),
        ),
        MatMul(
            name="key and value projection",
            tokens=Tokens.TENSOR,
            inputs=hidden,
            outputs=(*kv_heads, (TensorAxis.LATENT, 2)),
            weights=_linear("key", hidden, kv_heads, bias=spec.biases)
            + _linear("value", hidden, kv_heads, bias=spec.biases),
            kept=(
                Kept(name="key", tokens=Tokens.TENSOR, features=kv_heads),
                Kept(name="value", tokens=Tokens.TENSOR, features=kv_heads),
            ),
        ),
    ]
    if spec.positions is Positions.ROTARY:
        core.append(_rotary(heads))
    core.append(
        _core(
            spec,
            kv_heads=spec.key_value_heads,
            qk_head_dim=spec.head_size,
            value_head_dim=spec.head_size,
            sequence_length=sequence_length,
            flash=flash,
        )
    )
    core.append(_output_projection(spec, heads))
    return Block(
        name="attention",
        entry=(norm(spec, "attention norm"),),
        core=tuple(core),
        exit=residual(spec, "attention"),
        gathered_features=spec.hidden,
        reduced_features=spec.hidden,
    )


def _latent_block(spec: ModelSpec, latent: LatentAttention, *, sequence_length: int, flash: bool) -> Block:
    hidden: Axes = ((TensorAxis.HIDDEN, spec.hidden),)
    qk_head_dim = latent.nope_head_dim + latent.rope_head_dim
    queries: Axes = ((TensorAxis.HEADS, spec.heads), (TensorAxis.HEAD_DIM, qk_head_dim))
    keys_values: Axes = (
        (TensorAxis.HEADS, spec.heads),
        (TensorAxis.HEAD_DIM, latent.nope_head_dim + latent.value_head_dim),
    )
    values: Axes = ((TensorAxis.HEADS, spec.heads), (TensorAxis.HEAD_DIM, latent.value_head_dim))
    query_latent: Axes = ((TensorAxis.LATENT, latent.query_rank),)
    kv_latent: Axes = ((TensorAxis.LATENT, latent.kv_rank),)
    kv_down: Axes = ((TensorAxis.LATENT, latent.kv_rank + latent.rope_head_dim),)
    entry: list[Operator] = [norm(spec, "attention norm")]
    query_source = hidden
    if latent.query_rank:
        query_source = query_latent
        entry += [
            MatMul(
                name="query down-projection",
                tokens=Tokens.SEQUENCE,
                inputs=hidden,
                outputs=query_latent,
                weights=_linear("query_down", hidden, query_latent, bias=False),
            ),
            norm(spec, "query latent norm", width=query_latent),
        ]
    entry += [
        MatMul(
            name="key-value down-projection",
            tokens=Tokens.SEQUENCE,
            inputs=hidden,
            outputs=kv_down,
            weights=_linear("kv_down", hidden, kv_down, bias=False),
        ),
        norm(spec, "key-value latent norm", width=kv_latent),
    ]
    core: tuple[Operator, ...] = (
        MatMul(
            name="query up-projection",
            tokens=Tokens.TENSOR,
            inputs=query_source,
            outputs=queries,
            weights=_linear("query_up", query_source, queries, bias=False),
            kept=(Kept(name="query", tokens=Tokens.TENSOR, features=queries),),
        ),
        MatMul(
            name="key-value up-projection",
            tokens=Tokens.TENSOR,
            inputs=kv_latent,
            outputs=keys_values,
            weights=_linear("kv_up", kv_latent, keys_values, bias=False),
            kept=(
                Kept(name="key", tokens=Tokens.TENSOR, features=queries),
                Kept(name="value", tokens=Tokens.TENSOR, features=values),
            ),
        ),
        _rotary(queries),
        _core(
            spec,
            kv_heads=spec.heads,
            qk_head_dim=qk_head_dim,
            value_head_dim=latent.value_head_dim,
            sequence_length=sequence_length,
            flash=flash,
        ),
        _output_projection(spec, values),
    )
    query_features = latent.query_rank or spec.hidden
    return Block(
        name="attention",
        entry=tuple(entry),
        core=core,
        exit=residual(spec, "attention"),
        gathered_features=query_features + latent.kv_rank + latent.rope_head_dim,
        reduced_features=spec.hidden,
    )


def _linear(name: str, inputs: Axes, outputs: Axes, *, bias: bool) -> tuple[Weight, ...]:
    matrix = Weight(name=name, axes=inputs + outputs)
    return (matrix, Weight(name=f"{name}_bias", axes=outputs)) if bias else (matrix,)


def _rotary(features: Axes) -> Streamed:
    return Streamed(
        name="rotary embedding",
        tokens=Tokens.TENSOR,
        features=features,
        forward_bytes_per_element=ROTARY_BYTES,
        backward_bytes_per_element=ROTARY_BYTES,
    )


def _core(
    spec: ModelSpec, *, kv_heads: int, qk_head_dim: int, value_head_dim: int, sequence_length: int, flash: bool
) -> AttentionCore:
    scores: Axes = ((TensorAxis.HEADS, spec.heads), (TensorAxis.KEYS, sequence_length))
    per_head: Axes = ((TensorAxis.HEADS, spec.heads),)
    if flash:
        kept: tuple[Kept, ...] = (
            Kept(name="log-sum-exp", tokens=Tokens.TENSOR, features=per_head, element=Element.FP32, statistic=True),
        )
    else:
        kept = (Kept(name="softmax output", tokens=Tokens.TENSOR, features=scores, core=True),)
        if spec.dropout:
            kept += (
                Kept(
                    name="attention dropout mask",
                    tokens=Tokens.TENSOR,
                    features=scores,
                    element=Element.MASK,
                    core=True,
                ),
                Kept(name="dropped softmax", tokens=Tokens.TENSOR, features=scores, core=True),
            )
    return AttentionCore(
        name="attention core",
        heads=spec.heads,
        kv_heads=kv_heads,
        qk_head_dim=qk_head_dim,
        value_head_dim=value_head_dim,
        kept=kept,
    )


def _output_projection(spec: ModelSpec, heads: Axes) -> MatMul:
    hidden: Axes = ((TensorAxis.HIDDEN, spec.hidden),)
    weights: tuple[Weight, ...] = (Weight(name="output", axes=heads + hidden),)
    if spec.biases:
        weights += (Weight(name="output_bias", axes=hidden),)
    return MatMul(
        name="output projection",
        tokens=Tokens.TENSOR,
        inputs=heads,
        outputs=hidden,
        weights=weights,
        kept=(Kept(name="attention output", tokens=Tokens.TENSOR, features=heads, element=Element.GEMM_INPUT),),
    )
