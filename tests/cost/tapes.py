"""Tapes played event by event, for tests: what is live when, and in how many bytes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from simulator.cost.liveness import layer_tapes
from simulator.cost.memory import Swing, measured
from simulator.cost.tape import Entry, LayerTapes, Splits, Tape, Use, WeightGradients
from simulator.model.layers import Layer
from simulator.parallel.degrees import Degrees
from simulator.parallel.recompute import NOTHING, RecomputeChoice
from simulator.parallel.sharding import Workload
from tests.parallel.jobs import degrees, workload


def splits(**given: Any) -> Splits:
    """Nothing is split and GEMMs add their weight gradients to the resident ones, unless said."""
    plain = {
        "sequence": False,
        "experts": False,
        "context": None,
        "gradients": WeightGradients.ACCUMULATED,
        "expert_gradients": WeightGradients.ACCUMULATED,
        "other_gradients": WeightGradients.ACCUMULATED,
        "quantised": False,
    }
    return Splits(**(plain | given))


@dataclass(frozen=True, kw_only=True)
class Played:
    """A pass of a layer, event by event."""

    entries: tuple[Entry, ...]
    """Its tensors."""
    live: list[frozenset[int]]
    """Entries in memory before the first event and after each."""
    changes: list[int]
    """Bytes more than before the first event, after each; the first is 0."""
    swing: Swing
    """The same with bytes."""

    def names(self, moment: int) -> set[str]:
        """Tensors in memory at a moment; -1: at the end."""
        return {self.entries[number].name for number in self.live[moment]}

    def alive_with(self, *names: str) -> list[int]:
        """The moments at which all of these are in memory."""
        return [moment for moment in range(len(self.live)) if set(names) <= self.names(moment)]

    def times_allocated(self, name: str) -> int:
        """How often a tensor of this name was allocated."""
        return sum(sign > 0 and self.entries[number].name == name for number, sign in self.swing.events)

    def bytes_of(self, name: str) -> int:
        """Size of a tensor."""
        return next(int(held.bytes) for held in self.swing.held if held.name == name)

    @property
    def highest(self) -> int:
        """The highest point over the start."""
        return max(self.changes)


def played(tape: Tape, start: Iterable[int], shape: Workload, cut: Degrees) -> Played:
    """Play a tape; it fails where something is allocated that is there, or freed that is not."""
    swing = measured(tape, shape, cut, weight_gradient_bytes=2, kept_gradient_bytes=4)
    live, changes = [frozenset(start)], [0]
    for number, sign in tape.events:
        name = tape.entries[number].name
        assert (number in live[-1]) is (sign < 0), f"{name} is {'not ' if sign < 0 else ''}there"
        live.append(live[-1] ^ {number})
        changes.append(changes[-1] + sign * int(swing.held[number].bytes))
    return Played(entries=tape.entries, live=live, changes=changes, swing=swing)


def both_passes(
    layer: Layer,
    *,
    choice: RecomputeChoice = NOTHING,
    cuts: Splits | None = None,
    shape: Workload | None = None,
    cut: Degrees | None = None,
) -> tuple[LayerTapes, Played, Played]:
    """The tapes of a layer, and its two passes, each from what the one before has left."""
    tapes = layer_tapes(layer, choice, splits() if cuts is None else cuts)
    shape, cut = workload(8) if shape is None else shape, degrees() if cut is None else cut
    forward = played(tapes.forward, _numbers(tapes, {layer.input.name}), shape, cut)
    return tapes, forward, played(tapes.backward, _before_backward(tapes), shape, cut)


def both_halves(
    layer: Layer,
    *,
    choice: RecomputeChoice = NOTHING,
    cuts: Splits | None = None,
    shape: Workload | None = None,
    cut: Degrees | None = None,
) -> tuple[LayerTapes, Played, Played]:
    """The tapes of a layer, and the two halves of its backward; the gradient of its input is gone before the second."""
    tapes = layer_tapes(layer, choice, splits() if cuts is None else cuts)
    shape, cut = workload(8) if shape is None else shape, degrees() if cut is None else cut
    inputs = played(tapes.backward_input, _before_backward(tapes), shape, cut)
    waiting = {number for number in inputs.live[-1] if tapes.forward.entries[number].name != tapes.handed_by_input}
    return tapes, inputs, played(tapes.backward_weight, waiting, shape, cut)


def _before_backward(tapes: LayerTapes) -> set[int]:
    """What the forward pass has left, and the gradient that the layer after hands over."""
    kept = _numbers(tapes, {tensor.name for tensor in tapes.kept})
    return kept | {number for number, entry in enumerate(tapes.forward.entries) if entry.operator == "layer after"}


def _numbers(tapes: LayerTapes, names: set[str]) -> set[int]:
    entries = tapes.forward.entries
    return {number for number, entry in enumerate(entries) if entry.name in names and entry.use is Use.SAVED}
