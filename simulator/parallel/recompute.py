"""Which operators of a layer are run again in backward."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction

from simulator.model.layers import Layer, LayerKind
from simulator.model.operators import AttentionCore, ExpertMatMul, MatMul, Operator, Part, is_router
from simulator.model.tensors import Element
from simulator.parallel.training import FullRecompute, Recompute, SelectiveRecompute, Training

WHOLE = "layer"
"""Name of the only region of a layer that is recomputed in full."""
SELECTIVE_DEFAULT = frozenset({str(Part.CORE_ATTENTION)})
"""What `recompute: selective` drops (Korthikanti 2022, section 5)."""
KEEPS_RESULTS = frozenset({str(Part.CORE_ATTENTION), "attention", "mlp", "experts"})
"""Checkpointed parts and blocks, whose results are kept where the next operator saves them; other parts discard theirs
(Megatron-LM, `--recompute-modules`)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RecomputeChoice:
    """What is recomputed in one layer."""

    whole: bool = False
    """The whole layer: only its input is kept."""
    names: frozenset[str] = frozenset()
    """Parts (`Part`) and blocks that are recomputed each on its own."""
    keeps_every_other_matmul: bool = False
    """Of a whole layer: the results of attention and of every other matrix product are kept, not run again."""

    @property
    def nothing(self) -> bool:
        """Whether nothing is recomputed."""
        return not (self.whole or self.names)

    def region(self, *, block: str, part: Part | None) -> str | None:
        """Returns the name of the region that an operator belongs to; None: it is not run again."""
        if self.whole:
            return WHOLE
        if block in self.names:
            return block
        return str(part) if part is not None and part in self.names else None


NOTHING = RecomputeChoice()


def recompute_choice(training: Training, kind: LayerKind, position: int) -> RecomputeChoice:
    """Returns what is recomputed of a layer.

    Args:
        training: the recipe.
        kind: of the layer; embedding and head are never recomputed.
        position: of the layer among its stage's transformer layers.
    """
    recompute = training.recompute
    if kind in (LayerKind.EMBEDDING, LayerKind.HEAD):
        return NOTHING
    if recompute is Recompute.FULL or (isinstance(recompute, FullRecompute) and position < recompute.full_layers):
        return RecomputeChoice(whole=True)
    if recompute is Recompute.EVERY_OTHER_MATMUL:
        return RecomputeChoice(whole=True, keeps_every_other_matmul=True)
    if recompute is Recompute.SELECTIVE:
        return RecomputeChoice(names=SELECTIVE_DEFAULT)
    if isinstance(recompute, SelectiveRecompute):
        return RecomputeChoice(names=frozenset(str(name) for name in recompute.operators))
    return NOTHING


def every_other_matmul_again(layer: Layer) -> Iterator[tuple[Operator, Fraction]]:
    """Yields each operator and the part of it that runs again where every other matrix product is kept.

    Attention and the first, third, fifth result of a matrix product are kept; a product with two results (keys and
    values) counts as two, half of which runs again. Source: torchtitan, selective checkpointing of operators.
    """
    place = 0
    for operator in layer.operators:
        if isinstance(operator, AttentionCore):
            yield operator, Fraction(0)
        elif isinstance(operator, MatMul | ExpertMatMul) and not is_router(operator):
            results = sum(tensor.element is not Element.QUANTISED_COPY for tensor in operator.writes)
            again = sum((place + number) % 2 for number in range(results))
            place += results
            yield operator, Fraction(again, results)
        else:
            yield operator, Fraction(1)
