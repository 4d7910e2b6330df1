"""What a rank holds of each stage: parameters and the bytes of their states, before any time is priced."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace

from simulator.cost.states import StateBytes, gradient_copy_bytes, parameter_share, state_bytes
from simulator.model.layers import Layer, LayerKind, Model
from simulator.model.tensors import Weight
from simulator.parallel.degrees import Degrees, Int
from simulator.parallel.sharding import is_expert, is_split_over_tensor, local_elements
from simulator.parallel.stages import Stage
from simulator.parallel.training import Training


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerShare:
    """A layer and the parameters that one rank computes with, padding included."""

    layer: Layer
    """The layer."""
    dense_parameters: Int
    """Trained parameters reduced over data x context."""
    expert_parameters: Int
    """Trained parameters reduced over the experts' own group."""
    shared_parameters: Int = 0
    """Parameters of another layer of the same rank that it uses too: a tied table, or all those of a repeated layer,
    which zero 3 gathers again."""
    replicated_parameters: Int
    """Part of the dense ones that every tensor rank holds in full: norms, router, output biases (E4.14)."""


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
    layers = {layer: layer_share(layer, degrees, vocab_padding=vocab_padding) for layer in distinct}
    states = {layer: _states_of(layer.weights, degrees, training, vocab_padding) for layer in distinct}
    table = 0
    if model.tied_table is not None:
        table = local_elements(model.tied_table.axes, degrees, vocab_padding=vocab_padding)
    by_key: dict[object, StageShare] = {}
    shares: list[StageShare] = []
    for stage in stages:
        key = (stage.key, stage.tied_copy is not None)
        if key not in by_key:
            counts = Counter(stage.layers)
            held = [(states[layer], count) for layer, count in counts.items()]
            of_layers = sum(
                (layers[layer].dense_parameters + layers[layer].expert_parameters) * count
                for layer, count in counts.items()
            )
            if stage.tied_copy is not None:
                copy = (stage.tied_copy,)
                held.append((_states_of(copy, degrees, training, vocab_padding), 1))
                of_layers = of_layers + table
            by_key[key] = StageShare(
                stage=stage,
                layers=tuple(_with_tied_table(layers[layer], stage, table) for layer in stage.layers),
                states=StateBytes(
                    parameters=sum(state.states.parameters * count for state, count in held),
                    gradients=sum(state.states.gradients * count for state, count in held),
                    optimizer=sum(state.states.optimizer * count for state, count in held),
                ),
                num_parameters=of_layers,
                tied_parameters=table,
                optimizer_temporary_bytes=sum(state.copy_bytes * count for state, count in held),
            )
        shares.append(replace(by_key[key], stage=stage))
    return tuple(shares)


def layer_share(layer: Layer, degrees: Degrees, *, vocab_padding: int) -> LayerShare:
    """Returns the parameters of a layer on one rank."""
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
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _LayerStates:
    states: StateBytes
    copy_bytes: Int


def _states_of(weights: tuple[Weight, ...], degrees: Degrees, training: Training, vocab_padding: int) -> _LayerStates:
    return _LayerStates(
        states=state_bytes(weights, degrees, training, vocab_padding=vocab_padding),
        copy_bytes=gradient_copy_bytes(weights, degrees, training, vocab_padding=vocab_padding),
    )


def _with_tied_table(layer: LayerShare, stage: Stage, tied_parameters: Int) -> LayerShare:
    """The head holds its own copy of a tied table, or shares that of the embedding where both are on one stage."""
    if layer.layer.kind is not LayerKind.HEAD or (isinstance(tied_parameters, int) and not tied_parameters):
        return layer
    if stage.tied_copy is None:
        return replace(layer, shared_parameters=tied_parameters)
    return replace(layer, dense_parameters=layer.dense_parameters + tied_parameters)
