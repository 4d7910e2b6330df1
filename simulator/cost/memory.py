"""What memory counts as, and how a piece of a step changes it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property

import numpy as np

from simulator.cost.tape import Entry, Measure, Tape, Use
from simulator.parallel.degrees import Degrees, Int
from simulator.parallel.sharding import Workload, context_buffer_bytes, gradient_bytes, local_elements, tensor_bytes


class Memory(StrEnum):
    """What memory counts as; the names of the report's categories."""

    PARAMETERS = "parameters"
    GRADIENTS = "gradients"
    OPTIMIZER = "optimizer"
    ACTIVATIONS = "activations"
    LOGITS = "logits"
    TEMPORARY = "temporary"
    COMMUNICATION = "communication"
    FRAMEWORK = "framework"


MEMORY = tuple(Memory)
Levels = tuple[Int, ...]
"""Bytes of each category, in the order of `MEMORY`."""
ZERO: Levels = (0,) * len(MEMORY)
_PLACES = {category: place for place, category in enumerate(MEMORY)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """A tensor with its bytes on one rank."""

    name: str
    """As a memory viewer shows it."""
    operator: str
    """Who made it."""
    category: Memory
    """What it counts as."""
    bytes: Int
    """Its size."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Swing:
    """Allocations and frees in a row: a pass of a layer, or a single buffer that comes or goes."""

    held: tuple[Held, ...]
    """The tensors."""
    events: tuple[tuple[int, int], ...]
    """(tensor, +1 allocated or -1 freed), in order."""

    @cached_property
    def extremes(self) -> tuple[Levels, Levels]:
        """Change of each category up to the highest point, and up to the end: numbers, or arrays of candidates."""
        if len(self.events) == 1 and isinstance(self.held[self.events[0][0]].bytes, int):
            number, sign = self.events[0]
            tensor = self.held[number]
            place = _PLACES[tensor.category]
            net = (*ZERO[:place], sign * tensor.bytes, *ZERO[place + 1 :])
            return (net if sign > 0 else ZERO), net
        found = [tensor.bytes for tensor in self.held]
        if any(isinstance(size, np.ndarray) for size in found):
            found = list(np.broadcast_arrays(*found))
        sizes = np.array(found, dtype=np.int64)
        numbers, signs = np.array(self.events, dtype=np.int64).reshape(-1, 2).T
        places = np.array([_PLACES[tensor.category] for tensor in self.held], dtype=np.int64)
        changes = np.zeros((len(self.events) + 1, len(MEMORY), *sizes.shape[1:]), dtype=np.int64)
        changes[np.arange(1, len(changes)), places[numbers]] = (signs * sizes[numbers].T).T
        levels = changes.cumsum(axis=0)
        highest = levels.sum(axis=1).argmax(axis=0)
        if sizes.ndim == 1:
            return tuple(levels[highest].tolist()), tuple(levels[-1].tolist())
        return tuple(levels[highest, :, np.arange(sizes.shape[1])].T), tuple(levels[-1])

    @property
    def peak(self) -> Levels:
        """Change of each category from the start to the highest point; nothing, if it only falls."""
        return self.extremes[0]

    @property
    def net(self) -> Levels:
        """Change of each category from the start to the end."""
        return self.extremes[1]

    @property
    def summit(self) -> int:
        """How many events come before its highest point, the first of equal ones; of one layout, not of candidates."""
        level = highest = found = 0
        for count, (number, sign) in enumerate(self.events, start=1):
            level += sign * int(self.held[number].bytes)
            if level > highest:
                highest, found = level, count
        return found


def taken(name: str, category: Memory, size: Int) -> Swing:
    """Returns the swing that allocates one tensor."""
    return Swing(held=(Held(name=name, operator="", category=category, bytes=size),), events=((0, 1),))


def given_back(name: str, category: Memory, size: Int) -> Swing:
    """Returns the swing that frees one tensor."""
    return Swing(held=(Held(name=name, operator="", category=category, bytes=size),), events=((0, -1),))


def released(swing: Swing, category: Memory) -> Swing:
    """Returns the swing that frees what another one has left of a category."""
    left = Counter[int]()
    for number, sign in swing.events:
        left[number] += sign
    names = tuple(number for number, count in left.items() if count > 0 and swing.held[number].category is category)
    return Swing(held=swing.held, events=tuple((number, -1) for number in names))


def measured(
    tape: Tape, workload: Workload, degrees: Degrees, *, weight_gradient_bytes: int, kept_gradient_bytes: int
) -> Swing:
    """Returns a tape with the sizes of its tensors on one rank; see `held_tensors`."""
    held = held_tensors(
        tape.entries,
        workload,
        degrees,
        weight_gradient_bytes=weight_gradient_bytes,
        kept_gradient_bytes=kept_gradient_bytes,
    )
    return Swing(held=held, events=tape.events)


def held_tensors(
    entries: Iterable[Entry],
    workload: Workload,
    degrees: Degrees,
    *,
    weight_gradient_bytes: int,
    kept_gradient_bytes: int,
) -> tuple[Held, ...]:
    """Returns the tensors of tapes with their sizes on one rank.

    Args:
        entries: the tensors.
        workload: the microbatch.
        degrees: the cuts.
        weight_gradient_bytes: bytes of an element of the gradient of a weight, as autograd makes it.
        kept_gradient_bytes: the same where it stays until gradients are reduced.
    """
    element_bytes = {Measure.WEIGHTS: weight_gradient_bytes, Measure.KEPT_WEIGHTS: kept_gradient_bytes}
    return tuple(
        Held(
            name=entry.name,
            operator=entry.operator,
            category=_category(entry),
            bytes=_bytes(entry, workload, degrees, element_bytes),
        )
        for entry in entries
    )


def _category(entry: Entry) -> Memory:
    if entry.use is Use.WEIGHT_GRADIENT:
        return Memory.GRADIENTS
    if entry.tensor is not None and entry.tensor.is_logits:
        return Memory.LOGITS
    return Memory.ACTIVATIONS if entry.use is Use.SAVED else Memory.TEMPORARY


def _bytes(entry: Entry, workload: Workload, degrees: Degrees, element_bytes: dict[Measure, int]) -> Int:
    if entry.measure in element_bytes:
        return element_bytes[entry.measure] * sum(
            local_elements(weight.axes, degrees, vocab_padding=workload.vocab_padding) for weight in entry.weights
        )
    if entry.attention is not None:
        return context_buffer_bytes(
            entry.attention, workload, degrees, backward=entry.measure is Measure.CONTEXT_BACKWARD
        )
    if entry.tensor is None:
        return 0
    size = gradient_bytes if entry.measure is Measure.GRADIENT else tensor_bytes
    return size(entry.tensor, workload, degrees)


def along(initial: Levels, swings: Iterable[Swing]) -> tuple[Levels, Levels]:
    """Returns the level of each category at the highest point of swings in a row, and after the last."""
    level, best = list(initial), list(initial)
    total = highest = sum(initial)
    for swing in swings:
        higher = total + sum(swing.peak) > highest
        if isinstance(higher, np.ndarray) or higher:
            reached = [now + change for now, change in zip(level, swing.peak, strict=True)]
            if isinstance(higher, np.ndarray):
                reached = [np.where(higher, new, old) for new, old in zip(reached, best, strict=True)]
            best, highest = reached, sum(reached)
        level = [now + change for now, change in zip(level, swing.net, strict=True)]
        total = sum(level)
    return tuple(best), tuple(level)
