"""The other half of a layer: a dense MLP, or routed and shared experts."""

from __future__ import annotations

from simulator.model.layers import Block
from simulator.model.normalisation import norm, residual
from simulator.model.operators import ExpertMatMul, MatMul, Operator, Streamed
from simulator.model.spec import Experts, ModelSpec
from simulator.model.tensors import Axes, Element, Kept, TensorAxis, Tokens, Weight

GATED_FORWARD_BYTES, GATED_BACKWARD_BYTES = 6.0, 10.0
"""Bytes an output element of SwiGLU: forward two reads, one write; backward three reads, two writes (E6.3)."""
PLAIN_FORWARD_BYTES, PLAIN_BACKWARD_BYTES = 4.0, 6.0
"""Bytes an element of GELU: forward read and write; backward two reads, one write (E6.3)."""
PERMUTE_BYTES = 4.0
"""Bytes an element of sorting tokens by expert: read and write. Derived."""


def mlp_block(spec: ModelSpec, *, width: int) -> Block:
    """Returns a dense MLP: 2·h·f parameters, 3·h·f if gated, f + h biases (E1.6)."""
    return Block(
        name="mlp",
        entry=(norm(spec, "mlp norm"),),
        core=_mlp(spec, width=width, name="mlp"),
        exit=residual(spec, "mlp"),
        gathered_features=spec.hidden,
        reduced_features=spec.hidden,
    )


def experts_block(spec: ModelSpec, experts: Experts) -> Block:
    """Returns a mixture-of-experts MLP: router, routed experts, shared experts (E1.9).

    The router works on the tokens that a rank holds (split over the tensor group with sequence parallelism), so
    that no gather precedes dispatch; shared experts are an ordinary MLP of their summed width.
    Kept, per token: E3.8 with x = 2h, the expert output, as its probability multiplies it.
    """
    hidden: Axes = ((TensorAxis.HIDDEN, spec.hidden),)
    router: Axes = ((TensorAxis.ROUTER, experts.count),)
    router_weights: tuple[Weight, ...] = (Weight(name="router", axes=hidden + router),)
    if experts.router_bias:
        router_weights += (Weight(name="router_bias", axes=router, trained=False),)
    shared_width = experts.shared * (experts.shared_ffn or experts.ffn)
    return Block(
        name="experts",
        entry=(
            norm(spec, "mlp norm"),
            MatMul(
                name="router",
                tokens=Tokens.SEQUENCE,
                inputs=hidden,
                outputs=router,
                weights=router_weights,
                kept=(
                    Kept(name="router logits", tokens=Tokens.SEQUENCE, features=router, element=Element.FP32),
                    Kept(
                        name="chosen experts",
                        tokens=Tokens.SEQUENCE,
                        features=((TensorAxis.LATENT, experts.top_k),),
                        element=Element.INDEX,
                    ),
                ),
            ),
        ),
        core=_mlp(spec, width=shared_width, name="shared experts") if shared_width else (),
        routed=_routed(spec, experts),
        exit=residual(spec, "mlp"),
        gathered_features=spec.hidden if shared_width else 0,
        reduced_features=spec.hidden if shared_width else 0,
        routed_features=spec.hidden,
    )


def _mlp(spec: ModelSpec, *, width: int, name: str) -> tuple[Operator, ...]:
    hidden: Axes = ((TensorAxis.HIDDEN, spec.hidden),)
    ffn: Axes = ((TensorAxis.FFN, width),)
    up_names = ("gate", "up") if spec.gated_mlp else ("up",)
    up_weights = tuple(Weight(name=f"{name} {up}", axes=hidden + ffn) for up in up_names)
    down_weights: tuple[Weight, ...] = (Weight(name=f"{name} down", axes=ffn + hidden),)
    if spec.biases:
        up_weights += tuple(Weight(name=f"{name} {up}_bias", axes=ffn) for up in up_names)
        down_weights += (Weight(name=f"{name} down_bias", axes=hidden),)
    return (
        MatMul(
            name=f"{name} {' and '.join(up_names)} projection",
            tokens=Tokens.TENSOR,
            inputs=hidden,
            outputs=(*ffn, (TensorAxis.LATENT, len(up_names))),
            weights=up_weights,
            kept=tuple(Kept(name=f"{name} {up} output", tokens=Tokens.TENSOR, features=ffn) for up in up_names),
        ),
        _activation(spec, Tokens.TENSOR, ffn, name),
        MatMul(
            name=f"{name} down projection",
            tokens=Tokens.TENSOR,
            inputs=ffn,
            outputs=hidden,
            weights=down_weights,
            kept=(Kept(name=f"{name} down input", tokens=Tokens.TENSOR, features=ffn, element=Element.GEMM_INPUT),),
        ),
    )


def _routed(spec: ModelSpec, experts: Experts) -> tuple[Operator, ...]:
    hidden: Axes = ((TensorAxis.HIDDEN, spec.hidden),)
    ffn: Axes = ((TensorAxis.EXPERT_FFN, experts.ffn),)
    all_experts: Axes = ((TensorAxis.EXPERTS, experts.count),)
    up_names = ("gate", "up") if spec.gated_mlp else ("up",)
    up_weights = tuple(Weight(name=f"expert {up}", axes=all_experts + hidden + ffn) for up in up_names)
    down_weights: tuple[Weight, ...] = (Weight(name="expert down", axes=all_experts + ffn + hidden),)
    if spec.biases:
        up_weights += tuple(Weight(name=f"expert {up}_bias", axes=all_experts + ffn) for up in up_names)
        down_weights += (Weight(name="expert down_bias", axes=all_experts + hidden),)
    return (
        Streamed(
            name="sort tokens by expert",
            tokens=Tokens.DISPATCHED,
            features=hidden,
            forward_bytes_per_element=PERMUTE_BYTES,
            backward_bytes_per_element=PERMUTE_BYTES,
            kept=(Kept(name="expert input", tokens=Tokens.ROUTED, features=hidden, element=Element.GEMM_INPUT),),
        ),
        ExpertMatMul(
            name=f"expert {' and '.join(up_names)} projection",
            inputs=hidden,
            outputs=(*ffn, (TensorAxis.LATENT, len(up_names))),
            num_experts=experts.count,
            top_k=experts.top_k,
            weights=up_weights,
            kept=tuple(Kept(name=f"expert {up} output", tokens=Tokens.ROUTED, features=ffn) for up in up_names),
        ),
        _activation(spec, Tokens.ROUTED, ffn, "expert"),
        ExpertMatMul(
            name="expert down projection",
            inputs=ffn,
            outputs=hidden,
            num_experts=experts.count,
            top_k=experts.top_k,
            weights=down_weights,
            kept=(
                Kept(name="expert down input", tokens=Tokens.ROUTED, features=ffn, element=Element.GEMM_INPUT),
                Kept(name="expert output", tokens=Tokens.DISPATCHED, features=hidden),
            ),
        ),
        Streamed(
            name="weigh and unsort tokens",
            tokens=Tokens.DISPATCHED,
            features=hidden,
            forward_bytes_per_element=PERMUTE_BYTES,
            backward_bytes_per_element=PERMUTE_BYTES,
        ),
    )


def _activation(spec: ModelSpec, tokens: Tokens, features: Axes, name: str) -> Streamed:
    forward, backward = (
        (GATED_FORWARD_BYTES, GATED_BACKWARD_BYTES) if spec.gated_mlp else (PLAIN_FORWARD_BYTES, PLAIN_BACKWARD_BYTES)
    )
    return Streamed(
        name=f"{name} activation",
        tokens=tokens,
        features=features,
        forward_bytes_per_element=forward,
        backward_bytes_per_element=backward,
    )
