"""Parameters of a model by the closed forms of the literature, without its operators (docs/equations.md, section 1)."""

from __future__ import annotations

from simulator.model.spec import (
    TABLES,
    Bias,
    Experts,
    ModelSpec,
    Norm,
    NormPlacement,
    ParallelBlocks,
    Positions,
    QKNorm,
)


def num_parameters(spec: ModelSpec) -> int:
    """All parameters, those that no gradient moves included."""
    if spec.convolution is not None:
        return _network(spec)
    if spec.diffusion is not None:
        return _diffusion(spec)
    decoder = sum(_layer(spec, layer, cross=spec.encoder is not None) for layer in range(spec.layers))
    if spec.distinct_layers is not None:
        decoder = decoder // spec.layers * spec.distinct_layers
    encoder = 0
    if spec.encoder is not None:
        encoder = sum(_layer(spec, layer, cross=False) for layer in range(spec.encoder.layers)) + _norm(spec)
    stacks = 1 if spec.encoder is None else 2
    relative = stacks * spec.position_buckets * spec.heads if spec.positions is Positions.RELATIVE else 0
    module = _layer(spec, spec.layers - 1, cross=False) + 2 * spec.hidden**2 + 3 * _norm(spec)
    return _embedding(spec) + encoder + decoder + relative + _final_norm(spec) + _head(spec) + spec.mtp_layers * module


def _norm(spec: ModelSpec, width: int | None = None) -> int:
    return (2 if spec.norm is Norm.LAYERNORM else 1) * (spec.hidden if width is None else width)


def _final_norm(spec: ModelSpec) -> int:
    return 0 if spec.norm_placement is NormPlacement.POST else _norm(spec)


def _embedding(spec: ModelSpec) -> int:
    h = spec.hidden
    positions = (spec.num_positions or 0) if spec.positions in TABLES else 0
    if (image := spec.image) is not None:
        patch = image.patch or 0
        return patch * patch * image.channels * h + h + h * image.class_token + positions * h
    e = spec.embedding.width or h
    tables = (spec.vocab + positions + spec.embedding.token_types) * e
    norm = _norm(spec, e) if spec.embedding.norm else 0
    return tables + norm + (e * h + h if spec.embedding.width else 0)


def _head(spec: ModelSpec) -> int:
    h, head = spec.hidden, spec.output_head
    total = (h * h + h) * head.pooler + (h * head.classes + head.classes)
    if spec.has_language_head:
        width = (spec.embedding.width or h) if head.transform else h
        total += (h * width + width + _norm(spec, width)) * head.transform
        total += spec.vocab * head.bias + (0 if spec.tied_embeddings else spec.vocab * width)
    return total


def _layer(spec: ModelSpec, layer: int, *, cross: bool) -> int:
    attention = attention_block(spec)
    experts = spec.experts if spec.experts is not None and spec.experts.at(layer) else None
    half = mlp_block(spec, spec.ffn or 0) if experts is None else experts_block(spec, experts)
    blocks = 3 if cross else 2
    norms = {NormPlacement.SANDWICH: 2 * blocks}.get(spec.norm_placement, blocks)
    if spec.parallel_blocks is ParallelBlocks.SHARED_NORM:
        norms = 1
    return attention * (2 if cross else 1) + half + norms * _norm(spec)


def attention_block(spec: ModelSpec) -> int:
    """E1.3 to E1.5, without the norm before it."""
    h, a, g, d = spec.hidden, spec.heads, spec.key_value_heads, spec.head_size
    if (mla := spec.latent_attention) is not None:
        qk = mla.nope_head_dim + mla.rope_head_dim
        total = h * (mla.kv_rank + mla.rope_head_dim) + _norm(spec, mla.kv_rank)
        total += mla.kv_rank * a * (mla.nope_head_dim + mla.value_head_dim) + a * mla.value_head_dim * h
        query = h * mla.query_rank + _norm(spec, mla.query_rank) + mla.query_rank * a * qk
        total += query if mla.query_rank else h * a * qk
        return total + h * spec.has_bias(Bias.ATTENTION_OUTPUT)
    total = 2 * h * a * d + 2 * h * g * d
    total += (a * d + 2 * g * d) * spec.has_bias(Bias.QKV) + h * spec.has_bias(Bias.ATTENTION_OUTPUT)
    normed = {QKNorm.NONE: 0, QKNorm.HEAD: 2 * d, QKNorm.ALL_HEADS: (a + g) * d}[spec.attention.qk_norm]
    total += _norm(spec, normed) if normed else 0
    total += (h * a * d + 2 * a * d) * (spec.positions is Positions.RELATIVE_PROJECTED)
    return total + a * spec.attention.sinks


def mlp_block(spec: ModelSpec, width: int, *, gated: bool | None = None) -> int:
    """E1.6, without the norm before it."""
    matrices = 3 if (spec.gated_mlp if gated is None else gated) else 2
    biases = ((matrices - 1) * width + spec.hidden) * spec.has_bias(Bias.MLP)
    return matrices * spec.hidden * width + biases


def experts_block(spec: ModelSpec, experts: Experts) -> int:
    """E1.9, without the norm before it."""
    width = experts.shared * (experts.shared_ffn or experts.ffn)
    shared = mlp_block(spec, width) + spec.hidden * experts.shared_gate if width else 0
    router = experts.count * (spec.hidden + experts.router_bias + spec.has_bias(Bias.ROUTER))
    return experts.count * mlp_block(spec, experts.ffn, gated=experts.gated) + router + shared


def _network(spec: ModelSpec) -> int:
    """E1.8: convolutions without biases, two parameters a channel of each batch norm."""
    network, image = spec.convolution, spec.image
    assert network is not None and image is not None
    total = 49 * image.channels * network.width + 2 * network.width
    entering = network.width
    for group, blocks in enumerate(network.blocks):
        w = network.width * 2**group
        leaving = w * network.expansion
        for block in range(blocks):
            if network.bottleneck:
                total += entering * w + 9 * w * w + w * leaving + 2 * (w + w + leaving)
            else:
                total += 9 * entering * w + 9 * w * w + 2 * (w + w)
            if block == 0 and (group or entering != leaving):
                total += entering * leaving + 2 * leaving
            entering = leaving
    return total + spec.hidden * spec.output_head.classes + spec.output_head.classes


def _diffusion(spec: ModelSpec) -> int:
    """DiT: norms without parameters; six vectors of shift, scale and gate a layer, two at the end."""
    diffusion, image, h = spec.diffusion, spec.image, spec.hidden
    assert diffusion is not None and image is not None and image.patch is not None
    layer = attention_block(spec) + mlp_block(spec, spec.ffn or 0) + 6 * h * h + 6 * h
    condition = diffusion.time_features * h + h + h * h + h + diffusion.labels * h
    pixels = image.patch**2 * diffusion.output_channels
    return _embedding(spec) + condition + spec.layers * layer + 2 * h * h + 2 * h + h * pixels + pixels
