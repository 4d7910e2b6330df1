"""Low-rank adapters beside the linear layers of a model, everything else frozen.

y = W·x + B·(A·x), A from k features to r, B from r to n. Of a column-parallel W, A is whole on every tensor rank and B
is cut like W's outputs; of a row-parallel one, A is cut like W's inputs and B is whole: B·(A·x) is a part of the sum
that the reduction after W makes anyway. Whole ones see the tokens or features of one rank only, so that their gradients
are summed over the tensor group, like those of norms (E4.14).

A frozen linear layer saves nothing for its weight's gradient; its adapter saves the same input and r features more.
What an adapter adds (scaling, sum) is taken to be fused into B's GEMM; adapter dropout is left out.
Source: Hu 2021 (LoRA, arXiv 2106.09685), section 4.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from simulator.model.layers import Block, Layer, LayerKind, Model
from simulator.model.operators import ExpertMatMul, MatMul, Operator, is_router
from simulator.model.tensors import Axes, Element, Tensor, TensorAxis, Tokens, Weight


@dataclass(frozen=True, slots=True, kw_only=True)
class Adapters:
    """Which adapters a model has."""

    rank: int
    """Inner size r of each."""
    targets: tuple[str, ...] | None = None
    """Names of the weights that have one, as in `adapter_targets`; None: all of them."""


def with_adapters(model: Model, *, rank: int, targets: Sequence[str] | None = None) -> Model:
    """Returns the model with adapters, which alone are trained.

    Args:
        model: as it was pre-trained.
        rank: inner size r of every adapter.
        targets: names of weights that get one, as in `adapter_targets`; None: all of them.
    """
    changed: dict[int, Layer] = {}
    for layer in model.all_layers:
        if id(layer) not in changed:
            changed[id(layer)] = _adapted(layer, rank, targets)
    table = model.tied_table
    return replace(
        model,
        embedding=changed[id(model.embedding)],
        layers=tuple(changed[id(layer)] for layer in model.layers),
        head=changed[id(model.head)],
        tied_table=None if table is None else replace(table, trained=False),
    )


def adapter_targets(model: Model) -> tuple[str, ...]:
    """Returns the names of the weights that can have an adapter: `query`, `gate`, …, without the part they are in."""
    operators = (operator for layer in model.layers for operator in layer.operators if _can_adapt(operator))
    return tuple(dict.fromkeys(_target(weight) for operator in operators for weight in _matrices(operator)))


def _adapted(layer: Layer, rank: int, targets: Sequence[str] | None) -> Layer:
    inner = layer.kind not in (LayerKind.EMBEDDING, LayerKind.HEAD)

    def changed(operators: tuple[Operator, ...]) -> tuple[Operator, ...]:
        found: list[Operator] = []
        for operator in operators:
            found.append(_frozen(operator))
            if inner and isinstance(operator, MatMul | ExpertMatMul) and _can_adapt(operator):
                found += _adapters(operator, rank, targets)
        return tuple(found)

    blocks = tuple(
        Block(
            name=block.name,
            entry=changed(block.entry),
            core=changed(block.core),
            routed=changed(block.routed),
            exit=changed(block.exit),
        )
        for block in layer.blocks
    )
    return replace(layer, blocks=blocks)


def _frozen(operator: Operator) -> Operator:
    """An operator whose weights stay as they are: of what it saves, only what it made itself is needed."""
    weights = tuple(replace(weight, trained=False) for weight in operator.weights)
    if not isinstance(operator, MatMul | ExpertMatMul):
        return replace(operator, weights=weights)
    made = {tensor.name for tensor in operator.writes}
    saves = tuple(name for name in _without_copies(operator) if name in made)
    return replace(operator, weights=weights, saves=saves, gathers_again=(), frozen=True)


def _adapters(operator: MatMul | ExpertMatMul, rank: int, targets: Sequence[str] | None) -> Iterator[Operator]:
    """A and B beside each matrix of a linear layer."""
    latent: Axes = ((TensorAxis.LATENT, rank),)
    tokens = operator.tokens if isinstance(operator, MatMul) else Tokens.ROUTED
    for weight in _matrices(operator):
        if targets is not None and _target(weight) not in targets:
            continue
        experts = tuple(axis for axis in weight.axes if axis[0] is TensorAxis.EXPERTS)
        outputs = weight.axes[len(experts) + len(operator.inputs) :]
        low = Tensor(name=f"{weight.name} adapter", tokens=tokens, features=latent)
        made = Tensor(name=f"{weight.name} adapter result", tokens=tokens, features=outputs)
        yield replace(
            operator,
            name=f"{weight.name} adapter A",
            outputs=latent,
            saves=_without_copies(operator),
            weights=(Weight(name=f"{weight.name}_a", axes=experts + operator.inputs + latent),),
            writes=(low,),
        )
        yield replace(
            operator,
            name=f"{weight.name} adapter B",
            inputs=latent,
            outputs=outputs,
            weights=(Weight(name=f"{weight.name}_b", axes=experts + latent + outputs),),
            reads=(low.name,),
            saves=(low.name,),
            gathers_again=(),
            writes=(made,),
        )


def _without_copies(operator: MatMul | ExpertMatMul) -> tuple[str, ...]:
    """What an operator saves, without quantised copies: those serve the gradient of its own weight."""
    copies = {tensor.name for tensor in operator.writes if tensor.element is Element.QUANTISED_COPY}
    return tuple(name for name in operator.saves if name not in copies)


def _can_adapt(operator: Operator) -> bool:
    return isinstance(operator, MatMul | ExpertMatMul) and not is_router(operator)


def _matrices(operator: Operator) -> tuple[Weight, ...]:
    return tuple(weight for weight in operator.weights if weight.is_matrix)


def _target(weight: Weight) -> str:
    """The name of a weight without the part of the layer that it is in: `mlp gate` and `expert gate` are `gate`."""
    return weight.name.split()[-1]
