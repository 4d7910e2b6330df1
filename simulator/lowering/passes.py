"""Lowers the forward and the backward pass of one stage: layers, their memory, and FSDP's gathers around them."""

from __future__ import annotations

from dataclasses import dataclass

from simulator.cost.blocks import BlockCost
from simulator.cost.collectives import Collective
from simulator.cost.pass_memory import PassMemory
from simulator.cost.pricing import LayerCost, StageCost
from simulator.cost.stage_memory import MemoryRules
from simulator.lowering.builder import Category, RoutineBuilder
from simulator.lowering.data import DataLowering, Gathers, scatter_gradients
from simulator.lowering.layers import LayerLowering, lower_backward, lower_forward
from simulator.lowering.offload import ActivationCopies, HostLowering
from simulator.model.layers import LayerKind
from simulator.model.operators import Part
from simulator.parallel.mesh import Group
from simulator.parallel.recompute import RecomputeChoice, recompute_choice
from simulator.parallel.training import Training


@dataclass(frozen=True, slots=True, kw_only=True)
class PassLowering:
    """What the passes of every stage share."""

    layers: LayerLowering
    """How a layer is lowered."""
    training: Training
    """The recipe."""
    data: DataLowering
    """How parameters are gathered and gradients reduced."""
    memory: MemoryRules
    """What a pass does to memory."""
    boundary_bytes: int
    """Activation at a stage's edge."""
    host: HostLowering
    """How what lies outside the device comes and goes."""


def lower_forward_pass(
    stage: StageCost,
    build: RoutineBuilder,
    lowering: PassLowering,
    *,
    place: str,
    memory: PassMemory,
    gathered: dict[int, int],
    gathers_parameters: bool,
) -> None:
    """Adds the forward pass of a stage's layers.

    Args:
        stage: its cost.
        build: the routine being written; it has waited for the stage's input.
        lowering: what all stages share.
        place: name of the stage on its rank, for events.
        memory: what the pass does to memory.
        gathered: layer position -> event after which its updated parameters are there (the first microbatch).
        gathers_parameters: under zero 3, whether they are gathered for this pass; else they are still there.
    """
    order = range(len(stage.layers))
    gathers = None
    if lowering.data.zero >= 3 and gathers_parameters:
        gathers = Gathers(stage, build, lowering.data, lowering.host, order, f"{place} forward")
    copies = _activation_copies(stage, build, lowering, place)
    build.memory(*memory.begin)
    for position in order:
        held = memory.layers[position]
        if gathers is not None:
            gathers.before(position)
        if position in gathered:
            build.wait(gathered[position])
        build.memory(*held.before)
        build.enter(held.during)
        lower_forward(stage.layers[position], build, lowering.layers, place=f"{place} layer {position} forward")
        build.leave(held.during)
        copies.after_forward(position)
        build.memory(*held.after)


def lower_backward_pass(
    stage: StageCost,
    build: RoutineBuilder,
    lowering: PassLowering,
    *,
    place: str,
    memory: PassMemory,
    finished: dict[int, int],
) -> None:
    """Adds the backward pass of a stage's layers, last to first.

    Args:
        stage: its cost.
        build: the routine being written; it has waited for the gradient of the stage's output.
        lowering: what all stages share.
        place: name of the stage on its rank, for events.
        memory: what the pass does to memory.
        finished: layer position -> event to record when its gradients are complete (the last microbatch).
    """
    data = lowering.data
    order = range(len(stage.layers) - 1, -1, -1)
    gathers = None
    if data.zero >= 3 and lowering.memory.reshard_after_forward:
        gathers = Gathers(stage, build, data, lowering.host, order, f"{place} backward")
    copies = _activation_copies(stage, build, lowering, place)
    build.memory(*memory.begin)
    for position in order:
        layer, held = stage.layers[position], memory.layers[position]
        if gathers is not None:
            gathers.before(position)
        copies.before_backward(position)
        build.memory(*held.before)
        build.enter(held.during)
        choice = choice_at(stage, position, lowering.training)
        recompute_layer(layer, build, lowering.layers, choice, f"{place} layer {position}")
        lower_backward(layer, build, lowering.layers, place=f"{place} layer {position} backward")
        build.leave(held.during)
        if not data.reduces_once:
            scatter_gradients(layer, build, data, place=f"{place} layer {position}", finished=finished.get(position))
        elif position in finished:
            build.record(finished[position])
        build.memory(*held.after)


def _activation_copies(stage: StageCost, build: RoutineBuilder, lowering: PassLowering, place: str) -> ActivationCopies:
    rules, share = lowering.memory, stage.share
    sizes = {position: int(rules.offloaded_bytes(share, position)) for position in rules.offloaded_layers(share)}
    return ActivationCopies(sizes=sizes, place=place, build=build, host=lowering.host)


def choice_at(stage: StageCost, position: int, training: Training) -> RecomputeChoice:
    """Returns what is recomputed of the layer at a position of a stage."""
    among_transformers = position - (stage.layers[0].kind is LayerKind.EMBEDDING)
    return recompute_choice(training, stage.layers[position].kind, among_transformers)


def recompute_layer(
    layer: LayerCost, build: RoutineBuilder, lowering: LayerLowering, choice: RecomputeChoice, place: str
) -> None:
    """Adds what runs again of a layer: itself or its blocks with their collectives, or single operators (E2.6).

    Args:
        layer: its cost.
        build: the routine being written.
        lowering: what all layers share.
        choice: what was dropped.
        place: a name for this layer in its routine, for events.
    """
    if choice.keeps_every_other_matmul:
        # The results of collectives are kept as well (torchtitan's selective operators).
        build.compute(layer.half_recompute_s, "recompute")
        return
    whole = tuple(block for block in layer.blocks if choice.whole or block.name in choice.names)
    if whole:
        lower_forward(layer, build, lowering, place=f"{place} recompute", blocks=whole)
    rest = tuple(block for block in layer.blocks if block not in whole)
    for name in sorted(choice.names):
        for block in rest:
            if name == Part.LATENT_UP_PROJECTION and name in block.part_forward_s:
                _gather_again(block, build, lowering)
        seconds = sum(block.part_forward_s.get(name, 0.0) for block in rest)
        build.compute(seconds, f"{name.replace('_', ' ')} recompute")


def _gather_again(block: BlockCost, build: RoutineBuilder, lowering: LayerLowering) -> None:
    """The latents that the up-projections read are split over the tensor group with sequence parallelism."""
    if lowering.sequence_parallel:
        gather = lowering.transfers.collective(Group.TENSOR, Collective.ALL_GATHER, block.gathered_bytes)
        build.blocking(gather, party=Group.TENSOR, category=Category.TENSOR)
