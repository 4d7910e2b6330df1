"""Norms and residual additions: what stands around every block."""

from __future__ import annotations

from simulator.model.kernels import FUSED, Kernels
from simulator.model.operators import Operator, Part, Streamed
from simulator.model.spec import ModelSpec, Norm
from simulator.model.tensors import Axes, Element, Tensor, TensorAxis, Tokens, Weight

NORM_FORWARD_BYTES = 4.0
NORM_BACKWARD_BYTES = 7.0
"""Bytes an element of a fused norm: forward read and write, backward 6 to 8, the middle taken (E6.3)."""
RESIDUAL_BYTES = 6.0
"""Bytes an element of a residual addition: two reads, one write (E6.3)."""
DROPOUT_BYTES = 5.0
"""Bytes an element of dropout: read, write, one byte of mask (E6.3)."""


def norm(spec: ModelSpec, name: str, *, source: str, width: Axes | None = None, kernels: Kernels = FUSED) -> Streamed:
    """Returns a norm: h scales (RMSNorm) or h scales and h shifts (LayerNorm) (E1.2); it writes `{name} output`.

    It saves its input and its statistics: one fp32 number a token (RMSNorm), two (LayerNorm); the GEMM that follows
    saves its output (E3.5, E3.6). Unfused it saves an fp32 copy of its input and the normalised tensor instead: what
    autograd keeps of `weight * (x.float() * rsqrt).to(x.dtype)`. Derived.

    Args:
        spec: the model.
        name: of the norm.
        source: the tensor that it reads.
        width: features of a token; default: hidden.
        kernels: whether it is fused.
    """
    features: Axes = ((TensorAxis.HIDDEN, spec.hidden),) if width is None else width
    weights: tuple[Weight, ...] = (Weight(name=f"{name} scale", axes=features),)
    statistics: Axes = ()
    if spec.norm is Norm.LAYERNORM:
        weights += (Weight(name=f"{name} shift", axes=features),)
        statistics = ((TensorAxis.LATENT, 2),)
    made = _on_sequence(f"{name} output", features, Element.GEMM_INPUT)
    statistic = Tensor(
        name=f"{name} statistics",
        tokens=Tokens.SEQUENCE,
        features=statistics,
        element=Element.FP32,
        statistic=True,
    )
    copies: tuple[Tensor, ...] = ()
    if not kernels.fused_norm:
        copies = (
            _on_sequence(f"{name} input in fp32", features, Element.FP32),
            _on_sequence(f"{name} normalised", features),
        )
    return Streamed(
        name=name,
        part=Part.NORM,
        tokens=Tokens.SEQUENCE,
        features=features,
        forward_bytes_per_element=NORM_FORWARD_BYTES,
        backward_bytes_per_element=NORM_BACKWARD_BYTES,
        weights=weights,
        reads=(source,),
        writes=(made, *copies, statistic),
        saves=(*((copy.name for copy in copies) if copies else (source,)), statistic.name),
    )


def residual(
    spec: ModelSpec, name: str, *, branches: tuple[str, ...], source: str, result: str
) -> tuple[Operator, ...]:
    """Returns the end of a block: dropout if the model has it, and the residual addition.

    Args:
        spec: the model.
        name: of the block.
        branches: what the block made; dropout works on the first.
        source: what it is added to.
        result: name of the sum.
    """
    features: Axes = ((TensorAxis.HIDDEN, spec.hidden),)
    before: tuple[Operator, ...] = ()
    if spec.dropout:
        before = (dropout(spec, name, source=branches[0]),)
        branches = (f"{name} dropout output", *branches[1:])
    addition = Streamed(
        name=f"{name} residual",
        tokens=Tokens.SEQUENCE,
        features=features,
        forward_bytes_per_element=RESIDUAL_BYTES,
        backward_bytes_per_element=RESIDUAL_BYTES,
        reads=(*branches, source),
        writes=(_on_sequence(result, features),),
        passes_gradient=True,
    )
    return (*before, addition)


def dropout(spec: ModelSpec, name: str, *, source: str) -> Streamed:
    """Returns dropout on the hidden features; its one-byte mask is kept (E3.5)."""
    features: Axes = ((TensorAxis.HIDDEN, spec.hidden),)
    mask = _on_sequence(f"{name} dropout mask", features, Element.MASK)
    return Streamed(
        name=f"{name} dropout",
        tokens=Tokens.SEQUENCE,
        features=features,
        forward_bytes_per_element=DROPOUT_BYTES,
        backward_bytes_per_element=DROPOUT_BYTES,
        reads=(source,),
        writes=(_on_sequence(f"{name} dropout output", features), mask),
        saves=(mask.name,),
    )


def _on_sequence(name: str, features: Axes, element: Element = Element.COMPUTE) -> Tensor:
    return Tensor(name=name, tokens=Tokens.SEQUENCE, features=features, element=element)
