"""Attention blocks: grouped-query (MHA and MQA are its ends) and multi-head latent attention."""

from __future__ import annotations

from simulator.model.kernels import FUSED, Kernels
from simulator.model.layers import Block
from simulator.model.normalisation import norm, residual
from simulator.model.operators import AttentionCore, MatMul, Move, Operator, Part, Streamed, Way
from simulator.model.spec import LatentAttention, ModelSpec, Positions
from simulator.model.tensors import Axes, Element, Tensor, TensorAxis, Tokens, Weight

ROTARY_BYTES = 4.0
"""Bytes an element of a rotary embedding, one direction: read and write (E6.3)."""


def attention_block(
    spec: ModelSpec, *, sequence_length: int, source: str, result: str, kernels: Kernels = FUSED
) -> Block:
    """Returns the attention half of a layer.

    Kept for backward, per token: E3.6 with a flash kernel and no dropout, E3.5's attention terms unfused with
    dropout, E3.7 for latent attention.

    Args:
        spec: the model.
        sequence_length: tokens of a sequence.
        source: the tensor of the residual stream that it reads.
        result: the tensor that it adds its output up to.
        kernels: which operators are fused.
    """
    if spec.latent_attention is not None:
        entry, core = _latent(spec, spec.latent_attention, sequence_length, source, kernels)
    else:
        entry, core = _grouped(spec, sequence_length, source, kernels)
    return Block(
        name="attention",
        entry=entry,
        core=(*core, reduced("attention", "projected attention", spec.hidden)),
        exit=residual(spec, "attention", branches=("attention branch",), source=source, result=result),
    )


def gathered(*tensors: Tensor) -> Move:
    """Returns the gather of tensors over the tensor group; each becomes `gathered {name}`."""
    return Move(
        name="gather",
        way=Way.GATHER,
        reads=tuple(tensor.name for tensor in tensors),
        writes=tuple(
            Tensor(name=f"gathered {tensor.name}", tokens=Tokens.TENSOR, features=tensor.features) for tensor in tensors
        ),
    )


def reduced(block: str, source: str, hidden: int) -> Move:
    """Returns the sum of a block's output over the tensor group: it writes `{block} branch`."""
    branch = Tensor(name=f"{block} branch", tokens=Tokens.SEQUENCE, features=((TensorAxis.HIDDEN, hidden),))
    return Move(name="reduce", way=Way.REDUCE, reads=(source,), writes=(branch,))


_Parts = tuple[tuple[Operator, ...], tuple[Operator, ...]]
"""Entry and core of a block."""


def _grouped(spec: ModelSpec, sequence_length: int, source: str, kernels: Kernels) -> _Parts:
    heads: Axes = ((TensorAxis.HEADS, spec.heads), (TensorAxis.HEAD_DIM, spec.head_size))
    kv_heads: Axes = ((TensorAxis.KV_HEADS, spec.key_value_heads), (TensorAxis.HEAD_DIM, spec.head_size))
    hidden: Axes = ((TensorAxis.HIDDEN, spec.hidden),)
    entry = norm(spec, "attention norm", source=source, kernels=kernels)
    normed = entry.writes[0].name
    gather = gathered(entry.writes[0])
    rotates = spec.positions is Positions.ROTARY
    query, key = ("unrotated query", "unrotated key") if rotates else ("query", "key")
    core: list[Operator] = [
        gather,
        MatMul(
            name="query projection",
            tokens=Tokens.TENSOR,
            inputs=hidden,
            outputs=heads,
            weights=_linear("query", hidden, heads, bias=spec.biases),
            reads=(gather.writes[0].name,),
            saves=(normed,),
            gathers_again=(gather.writes[0].name,),
            writes=(_tensor(query, heads),),
        ),
        MatMul(
            name="key and value projection",
            tokens=Tokens.TENSOR,
            inputs=hidden,
            outputs=(*kv_heads, (TensorAxis.LATENT, 2)),
            weights=_linear("key", hidden, kv_heads, bias=spec.biases)
            + _linear("value", hidden, kv_heads, bias=spec.biases),
            reads=(gather.writes[0].name,),
            saves=(normed,),
            gathers_again=(gather.writes[0].name,),
            writes=(_tensor(key, kv_heads), _tensor("value", kv_heads)),
        ),
    ]
    if rotates:
        core.append(_rotary(heads, kv_heads))
    core.append(
        _core(
            spec,
            kv_heads=spec.key_value_heads,
            qk_head_dim=spec.head_size,
            value_head_dim=spec.head_size,
            sequence_length=sequence_length,
            flash=kernels.flash_attention,
        )
    )
    core.append(_output_projection(spec, heads))
    return (entry,), tuple(core)


def _latent(spec: ModelSpec, latent: LatentAttention, sequence_length: int, source: str, kernels: Kernels) -> _Parts:
    hidden: Axes = ((TensorAxis.HIDDEN, spec.hidden),)
    qk_head_dim = latent.nope_head_dim + latent.rope_head_dim
    queries: Axes = ((TensorAxis.HEADS, spec.heads), (TensorAxis.HEAD_DIM, qk_head_dim))
    keys_values: Axes = (
        (TensorAxis.HEADS, spec.heads),
        (TensorAxis.HEAD_DIM, latent.nope_head_dim + latent.value_head_dim),
    )
    keys: Axes = ((TensorAxis.HEADS, spec.heads), (TensorAxis.HEAD_DIM, latent.nope_head_dim))
    values: Axes = ((TensorAxis.HEADS, spec.heads), (TensorAxis.HEAD_DIM, latent.value_head_dim))
    query_latent: Axes = ((TensorAxis.LATENT, latent.query_rank),)
    kv_latent: Axes = ((TensorAxis.LATENT, latent.kv_rank),)
    kv_down: Axes = ((TensorAxis.LATENT, latent.kv_rank + latent.rope_head_dim),)
    rotary_key = Tensor(
        name="shared rotary key", tokens=Tokens.SEQUENCE, features=((TensorAxis.LATENT, latent.rope_head_dim),)
    )
    first = norm(spec, "attention norm", source=source, kernels=kernels)
    entry: list[Operator] = [first]
    query_source, query_input = hidden, first.writes[0]
    if latent.query_rank:
        query_source = query_latent
        query_norm = norm(spec, "query latent norm", source="query latent", width=query_latent, kernels=kernels)
        query_input = query_norm.writes[0]
        entry += [
            MatMul(
                name="query down-projection",
                tokens=Tokens.SEQUENCE,
                inputs=hidden,
                outputs=query_latent,
                weights=_linear("query_down", hidden, query_latent, bias=False),
                reads=(first.writes[0].name,),
                saves=(first.writes[0].name,),
                writes=(_tensor("query latent", query_latent, Tokens.SEQUENCE),),
            ),
            query_norm,
        ]
    kv_norm = norm(spec, "key-value latent norm", source="key-value latent", width=kv_latent, kernels=kernels)
    entry += [
        MatMul(
            name="key-value down-projection",
            tokens=Tokens.SEQUENCE,
            inputs=hidden,
            outputs=kv_down,
            weights=_linear("kv_down", hidden, kv_down, bias=False),
            reads=(first.writes[0].name,),
            saves=(first.writes[0].name,),
            writes=(_tensor("key-value latent", kv_latent, Tokens.SEQUENCE), rotary_key),
        ),
        kv_norm,
    ]
    gather = gathered(query_input, kv_norm.writes[0], rotary_key)
    whole_query, whole_latent, whole_rotary = (tensor.name for tensor in gather.writes)
    core: tuple[Operator, ...] = (
        gather,
        MatMul(
            name="query up-projection",
            part=Part.LATENT_UP_PROJECTION,
            tokens=Tokens.TENSOR,
            inputs=query_source,
            outputs=queries,
            weights=_linear("query_up", query_source, queries, bias=False),
            reads=(whole_query,),
            saves=(query_input.name,),
            gathers_again=(whole_query,),
            writes=(_tensor("unrotated query", queries),),
        ),
        MatMul(
            name="key-value up-projection",
            part=Part.LATENT_UP_PROJECTION,
            tokens=Tokens.TENSOR,
            inputs=kv_latent,
            outputs=keys_values,
            weights=_linear("kv_up", kv_latent, keys_values, bias=False),
            reads=(whole_latent,),
            saves=(kv_norm.writes[0].name,),
            gathers_again=(whole_latent,),
            writes=(_tensor("key without positions", keys), _tensor("value", values)),
        ),
        Streamed(
            name="rotary embedding",
            part=Part.LATENT_UP_PROJECTION,
            tokens=Tokens.TENSOR,
            features=queries,
            forward_bytes_per_element=ROTARY_BYTES,
            backward_bytes_per_element=ROTARY_BYTES,
            reads=("unrotated query", "key without positions", whole_rotary),
            writes=(_tensor("query", queries), _tensor("key", queries)),
        ),
        _core(
            spec,
            kv_heads=spec.heads,
            qk_head_dim=qk_head_dim,
            value_head_dim=latent.value_head_dim,
            sequence_length=sequence_length,
            flash=kernels.flash_attention,
        ),
        _output_projection(spec, values),
    )
    return tuple(entry), core


def _tensor(name: str, features: Axes, tokens: Tokens = Tokens.TENSOR) -> Tensor:
    return Tensor(name=name, tokens=tokens, features=features)


def _linear(name: str, inputs: Axes, outputs: Axes, *, bias: bool) -> tuple[Weight, ...]:
    matrix = Weight(name=name, axes=inputs + outputs)
    return (matrix, Weight(name=f"{name}_bias", axes=outputs)) if bias else (matrix,)


def _rotary(heads: Axes, kv_heads: Axes) -> Streamed:
    return Streamed(
        name="rotary embedding",
        tokens=Tokens.TENSOR,
        features=heads,
        forward_bytes_per_element=ROTARY_BYTES,
        backward_bytes_per_element=ROTARY_BYTES,
        reads=("unrotated query", "unrotated key"),
        writes=(_tensor("query", heads), _tensor("key", kv_heads)),
    )


def _core(
    spec: ModelSpec, *, kv_heads: int, qk_head_dim: int, value_head_dim: int, sequence_length: int, flash: bool
) -> AttentionCore:
    scores: Axes = ((TensorAxis.HEADS, spec.heads), (TensorAxis.KEYS, sequence_length))
    values: Axes = ((TensorAxis.HEADS, spec.heads), (TensorAxis.HEAD_DIM, value_head_dim))
    output = Tensor(name="attention output", tokens=Tokens.TENSOR, features=values, element=Element.GEMM_INPUT)
    made: tuple[Tensor, ...]
    workspace: tuple[Tensor, ...] = ()
    if flash:
        made = (
            Tensor(
                name="log-sum-exp",
                tokens=Tokens.TENSOR,
                features=((TensorAxis.HEADS, spec.heads),),
                element=Element.FP32,
                statistic=True,
            ),
        )
        saved: tuple[str, ...] = (output.name, *(tensor.name for tensor in made))
    else:
        made = (_tensor("softmax output", scores),)
        if spec.dropout:
            mask = Tensor(name="softmax dropout mask", tokens=Tokens.TENSOR, features=scores, element=Element.MASK)
            made += (mask, _tensor("dropped softmax", scores))
        saved = tuple(tensor.name for tensor in made)
        made += (_tensor("attention scores", scores),)
        workspace = (_tensor("gradient of scores", scores),)
    return AttentionCore(
        name="attention core",
        # A flash kernel computes the scores again by itself: there is nothing to drop.
        part=None if flash else Part.CORE_ATTENTION,
        heads=spec.heads,
        kv_heads=kv_heads,
        qk_head_dim=qk_head_dim,
        value_head_dim=value_head_dim,
        reads=("query", "key", "value"),
        writes=(output, *made),
        saves=("query", "key", "value", *saved),
        backward_workspace=workspace,
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
        reads=("attention output",),
        saves=("attention output",),
        writes=(_tensor("projected attention", hidden),),
    )
