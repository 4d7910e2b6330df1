"""Operators: what a layer computes, its weights, and what it keeps for the backward pass.

An operator is one of a few kinds of work, each priced in `simulator.cost` from shapes:

| kind | forward | backward |
| --- | --- | --- |
| `MatMul` | one GEMM `[tokens, k] x [k, n]`, 2·k·n FLOPs a token (E2.0) | two as large: inputs (I), weights (W) |
| `AttentionCore` | 2·a·(d_qk + d_v)·keys FLOPs a token (E2.2) | 2 x, all of it I (E2.5) |
| `ExpertMatMul` | one GEMM for each local expert | as `MatMul` |
| `Streamed` | bytes through memory, no FLOPs worth counting (E6.3) | its own bytes |
"""

from __future__ import annotations

from dataclasses import dataclass

from simulator.model.tensors import Axes, Kept, Tokens, Weight, elements


@dataclass(frozen=True, slots=True, kw_only=True)
class MatMul:
    """A linear layer over the tokens."""

    name: str
    """For example `qkv projection`."""
    tokens: Tokens
    """Rows of the GEMM."""
    inputs: Axes
    """Features in, k."""
    outputs: Axes
    """Features out, n."""
    weights: tuple[Weight, ...]
    """Matrix and bias."""
    kept: tuple[Kept, ...] = ()
    """What this operator keeps for the backward pass."""

    @property
    def forward_flops_per_token(self) -> int:
        """FLOPs of one token, forward: 2·k·n."""
        return 2 * elements(self.inputs) * elements(self.outputs)


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertMatMul:
    """The same linear layer in every routed expert; each routed copy of a token passes one of them."""

    name: str
    """For example `expert gate and up`."""
    inputs: Axes
    """Features in, k, of one expert."""
    outputs: Axes
    """Features out, n, of one expert."""
    num_experts: int
    """Experts of the layer, E."""
    top_k: int
    """Experts that a token is routed to, k."""
    weights: tuple[Weight, ...]
    """The matrices of all experts, with an axis EXPERTS."""
    kept: tuple[Kept, ...] = ()
    """What this operator keeps for the backward pass."""

    @property
    def forward_flops_per_token(self) -> int:
        """FLOPs of one token, forward: 2·k·n for each of its top_k experts."""
        return 2 * elements(self.inputs) * elements(self.outputs) * self.top_k


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionCore:
    """Softmax(Q·K^T)·V over the whole sequence."""

    name: str
    """`attention core`."""
    heads: int
    """Query heads a."""
    kv_heads: int
    """Key-value heads g."""
    qk_head_dim: int
    """Size of a query or key head."""
    value_head_dim: int
    """Size of a value head."""
    kept: tuple[Kept, ...] = ()
    """What this operator keeps for the backward pass."""
    weights: tuple[Weight, ...] = ()
    """None."""

    @property
    def forward_flops_per_key(self) -> int:
        """FLOPs of one token and one key that it attends to, forward: 2·a·(d_qk + d_v) (E2.2)."""
        return 2 * self.heads * (self.qk_head_dim + self.value_head_dim)


@dataclass(frozen=True, slots=True, kw_only=True)
class Streamed:
    """An operator bound by memory bandwidth: norm, activation, dropout, residual, lookup, loss."""

    name: str
    """For example `rmsnorm`."""
    tokens: Tokens
    """Which tokens it touches."""
    features: Axes
    """Output elements of a token."""
    forward_bytes_per_element: float
    """Bytes read and written for each output element in 16-bit types, forward (E6.3)."""
    backward_bytes_per_element: float
    """The same, backward."""
    weights: tuple[Weight, ...] = ()
    """Scales, shifts, tables."""
    kept: tuple[Kept, ...] = ()
    """What this operator keeps for the backward pass."""


Operator = MatMul | ExpertMatMul | AttentionCore | Streamed
