"""The parts of a model: blocks of operators, layers of blocks, and the whole.

A block is what stands between two residual additions. Its operators are grouped by what a tensor-parallel
implementation does around them:

```
entry (norm, router) -> core: gather, column-parallel … row-parallel, reduce -> exit (dropout, residual)
                     -> routed: dispatch, experts, combine                   ->
```
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property

from simulator.errors import SimulatorFault
from simulator.model.operators import AttentionCore, ExpertMatMul, MatMul, Move, Operator, Way
from simulator.model.spec import ModelSpec
from simulator.model.tensors import Tensor, Weight


class LayerKind(StrEnum):
    """What a layer is."""

    EMBEDDING = "embedding"
    DENSE = "dense"
    EXPERTS = "experts"
    HEAD = "head"


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """Operators between two residual additions, in order."""

    name: str
    """`attention`, `mlp`, `experts`, `embedding` or `head`."""
    entry: tuple[Operator, ...] = ()
    """On the tokens of the sequence region, before the gather."""
    core: tuple[Operator, ...] = ()
    """From the gather to the reduction: on all tokens of the context rank, features split over the tensor group."""
    routed: tuple[Operator, ...] = ()
    """On routed tokens, with dispatch and combine among them."""
    exit: tuple[Operator, ...] = ()
    """On the tokens of the sequence region, after the reduction."""

    @property
    def operators(self) -> tuple[Operator, ...]:
        """All operators of the block."""
        return self.entry + self.core + self.routed + self.exit

    def moved_features(self, way: Way) -> int:
        """Returns the features of a token (or of its routed copy) that the moves of one kind carry."""
        return sum(item.features for item in self.operators if isinstance(item, Move) and item.way is way)


@dataclass(frozen=True, kw_only=True, eq=False)
class Layer:
    """A transformer layer, or the embedding, or the head with the loss; compared by identity, as equal ones are one."""

    kind: LayerKind
    """What the layer is."""
    blocks: tuple[Block, ...]
    """In order of the forward pass."""
    input: Tensor
    """What the layer before hands to it."""
    output: str | None
    """The tensor that it hands on; None: the head, which ends in a loss."""

    @cached_property
    def operators(self) -> tuple[Operator, ...]:
        """All operators of the layer."""
        return tuple(operator for block in self.blocks for operator in block.operators)

    @cached_property
    def tensors(self) -> dict[str, Tensor]:
        """The tensors that its operators write, by name."""
        tensors = [tensor for operator in self.operators for tensor in operator.writes]
        by_name = {tensor.name: tensor for tensor in tensors}
        if len(by_name) < len(tensors):
            raise SimulatorFault(f"two tensors of a {self.kind} layer have the same name")
        return by_name

    @cached_property
    def kept(self) -> tuple[Tensor, ...]:
        """What autograd keeps of a forward pass without recompute, each tensor once; its input among them."""
        names = dict.fromkeys(name for operator in self.operators for name in operator.saves)
        return tuple(self.input if name == self.input.name else self.tensors[name] for name in names)

    @cached_property
    def weights(self) -> tuple[Weight, ...]:
        """All weights of the layer."""
        return tuple(weight for operator in self.operators for weight in operator.weights)

    @cached_property
    def num_parameters(self) -> int:
        """Parameters of the layer."""
        return sum(weight.count for weight in self.weights)


@dataclass(frozen=True, kw_only=True)
class Model:
    """A whole model: embedding, layers, head. Layers of one kind are one object."""

    spec: ModelSpec
    """The numbers it was built from."""
    sequence_length: int
    """Tokens of a sequence, which sizes the score matrix and the attention FLOPs."""
    embedding: Layer
    """Token and position tables."""
    layers: tuple[Layer, ...]
    """The transformer layers in order."""
    head: Layer
    """Last norm, output projection, loss; without its table if that is tied."""
    tied_table: Weight | None
    """The token table that the head shares with the embedding; a pipeline stores it twice (E1.12)."""

    @cached_property
    def num_parameters(self) -> int:
        """All parameters, exact, a tied head counted once."""
        return sum(layer.num_parameters for layer in (self.embedding, *self.layers, self.head))

    @cached_property
    def num_embedding_parameters(self) -> int:
        """Parameters of the token and position tables."""
        return self.embedding.num_parameters

    @cached_property
    def num_active_parameters(self) -> int:
        """Parameters that one token uses: top_k of the routed experts, everything else (E1.9)."""
        experts = self.spec.experts
        if experts is None:
            return self.num_parameters
        routed = sum(
            weight.count
            for layer in self.layers
            for operator in layer.operators
            if isinstance(operator, ExpertMatMul)
            for weight in operator.weights
        )
        return self.num_parameters - routed // experts.count * (experts.count - experts.top_k)

    @cached_property
    def matmul_flops_per_token(self) -> int:
        """FLOPs of one token in all linear layers and the head, forward (E2.1, E2.3, E2.4)."""
        return sum(
            operator.forward_flops_per_token
            for layer in (self.embedding, *self.layers, self.head)
            for operator in layer.operators
            if isinstance(operator, MatMul | ExpertMatMul)
        )

    @cached_property
    def attention_flops_per_key(self) -> int:
        """FLOPs of one token and one key that it attends to, in all layers, forward (E2.2)."""
        return sum(
            operator.forward_flops_per_key
            for layer in self.layers
            for operator in layer.operators
            if isinstance(operator, AttentionCore)
        )
