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
from simulator.errors import SimulatorFault
from simulator.lowering.builder import WrittenRoutine
from simulator.lowering.order import RankOrder, rank_order
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
    shares = [costs.stages[stage % schedule.chain].share for stage in schedule.stages_of(rank)]
    first_layers = [sum(stages[: share.stage.index]) for share in shares]
    slots = _Slots(shares=shares, first_layers=first_layers, names=[_names(share, costs.memory) for share in shares])
    for held in resident:
        if held.category not in OUTSIDE_ALLOCATOR and held.bytes:
            slots.number(held, chunk=None, place=None, layer=NO_LAYER)
    num_resident = len(slots.held)
    templates = {int(number): slots.template(routines[number]) for number in np.unique(calls[:, 0])}
    # A tensor is a slot in a microbatch; what outlives a microbatch is the same tensor in all of them.
    microbatches = _microbatches(calls, rank_order(schedule, rank))
    span = int(microbatches.max()) + 1
    lasting = np.array([_outlives_microbatch(held, costs.memory) for held in slots.held], dtype=np.int64)
    parts = [np.arange(num_resident) * span]
    signs = [np.ones(num_resident, dtype=np.int64)]
    actions = [np.zeros(num_resident, dtype=np.int64)]
    for number, (routine, own) in enumerate(zip(calls[:, 0].tolist(), microbatches, strict=True), start=1):
        places, directions, seconds = templates[routine]
        parts.append(places * span + own[seconds] * (1 - lasting[places]))
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
            *(
                f"{routines[routine].routine.name} {first if first == second else f'{first} & {second}'}"
                for routine, (first, second) in zip(calls[:, 0].tolist(), microbatches.tolist(), strict=True)
            ),
        ),
    )


def _microbatches(calls: npt.NDArray[np.int32], order: RankOrder) -> npt.NDArray[np.int32]:
    """Returns the microbatch of each call of a rank, twice, or of the two passes of a joined pair: [calls, 2]."""
    if len(calls) != len(order.kinds) + 2:
        raise SimulatorFault(f"{len(calls)} calls of a rank that runs {len(order.kinds)} passes and joined pairs")
    begin_or_end = np.zeros((1, 2), dtype=np.int32)
    return np.concatenate([begin_or_end, order.microbatches, begin_or_end])


def _outlives_microbatch(held: Held, rules: MemoryRules) -> bool:
    """Whether a tensor is the same one in all microbatches: gradients that add up, parameters that stay."""
    if held.name == GATHERED_PARAMETERS:
        return not rules.reshard_after_forward
    return held.category is Memory.GRADIENTS and (rules.reduces_once or held.name == SHARDED_GRADIENTS)


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

    def template(self, routine: WrittenRoutine) -> tuple[IntArray, IntArray, IntArray]:
        """Returns the events of a routine: slots, directions, and whether they are of the backward of a pair."""
        found = list(self._events(routine))
        numbers, signs, seconds = np.array(found, dtype=np.int64).reshape(-1, 3).T
        return numbers, signs, seconds

    def _events(self, routine: WrittenRoutine) -> Iterator[tuple[int, int, bool]]:
        for at in (piece for each in routine.swings for piece in each.pieces):
            chunk = routine.chunk if at.chunk is None else at.chunk
            numbers: dict[int, int] = {}
            for number, sign in at.swing.events:
                held = at.swing.held[number]
                if not held.bytes:
                    continue
                if number not in numbers:
                    place = None if chunk is None else self.names[chunk].of(at.place, held.name, at.is_split)
                    layer = NO_LAYER if chunk is None else self._layer(chunk, at.place)
                    numbers[number] = self.number(held, chunk=chunk, place=place, layer=layer)
                yield numbers[number], sign, at.is_second

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
    split_gradients: tuple[_Place, ...]
    """The same in a split backward, where buffers that wait for a weight gradient are not handed on."""
    tapes: tuple[LayerTapes, ...]

    def of(self, place: int | None, name: str, is_split: bool) -> _Place:
        """Returns the layer and the name under which a tensor is known."""
        gradients = self.split_gradients if is_split else self.gradients
        if place is None:
            return gradients[0] if name == f"{GRADIENT_OF}{STAGE_INPUT}" else (None, name)
        layer, tapes, last = self.share.layers[place].layer, self.tapes[place], len(self.tapes) - 1
        if name == tapes.given_gradient:
            return gradients[place + 1]
        if name == (tapes.handed_by_input if is_split else tapes.handed_gradient):
            return gradients[place]
        if name == layer.input.name:
            return (None, STAGE_INPUT) if place == 0 else self.of(place - 1, self._output(place - 1), is_split)
        return (None, STAGE_OUTPUT) if name == self._output(place) and place == last else (place, name)

    def _output(self, place: int) -> str:
        """The name under which a layer's tapes know its output, which may have been gathered from another tensor."""
        return self.tapes[place].given_gradient.removeprefix(GRADIENT_OF)


def _names(share: StageShare, rules: MemoryRules) -> _Names:
    tapes = tuple(rules.tapes(share, position) for position in range(len(share.layers)))
    whole = _buffers([each.given_gradient for each in tapes], [each.handed_gradient for each in tapes])
    split = _buffers([each.given_gradient for each in tapes], [each.handed_by_input for each in tapes])
    return _Names(share, whole, split, tapes)


def _buffers(given: Sequence[str], handed: Sequence[str]) -> tuple[_Place, ...]:
    """Returns the buffer of each gradient between layers, by the names under which they take it over and hand it on."""
    found: list[_Place] = [(None, f"{GRADIENT_OF}{STAGE_OUTPUT}")]
    for place in range(len(given) - 1, -1, -1):
        found.append(found[-1] if handed[place] == given[place] else (place, handed[place]))
    return tuple(reversed(found))
