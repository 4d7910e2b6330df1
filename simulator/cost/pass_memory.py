"""What one pass of a microbatch does to memory, layer by layer, and the tensors that belong to no operator."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from simulator.cost.memory import Swing

ALL_GATHER_BUFFER, REDUCE_SCATTER_INPUT = "all-gather buffer", "input of reduce-scatter"
SHARDED_GRADIENTS, GATHERED_PARAMETERS = "sharded gradients", "gathered parameters"
STAGE_INPUT, STAGE_OUTPUT = "stage input", "stage output"
"""What a stage receives and sends, where that is not the embedding's or the head's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class At:
    """A swing and where it happens."""

    swing: Swing
    """What it does."""
    place: int | None
    """Position of the layer in its stage; None: the stage as a whole."""
    chunk: int | None = None
    """Stage of the rank, by its number there; None: that of the routine which it is part of."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerMemory:
    """One layer in one pass."""

    before: tuple[At, ...]
    """What comes before it runs: gathered parameters."""
    during: At
    """Its own tensors."""
    after: tuple[At, ...]
    """What goes, or comes, when it has run: gathered parameters, gradients to reduce."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PassMemory:
    """The pass of one microbatch through a stage."""

    begin: tuple[At, ...]
    """What the stage receives."""
    layers: dict[int, LayerMemory]
    """By position, in the order of the pass."""
    end: tuple[At, ...]
    """What the stage has sent."""

    def __iter__(self) -> Iterator[At]:
        """Yields all swings in order."""
        yield from self.begin
        for layer in self.layers.values():
            yield from layer.before
            yield layer.during
            yield from layer.after
        yield from self.end
