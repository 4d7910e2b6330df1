"""Norms and residual additions: what stands around every block."""

from __future__ import annotations

from simulator.model.operators import Operator, Streamed
from simulator.model.spec import ModelSpec, Norm
from simulator.model.tensors import Axes, Element, Kept, TensorAxis, Tokens, Weight

NORM_FORWARD_BYTES = 4.0
NORM_BACKWARD_BYTES = 7.0
"""Bytes an element of a fused norm: forward read and write, backward 6 to 8, the middle taken (E6.3)."""
RESIDUAL_BYTES = 6.0
"""Bytes an element of a residual addition: two reads, one write (E6.3)."""
DROPOUT_BYTES = 5.0
"""Bytes an element of dropout: read, write, one byte of mask (E6.3)."""


def norm(spec: ModelSpec, name: str, *, width: Axes | None = None) -> Streamed:
    """Returns a norm: h scales (RMSNorm) or h scales and h shifts (LayerNorm) (E1.2).

    Its input and its output are kept, the output as the input of the GEMM that follows (E3.5, E3.6), and its
    statistics: one fp32 number a token (RMSNorm), two (LayerNorm).
    """
    features: Axes = ((TensorAxis.HIDDEN, spec.hidden),) if width is None else width
    weights: tuple[Weight, ...] = (Weight(name=f"{name} scale", axes=features),)
    statistics: Axes = ()
    if spec.norm is Norm.LAYERNORM:
        weights += (Weight(name=f"{name} shift", axes=features),)
        statistics = ((TensorAxis.LATENT, 2),)
    return Streamed(
        name=name,
        tokens=Tokens.SEQUENCE,
        features=features,
        forward_bytes_per_element=NORM_FORWARD_BYTES,
        backward_bytes_per_element=NORM_BACKWARD_BYTES,
        weights=weights,
        kept=(
            Kept(name=f"{name} input", tokens=Tokens.SEQUENCE, features=features),
            Kept(name=f"{name} output", tokens=Tokens.SEQUENCE, features=features, element=Element.GEMM_INPUT),
            Kept(
                name=f"{name} statistics",
                tokens=Tokens.SEQUENCE,
                features=statistics,
                element=Element.FP32,
                statistic=True,
            ),
        ),
    )


def residual(spec: ModelSpec, name: str) -> tuple[Operator, ...]:
    """Returns the end of a block: dropout if the model has it, and the residual addition."""
    features: Axes = ((TensorAxis.HIDDEN, spec.hidden),)
    addition = Streamed(
        name=f"{name} residual",
        tokens=Tokens.SEQUENCE,
        features=features,
        forward_bytes_per_element=RESIDUAL_BYTES,
        backward_bytes_per_element=RESIDUAL_BYTES,
    )
    return (dropout(spec, name), addition) if spec.dropout else (addition,)


def dropout(spec: ModelSpec, name: str) -> Streamed:
    """Returns dropout on the hidden features; its one-byte mask is kept (E3.5)."""
    features: Axes = ((TensorAxis.HIDDEN, spec.hidden),)
    return Streamed(
        name=f"{name} dropout",
        tokens=Tokens.SEQUENCE,
        features=features,
        forward_bytes_per_element=DROPOUT_BYTES,
        backward_bytes_per_element=DROPOUT_BYTES,
        kept=(Kept(name=f"{name} dropout mask", tokens=Tokens.SEQUENCE, features=features, element=Element.MASK),),
    )
