"""Lowers the forward and the backward pass of one stage: layers, their memory, and FSDP's gathers around them."""

from __future__ import annotations

from dataclasses import dataclass

from simulator.cost.pricing import LayerCost, StageCost
from simulator.lowering.builder import Memory, RoutineBuilder
from simulator.lowering.data import DataLowering, Gathers, scatter_gradients
from simulator.lowering.layers import LayerLowering, lower_backward, lower_forward
from simulator.model.layers import LayerKind
from simulator.parallel.training import FullRecompute, Recompute, Training


@dataclass(frozen=True, slots=True, kw_only=True)
class Recomputed:
    """What a layer keeps, given the recompute mode."""

    kept_bytes: int
    """From forward to backward."""
    restored_bytes: int
    """Computed again at the start of backward, alive until its end."""
    whole_forward: bool
    """Whether the whole forward is run again."""
    attention_s: float
    """Seconds of attention cores run again (selective)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PassLowering:
    """What the passes of every stage share."""

    layers: LayerLowering
    """How a layer is lowered."""
    training: Training
    """The recipe."""
    data: DataLowering
    """How parameters are gathered and gradients reduced."""
    boundary_bytes: int
    """Activation at a stage's edge."""


def recompute_of(layer: LayerCost, position: int, training: Training) -> Recomputed:
    """Returns what the layer at a position among its stage's transformer layers keeps (E3.5, E2.6).

    Selective recompute drops the attention core's scores; with a flash kernel there are none to drop.
    """
    recompute = training.recompute
    kept = layer.kept_bytes
    transformer = layer.kind in (LayerKind.DENSE, LayerKind.EXPERTS)
    full = recompute is Recompute.FULL or (isinstance(recompute, FullRecompute) and position < recompute.full_layers)
    if transformer and full:
        return Recomputed(
            kept_bytes=layer.input_bytes,
            restored_bytes=kept - layer.input_bytes,
            whole_forward=True,
            attention_s=0.0,
        )
    if transformer and recompute is Recompute.SELECTIVE and layer.core_kept_bytes:
        core = layer.core_kept_bytes
        again = sum(block.attention.forward_s for block in layer.blocks)
        return Recomputed(kept_bytes=kept - core, restored_bytes=core, whole_forward=False, attention_s=again)
    return Recomputed(kept_bytes=kept, restored_bytes=0, whole_forward=False, attention_s=0.0)


def lower_forward_pass(
    stage: StageCost,
    build: RoutineBuilder,
    lowering: PassLowering,
    *,
    place: str,
    keeps_output: bool,
    gathered: dict[int, int],
) -> None:
    """Adds the forward pass of a stage's layers.

    Args:
        stage: its cost.
        build: the routine being written; it has waited for the stage's input.
        lowering: what all stages share.
        place: name of the stage on its rank, for events.
        keeps_output: whether the output stays in memory until backward.
        gathered: layer position -> event after which its updated parameters are there (the first microbatch).
    """
    order = range(len(stage.layers))
    gathers = Gathers(stage, build, lowering.data, order, f"{place} forward") if lowering.data.zero >= 3 else None
    for position in order:
        layer = stage.layers[position]
        if gathers is not None:
            gathers.before(position)
        if position in gathered:
            build.wait(gathered[position])
        recomputed = _recompute_of(stage, position, lowering)
        temporary = max(
            block.forward_temporary_bytes + (block.unkept_forward_bytes if recomputed.whole_forward else 0)
            for block in layer.blocks
        )
        build.hold_all(
            {
                Memory.ACTIVATIONS: recomputed.kept_bytes,
                Memory.LOGITS: sum(block.logits_bytes for block in layer.blocks),
                Memory.TEMPORARY: temporary,
            }
        )
        lower_forward(layer, build, lowering.layers, place=f"{place} layer {position} forward")
        build.free_all({Memory.TEMPORARY: temporary})
        if gathers is not None:
            gathers.after(position)
    if keeps_output:
        build.hold(Memory.ACTIVATIONS, lowering.boundary_bytes)
        build.cut()


def lower_backward_pass(
    stage: StageCost,
    build: RoutineBuilder,
    lowering: PassLowering,
    *,
    place: str,
    keeps_output: bool,
    begins_gradients: bool,
    finished: dict[int, int],
) -> None:
    """Adds the backward pass of a stage's layers, last to first.

    Args:
        stage: its cost.
        build: the routine being written; it has waited for the gradient of the stage's output.
        lowering: what all stages share.
        place: name of the stage on its rank, for events.
        keeps_output: whether the output stayed in memory.
        begins_gradients: whether the gradients of this microbatch are not added to those of earlier ones.
        finished: layer position -> event to record when its gradients are complete (the last microbatch).
    """
    data = lowering.data
    order = range(len(stage.layers) - 1, -1, -1)
    gathers = Gathers(stage, build, data, order, f"{place} backward") if data.zero >= 3 else None
    edge = {Memory.COMMUNICATION: lowering.boundary_bytes if stage.layers[-1].kind is not LayerKind.HEAD else 0}
    build.hold_all(edge)
    for position in order:
        layer = stage.layers[position]
        if gathers is not None:
            gathers.before(position)
        recomputed = _recompute_of(stage, position, lowering)
        temporary = max(block.backward_temporary_bytes for block in layer.blocks)
        build.hold_all(
            {
                Memory.ACTIVATIONS: recomputed.restored_bytes,
                Memory.TEMPORARY: temporary,
                Memory.GRADIENTS: data.unsharded_gradient_bytes(layer) if begins_gradients else 0,
            }
        )
        if recomputed.whole_forward:
            lower_forward(layer, build, lowering.layers, place=f"{place} layer {position} recompute")
        build.compute(recomputed.attention_s, "attention core recompute")
        lower_backward(layer, build, lowering.layers, place=f"{place} layer {position} backward")
        build.free_all(
            {
                Memory.ACTIVATIONS: recomputed.kept_bytes + recomputed.restored_bytes,
                Memory.LOGITS: sum(block.logits_bytes for block in layer.blocks),
                Memory.TEMPORARY: temporary,
            }
        )
        if gathers is not None:
            gathers.after(position)
        if not data.reduces_once:
            scatter_gradients(layer, build, data, place=f"{place} layer {position}", finished=finished.get(position))
        elif position in finished:
            build.record(finished[position])
    if keeps_output:
        edge = {**edge, Memory.ACTIVATIONS: lowering.boundary_bytes}
    build.free_all(edge)


def _recompute_of(stage: StageCost, position: int, lowering: PassLowering) -> Recomputed:
    among_transformers = position - (stage.layers[0].kind is LayerKind.EMBEDDING)
    return recompute_of(stage.layers[position], among_transformers, lowering.training)
