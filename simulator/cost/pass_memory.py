"""What one pass of a microbatch does to memory, layer by layer, and the tensors that belong to no operator."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import zip_longest

from simulator.cost.memory import Swing
from simulator.cost.shares import LayerShare
from simulator.parallel.degrees import Degrees, Int
from simulator.schedule.actions import ActionKind

ALL_GATHER_BUFFER, REDUCE_SCATTER_INPUT = "all-gather buffer", "input of reduce-scatter"
SHARDED_GRADIENTS, GATHERED_PARAMETERS = "sharded gradients", "gathered parameters"
STAGE_INPUT, STAGE_OUTPUT = "stage input", "stage output"
"""What a stage receives and sends, where that is not the embedding's or the head's."""
OF_INPUTS = (ActionKind.BACKWARD, ActionKind.BACKWARD_INPUT)
"""Passes that make gradients of inputs: they need parameters, and the gradient of the stage's output."""
OF_WEIGHTS = (ActionKind.BACKWARD, ActionKind.BACKWARD_WEIGHT)
"""Passes that make gradients of matrices."""
OF_ONE_HALF = (ActionKind.BACKWARD_INPUT, ActionKind.BACKWARD_WEIGHT)
"""The two passes of a split backward."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """What sets a pass apart from others of its stage: its place in the order of the rank, not its microbatch."""

    first_forward: bool = False
    """The stage's first forward of a step: parameters that stay are gathered."""
    first_backward: bool = False
    """Its first backward, whole or of inputs: the gradients of norms and tables begin."""
    first_gradients: bool = False
    """Its first backward, whole or of weights: the gradients of matrices begin."""
    last_gradients: bool = False
    """Its last such pass: all gradients are complete."""
    last_parameters: bool = False
    """Its last pass that needs parameters, a backward that is whole or of inputs."""


NO_TURN = Turn()
EVERY_TURN = Turn(
    first_forward=True, first_backward=True, first_gradients=True, last_gradients=True, last_parameters=True
)
"""Of the only microbatch of a step."""


@dataclass(frozen=True, slots=True, kw_only=True)
class At:
    """A swing and where it happens."""

    swing: Swing
    """What it does."""
    place: int | None
    """Position of the layer in its stage; None: the stage as a whole."""
    chunk: int | None = None
    """Stage of the rank, by its number there; None: that of the routine which it is part of."""
    is_split: bool = False
    """Whether it is part of a split backward, in which gradients pass from layer to layer in buffers of their own."""
    is_second: bool = False
    """Whether it is part of the second pass of a joined pair, the backward."""
    parts: tuple[At, ...] = ()
    """What the swing of two layers beside each other is made of, each part with its own layer; else nothing."""

    @property
    def pieces(self) -> tuple[At, ...]:
        """Swings of one layer each that are, one after the other, this one."""
        return self.parts or (self,)


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

    def of_chunk(self, chunk: int, *, is_second: bool = False) -> PassMemory:
        """Returns the same pass as that of a stage which its routine does not name."""

        def named(swings: tuple[At, ...]) -> tuple[At, ...]:
            return tuple(replace(at, chunk=chunk, is_second=is_second) for at in swings)

        return PassMemory(
            begin=named(self.begin),
            layers={
                position: LayerMemory(
                    before=named(layer.before), during=named((layer.during,))[0], after=named(layer.after)
                )
                for position, layer in self.layers.items()
            },
            end=named(self.end),
        )


def paired(forward: PassMemory, backward: PassMemory, *, chunks: tuple[int, int]) -> PassMemory:
    """Returns the two passes of a joined pair, layer beside layer; the shorter one ends earlier.

    Two layers beside each other are both at their highest point at one moment: forward goes up to its own, backward
    runs through, forward goes on. Derived: kernels of both are in flight, so that neither frees before the other has
    allocated.

    Args:
        forward: the one pass.
        backward: the other one, a backward.
        chunks: their stages, by number on the rank.

    Returns:
        By step instead of position: its layers are those of both passes in their order.
    """
    one, other = forward.of_chunk(chunks[0]), backward.of_chunk(chunks[1], is_second=True)
    known: dict[tuple[Swing, Swing], tuple[Swing, ...]] = {}
    layers = {}
    for step, both in enumerate(zip_longest(one.layers.values(), other.layers.values())):
        present = [layer for layer in both if layer is not None]
        layers[step] = LayerMemory(
            before=tuple(at for layer in present for at in layer.before),
            during=_beside([layer.during for layer in present], known),
            after=tuple(at for layer in present for at in layer.after),
        )
    return PassMemory(begin=one.begin + other.begin, layers=layers, end=one.end + other.end)


def _beside(both: list[At], known: dict[tuple[Swing, Swing], tuple[Swing, ...]]) -> At:
    """One swing of one layer, or of two; `known`: those that were joined before, equal layers have the same."""
    if len(both) == 1:
        return both[0]
    first, second = both
    key = (first.swing, second.swing)
    if key not in known:
        held, events, summit = first.swing.held, first.swing.events, first.swing.summit
        between = tuple((number + len(held), sign) for number, sign in second.swing.events)
        known[key] = (
            Swing(held=held + second.swing.held, events=events[:summit] + between + events[summit:]),
            Swing(held=held, events=events[:summit]),
            Swing(held=held, events=events[summit:]),
        )
    joined, rise, fall = known[key]
    return At(swing=joined, place=None, parts=(replace(first, swing=rise), second, replace(first, swing=fall)))


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
