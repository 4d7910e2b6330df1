"""What one pass of a microbatch does to memory, layer by layer, and the tensors that belong to no operator."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from simulator.cost.memory import Swing
from simulator.cost.shares import LayerShare
from simulator.parallel.degrees import Degrees, Int

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


def layer_tensor_bytes(
    name: str, layer: LayerShare, degrees: Degrees, *, reduced_apart: tuple[bool, bool], element_bytes: int
) -> Int:
    """Returns the bytes of a tensor of a layer that belongs to none of its operators (E3.3).

    Args:
        name: which one: sharded gradients; gathered parameters, fetched whole from the host or quantised for a pass;
            the output of an all-gather, and its input where that was fetched; the input of a reduce-scatter.
        layer: what a rank holds of it.
        degrees: the cuts.
        reduced_apart: whether the gradients of dense and of expert weights are reduced from a copy.
        element_bytes: of a gradient on the network.
    """
    gathered = layer.dense_gathered_bytes * (degrees.shard_group > 1)
    gathered = gathered + layer.expert_gathered_bytes * (degrees.expert_shard_group > 1)
    if name == SHARDED_GRADIENTS:
        return layer.states.gradients
    if name == GATHERED_PARAMETERS:
        return gathered + layer.quantised_bytes + layer.fetched_bytes * (degrees.shard_group == 1)
    if name == ALL_GATHER_BUFFER:
        return gathered + layer.fetched_bytes * (degrees.shard_group > 1)
    dense, expert = reduced_apart
    return element_bytes * (dense * layer.dense_parameters + expert * layer.expert_parameters)


def paired(forward: PassMemory, backward: PassMemory, *, chunks: tuple[int, int]) -> PassMemory:
    """TEMPORARY"""
    raise NotImplementedError
