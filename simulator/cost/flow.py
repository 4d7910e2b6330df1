"""The dataflow of a layer as it runs on one rank: which moves copy, and which tensors are one and the same."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from simulator.cost.tape import Splits
from simulator.model.layers import Layer
from simulator.model.operators import AttentionCore, Move, Operator, Way
from simulator.model.tensors import Tensor
from simulator.parallel.layout import ContextMethod


@dataclass(slots=True)
class Flow:
    """The operators of a layer that run, and the names of their tensors."""

    layer: Layer
    """The layer."""
    splits: Splits
    """Which copies exist."""
    operators: tuple[Operator, ...] = ()
    """Those that run, in order: moves that move nothing are left out."""
    tensors: dict[str, Tensor] = field(default_factory=dict)
    """By name."""
    blocks: dict[int, str] = field(default_factory=dict)
    """Block of each operator, by identity."""
    _same_as: dict[str, str] = field(default_factory=dict)
    """Names of tensors that are another one, as nothing moves between them."""

    def __post_init__(self) -> None:
        layer = self.layer
        self.tensors = {layer.input.name: layer.input, **layer.tensors}
        self.blocks = {id(operator): block.name for block in layer.blocks for operator in block.operators}
        running: list[Operator] = []
        for operator in layer.operators:
            if isinstance(operator, Move) and not self._moves(operator):
                for source, made in zip(operator.reads, operator.writes, strict=True):
                    # What a gather reads is saved whole; of the others, what they make.
                    if operator.way is Way.GATHER:
                        self._same_as[made.name] = source
                    else:
                        self._same_as[source] = made.name
            else:
                running.append(operator)
        if self.splits.context is ContextMethod.ULYSSES:
            running = [self._with_output_by_heads(operator) for operator in running]
        self.operators = tuple(running)

    @property
    def input(self) -> str:
        """The tensor that the layer takes over."""
        return self.name(self.layer.input.name)

    @property
    def output(self) -> str | None:
        """The tensor that it hands on; None: it ends in a loss."""
        return None if self.layer.output is None else self.name(self.layer.output)

    def name(self, name: str) -> str:
        """Returns the tensor that a name stands for."""
        while name in self._same_as:
            name = self._same_as[name]
        return name

    def names(self, names: Iterable[str]) -> tuple[str, ...]:
        """Returns the tensors that names stand for, each once."""
        return tuple(dict.fromkeys(self.name(name) for name in names))

    def writes(self, operator: Operator) -> tuple[str, ...]:
        """Returns the tensors that an operator makes."""
        return self.names(tensor.name for tensor in operator.writes)

    def _with_output_by_heads(self, operator: Operator) -> Operator:
        """Ulysses keeps what the core makes before its all-to-all as well (Transformer Engine; measured, see docs)."""
        if not isinstance(operator, AttentionCore):
            return operator
        made = replace(operator.writes[0], name=f"{operator.writes[0].name} by heads")
        self.tensors[made.name] = made
        changed = replace(operator, writes=(*operator.writes, made), saves=(*operator.saves, made.name))
        self.blocks[id(changed)] = self.blocks[id(operator)]
        return changed

    def _moves(self, move: Move) -> bool:
        return self.splits.sequence if move.way in (Way.GATHER, Way.REDUCE) else self.splits.experts
