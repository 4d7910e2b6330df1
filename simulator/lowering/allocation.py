"""From the routines of a step to the allocations of one rank class, tensor by tensor, for the allocator's model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from simulator.cost.allocation_trace import NO_LAYER, AllocationTrace, TensorLabel
from simulator.cost.memory import Held, Memory
from simulator.cost.pass_memory import (
    ALL_GATHER_BUFFER,
    GATHERED_PARAMETERS,
    SHARDED_GRADIENTS,
    STAGE_INPUT,
    STAGE_OUTPUT,
)
from simulator.cost.pricing import StageCosts
from simulator.cost.resident import OUTSIDE_ALLOCATOR
from simulator.cost.shares import StageShare
from simulator.cost.stage_memory import MemoryRules
from simulator.cost.tape import LayerTapes
from simulator.lowering.builder import WrittenRoutine
from simulator.lowering.step import LoweredStep
from simulator.model.layers import LayerKind
from simulator.schedule import PipelineSchedule

IntArray = npt.NDArray[np.int64]
STREAMS = {ALL_GATHER_BUFFER: 1, SHARDED_GRADIENTS: 2}
"""Tensors that torch's FSDP allocates on a stream of its own; all others are those of the compute stream, 0."""
_Place = tuple[int | None, str]
"""Position of a layer in its stage, and a name there."""
GRADIENT_OF = "gradient of "
"""How the tapes call a gradient."""
RESIDENT = "resident"
"""The action of what is there before the step."""


def allocation_trace(
    step: LoweredStep, costs: StageCosts, schedule: PipelineSchedule, class_number: int
) -> AllocationTrace:
    """Returns what a rank class allocates and frees in a step, in the order of its program.

    Args:
        step: the program of the step.
        costs: of its stages.
        schedule: says which stages lie on which pipeline rank.
        class_number: which class of the program.
    """
    rank = step.pipeline_ranks[class_number]
    calls = step.program.classes[class_number].calls
    routines, resident = step.routines, step.resident[rank]
    stages = [stage.stage.num_transformer_layers for stage in costs.stages]
    shares = [costs.stages[stage].share for stage in schedule.stages_of(rank)]
    first_layers = [sum(stages[: share.stage.index]) for share in shares]
    slots = _Slots(shares=shares, first_layers=first_layers, names=[_names(share, costs.memory) for share in shares])
    for held in resident:
        if held.category not in OUTSIDE_ALLOCATOR and held.bytes:
            slots.number(held, chunk=None, place=None, layer=NO_LAYER)
    num_resident = len(slots.held)
    templates = {int(number): slots.template(routines[number]) for number in np.unique(calls[:, 0])}
    # A tensor is a slot in a microbatch; gradients and gathered parameters are the same tensor in all of them.
    span = int(calls[:, 1].max()) + 1
    lasting = np.array(
        [held.category is Memory.GRADIENTS or held.name == GATHERED_PARAMETERS for held in slots.held], dtype=np.int64
    )
    parts = [np.arange(num_resident) * span]
    signs = [np.ones(num_resident, dtype=np.int64)]
    actions = [np.zeros(num_resident, dtype=np.int64)]
    for number, (routine, microbatch) in enumerate(calls.tolist(), start=1):
        places, directions = templates[routine]
        parts.append(places * span + microbatch * (1 - lasting[places]))
        signs.append(directions)
        actions.append(np.full(len(places), number))
    keys, tensors = np.unique(np.concatenate(parts), return_inverse=True)
    allocates = np.concatenate(signs) > 0
    slot = keys // span
    action = np.zeros(len(keys), dtype=np.int64)
    # Written last to first, so that the first allocation of a tensor names its action.
    action[tensors[allocates][::-1]] = np.concatenate(actions)[allocates][::-1]
    return AllocationTrace(
        tensors=tensors.astype(np.int64),
        allocates=allocates,
        tensor_bytes=np.array([int(held.bytes) for held in slots.held], dtype=np.int64)[slot],
        tensor_streams=np.array([STREAMS.get(held.name, 0) for held in slots.held], dtype=np.int64)[slot],
        tensor_labels=np.array(slots.labels_of_slots, dtype=np.int64)[slot],
        tensor_layers=np.array(slots.layers, dtype=np.int64)[slot],
        tensor_actions=action,
        labels=tuple(slots.labels),
        actions=(
            RESIDENT,
            *(f"{routines[routine].routine.name} {microbatch}" for routine, microbatch in calls.tolist()),
        ),
    )


@dataclass(slots=True)
class _Slots:
    """The distinct tensors of a step's routines, microbatches apart."""

    shares: Sequence[StageShare]
    first_layers: Sequence[int]
    names: Sequence[_Names]
    held: list[Held] = field(default_factory=list)
    layers: list[int] = field(default_factory=list)
    labels: dict[TensorLabel, int] = field(default_factory=dict)
    labels_of_slots: list[int] = field(default_factory=list)
    _numbers: dict[object, int] = field(default_factory=dict)

    def number(self, held: Held, *, chunk: int | None, place: object, layer: int) -> int:
        """Returns the number of a tensor's slot."""
        # Buffers of one name may differ in size between the passes.
        key = (chunk, held.name if place is None else place, held.category, int(held.bytes))
        if key not in self._numbers:
            self._numbers[key] = len(self.held)
            self.held.append(held)
            self.layers.append(layer)
            label = TensorLabel(name=held.name, category=held.category, operator=held.operator)
            self.labels_of_slots.append(self.labels.setdefault(label, len(self.labels)))
        return self._numbers[key]

    def template(self, routine: WrittenRoutine) -> tuple[IntArray, IntArray]:
        """Returns the events of a routine: slots and directions."""
        found = list(self._events(routine))
        numbers, signs = np.array(found, dtype=np.int64).reshape(-1, 2).T
        return numbers, signs

    def _events(self, routine: WrittenRoutine) -> Iterator[tuple[int, int]]:
        for at in routine.swings:
            chunk = routine.chunk if at.chunk is None else at.chunk
            numbers: dict[int, int] = {}
            for number, sign in at.swing.events:
                held = at.swing.held[number]
                if not held.bytes:
                    continue
                if number not in numbers:
                    place = None if chunk is None else self.names[chunk].of(at.place, held.name)
                    layer = NO_LAYER if chunk is None else self._layer(chunk, at.place)
                    numbers[number] = self.number(held, chunk=chunk, place=place, layer=layer)
                yield numbers[number], sign

    def _layer(self, chunk: int, place: int | None) -> int:
        share = self.shares[chunk]
        if place is None or share.layers[place].layer.kind in (LayerKind.EMBEDDING, LayerKind.HEAD):
            return NO_LAYER
        has_embedding = share.layers[0].layer.kind is LayerKind.EMBEDDING
        return self.first_layers[chunk] + place - has_embedding


@dataclass(frozen=True, slots=True)
class _Names:
    """One name for a tensor that a layer makes and another one takes over."""

    share: StageShare
    gradients: tuple[_Place, ...]
    """For each layer, the buffer that holds the gradient of its output; and last that of the stage's input."""
    tapes: tuple[LayerTapes, ...]

    def of(self, place: int | None, name: str) -> _Place:
        """Returns the layer and the name under which a tensor is known."""
        if place is None:
            return self.gradients[0] if name == f"{GRADIENT_OF}{STAGE_INPUT}" else (None, name)
        layer, tapes, last = self.share.layers[place].layer, self.tapes[place], len(self.tapes) - 1
        if name == tapes.given_gradient:
            return self.gradients[place + 1]
        if name == tapes.handed_gradient:
            return self.gradients[place]
        if name == layer.input.name:
            return (None, STAGE_INPUT) if place == 0 else self.of(place - 1, self._output(place - 1))
        return (None, STAGE_OUTPUT) if name == self._output(place) and place == last else (place, name)

    def _output(self, place: int) -> str:
        """The name under which a layer's tapes know its output, which may have been gathered from another tensor."""
        return self.tapes[place].given_gradient.removeprefix(GRADIENT_OF)


def _names(share: StageShare, rules: MemoryRules) -> _Names:
    tapes = tuple(rules.tapes(share, position) for position in range(len(share.layers)))
    found: list[_Place] = [(None, f"{GRADIENT_OF}{STAGE_OUTPUT}")]
    for place in range(len(tapes) - 1, -1, -1):
        passed_on = tapes[place].handed_gradient == tapes[place].given_gradient
        found.append(found[-1] if passed_on else (place, tapes[place].handed_gradient))
    return _Names(share, tuple(reversed(found)), tapes)
