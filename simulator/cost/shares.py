"""What a rank holds of each stage: parameters and the bytes of their states, before any time is priced."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace

from simulator.cost.states import StateBytes, gradient_copy_bytes, parameter_share, state_bytes
from simulator.model.layers import Layer, Model
from simulator.parallel.degrees import Degrees, Int
from simulator.parallel.sharding import is_expert, is_split_over_tensor, local_elements
from simulator.parallel.stages import Stage
from simulator.parallel.training import Training


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerShare:
    """A layer and what one rank holds of it."""

    layer: Layer
    """The layer."""
    dense_parameters: Int
    """Trained parameters that the rank computes with and reduces over data x context, padding included."""
    expert_parameters: Int
    """The same, reduced over the experts' own group."""
    shared_parameters: Int = 0
    """Parameters of another layer of the same rank that it uses too: a tied table, or all those of a repeated layer,
    which zero 3 gathers again."""
    replicated_parameters: Int
    """Part of the dense ones that every tensor rank holds in full: norms, router, output biases (E4.14)."""
    states: StateBytes
    """Resident bytes of its parameters, gradients and optimizer."""
    optimizer_temporary_bytes: Int
    """Buffers alive only during the update: gradients cast to the type of the master weights (E3.1, fp16 row)."""

    @property
    def num_parameters(self) -> Int:
        """Trained parameters that the rank computes with."""
        return self.dense_parameters + self.expert_parameters


@dataclass(frozen=True, slots=True, kw_only=True)
class StageShare:
    """What one of its ranks holds of a virtual stage."""

    stage: Stage
    """The stage."""
    layers: tuple[LayerShare, ...]
    """In order of the forward pass."""
    states: StateBytes
    """Resident bytes of parameters, gradients and optimizer."""
    num_parameters: Int
    """Trained parameters that the rank computes with, padding included."""
    tied_parameters: Int
    """Local part of a token table that first and last stage share."""
    optimizer_temporary_bytes: Int
    """Buffers alive only during the update: gradients cast to the type of the master weights (E3.1, fp16 row)."""


def share_stages(
    model: Model, stages: tuple[Stage, ...], degrees: Degrees, training: Training, *, vocab_padding: int
) -> tuple[StageShare, ...]:
    """Returns what a rank holds of every stage; equal layers are looked at once."""
    distinct = dict.fromkeys(layer for stage in stages for layer in stage.layers)
    layers = {layer: layer_share(layer, degrees, training, vocab_padding=vocab_padding) for layer in distinct}
    table = 0
    if model.tied_table is not None:
        table = local_elements(model.tied_table.axes, degrees, vocab_padding=vocab_padding)
    by_key: dict[object, StageShare] = {}
    shares: list[StageShare] = []
    for stage in stages:
        key = (stage.key, stage.tied_copy is not None)
        if key not in by_key:
            held = [layers[layer] for layer in stage.layers]
            if model.tied_table is not None and stage.layers[-1] is model.head:
                held[-1] = _with_tied_table(held[-1], stage, degrees, training, vocab_padding, table)
            by_key[key] = _stage_share(stage, tuple(held), table)
        shares.append(replace(by_key[key], stage=stage))
    return tuple(shares)


def layer_share(layer: Layer, degrees: Degrees, training: Training, *, vocab_padding: int) -> LayerShare:
    """Returns what a rank holds of a layer."""
    share = parameter_share(layer.weights, degrees, vocab_padding=vocab_padding)
    shared: Int = 0
    if layer.repeats:
        shared = parameter_share(layer.applied_weights, degrees, vocab_padding=vocab_padding).dense
    return LayerShare(
        layer=layer,
        dense_parameters=share.dense,
        expert_parameters=share.expert,
        shared_parameters=shared,
        replicated_parameters=sum(
            local_elements(weight.axes, degrees, vocab_padding=vocab_padding)
            for weight in layer.weights
            if weight.trained and not is_expert(weight) and not is_split_over_tensor(weight)
        ),
        states=state_bytes(layer.weights, degrees, training, vocab_padding=vocab_padding),
        optimizer_temporary_bytes=gradient_copy_bytes(layer.weights, degrees, training, vocab_padding=vocab_padding),
    )


def _stage_share(stage: Stage, layers: tuple[LayerShare, ...], table: Int) -> StageShare:
    counts = Counter(id(layer) for layer in layers)
    distinct = [(layer, counts[id(layer)]) for layer in {id(layer): layer for layer in layers}.values()]
    return StageShare(
        stage=stage,
        layers=layers,
        states=StateBytes(
            parameters=sum(layer.states.parameters * count for layer, count in distinct),
            gradients=sum(layer.states.gradients * count for layer, count in distinct),
            optimizer=sum(layer.states.optimizer * count for layer, count in distinct),
        ),
        num_parameters=sum(layer.num_parameters * count for layer, count in distinct),
        tied_parameters=table,
        optimizer_temporary_bytes=sum(layer.optimizer_temporary_bytes * count for layer, count in distinct),
    )


def _with_tied_table(
    head: LayerShare, stage: Stage, degrees: Degrees, training: Training, vocab_padding: int, table: Int
) -> LayerShare:
    """The head holds its own copy of a tied table, or shares that of the embedding where both are on one stage."""
    if stage.tied_copy is None:
        return replace(head, shared_parameters=table)
    copy = (stage.tied_copy,)
    states = state_bytes(copy, degrees, training, vocab_padding=vocab_padding)
    cast = gradient_copy_bytes(copy, degrees, training, vocab_padding=vocab_padding)
    return replace(
        head,
        dense_parameters=head.dense_parameters + table,
        states=StateBytes(
            parameters=head.states.parameters + states.parameters,
            gradients=head.states.gradients + states.gradients,
            optimizer=head.states.optimizer + states.optimizer,
        ),
        optimizer_temporary_bytes=head.optimizer_temporary_bytes + cast,
    )
