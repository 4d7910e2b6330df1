"""Tapes: which tensors of a layer come and go, in order, without their sizes."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from simulator.model.operators import AttentionCore
from simulator.model.tensors import Tensor, Weight
from simulator.parallel.layout import ContextMethod
from simulator.schedule.actions import ActionKind


class WeightGradients(StrEnum):
    """Where an operator's backward puts the gradients of its weights."""

    ACCUMULATED = "accumulated"
    """A GEMM adds them to the resident ones; those of tables, norms and biases are temporary tensors."""
    TEMPORARY = "temporary"
    """In a temporary tensor each, added to the resident ones and freed at once."""
    KEPT = "kept"
    """In a tensor each that stays until the layer's gradients are reduced."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Splits:
    """What decides which tensors exist, beside the operators."""

    sequence: bool
    """Sequence parallelism: gathered tensors are copies."""
    experts: bool
    """Experts lie on several ranks: dispatched tensors are copies."""
    context: ContextMethod | None
    """How attention works on the keys of other ranks, for which it has buffers; None: there are no others."""
    gradients: WeightGradients
    """Where gradients of dense matrices, and of their biases, go."""
    expert_gradients: WeightGradients
    """Where gradients of experts go."""
    other_gradients: WeightGradients
    """Where gradients of norms and tables go, which a backward of inputs makes."""
    quantised: bool
    """Matrix products in eight bits or fewer: where a copy for them exists, a weight gradient reads that alone."""


class Use(StrEnum):
    """What a tensor is there for."""

    SAVED = "saved"
    """Kept, or restored, for backward."""
    PASSING = "passing"
    """Freed in the pass that made it."""
    WEIGHT_GRADIENT = "weight_gradient"
    """The gradients of an operator's weights."""


class Measure(StrEnum):
    """How the bytes of an entry follow from its tensor."""

    TENSOR = "tensor"
    """Those of the tensor."""
    GRADIENT = "gradient"
    """Those of its gradient: never in fewer bytes than the activation type."""
    WEIGHTS = "weights"
    """Those of the gradients of weights, as autograd makes them."""
    KEPT_WEIGHTS = "kept_weights"
    """The same where they stay until they are reduced."""
    CONTEXT_FORWARD = "context_forward"
    """Buffers of context parallel attention, forward."""
    CONTEXT_BACKWARD = "context_backward"
    """The same, backward."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A tensor that a tape allocates or frees."""

    name: str
    """As a memory viewer shows it."""
    operator: str
    """Who made it."""
    use: Use
    """What it is there for."""
    measure: Measure
    """How its bytes are found."""
    tensor: Tensor | None = None
    """The tensor, or that whose gradient it is."""
    weights: tuple[Weight, ...] = ()
    """The weights whose gradients it holds."""
    attention: AttentionCore | None = None
    """The attention core whose buffers it is."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Tape:
    """Allocations and frees in the order of the program."""

    entries: tuple[Entry, ...]
    """The tensors; those of all passes of a layer are the same tuple."""
    events: tuple[tuple[int, int], ...]
    """(entry, +1 allocated or -1 freed)."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LayerTapes:
    """What a layer does to memory in its passes."""

    forward: Tape
    """From the layer's input being there to its output being there."""
    backward: Tape
    """The whole backward, from the gradient of its output to that of its input."""
    backward_input: Tape
    """The same without the gradients of matrices, for which inputs and gradients of outputs stay."""
    backward_weight: Tape
    """The gradients of matrices, from what the backward of inputs has left."""
    kept: tuple[Tensor, ...]
    """What stays from forward to backward."""
    given_gradient: str
    """Name of the entry that holds the gradient of its output, which it takes over; empty: there is none."""
    handed_gradient: str
    """Name of the entry that holds the gradient of its input at the end; a residual path hands on the same one."""
    handed_by_input: str
    """The same after a backward of inputs: another one where the gradient that it took over stays for a matrix."""

    def of(self, kind: ActionKind) -> Tape:
        """Returns the tape of a pass."""
        match kind:
            case ActionKind.FORWARD:
                return self.forward
            case ActionKind.BACKWARD:
                return self.backward
            case ActionKind.BACKWARD_INPUT:
                return self.backward_input
            case ActionKind.BACKWARD_WEIGHT:
                return self.backward_weight
