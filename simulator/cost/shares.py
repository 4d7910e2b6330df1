"""What a rank holds of each stage: parameters and the bytes of their states, before any time is priced."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace

import numpy as np

from simulator.cost.offload import (
    NOTHING_OUTSIDE,
    OffloadedStates,
    fetched_bytes,
    gradient_shard_bytes,
    offloaded_states,
    resident_states,
)
from simulator.cost.states import (
    ZERO_SHARDS_WEIGHTS,
    StateBytes,
    gathered_bytes,
    gradient_copy_bytes,
    parameter_share,
    passing_copy_bytes,
    restored_bytes,
    state_bytes,
)
from simulator.model.layers import Layer, Model
from simulator.model.tensors import Weight
from simulator.parallel.degrees import Degrees, Int
from simulator.parallel.sharding import is_expert, is_split_over_tensor, local_elements
from simulator.parallel.stages import Stage
from simulator.parallel.training import Training


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightShare:
    """What one rank holds of some weights, and what it moves for them."""

    dense_parameters: Int
    """Trained parameters that the rank computes with and reduces over data x context, padding included."""
    expert_parameters: Int
    """The same, reduced over the experts' own group."""
    replicated_parameters: Int
    """Part of the dense ones that every tensor rank holds in full: norms, router, output biases (E4.14)."""
    states: StateBytes
    """Bytes of parameters, gradients and optimizer on the device."""
    outside: OffloadedStates
    """Those outside the device."""
    optimizer_temporary_bytes: Int
    """Buffers alive only during the update: gradients cast to the type of the master weights (E3.1, fp16 row)."""
    dense_gathered_bytes: Int
    """Dense weights as they are gathered over the shard group."""
    expert_gathered_bytes: Int
    """The same of experts, over their own group."""
    quantised_bytes: Int
    """Copy of gathered matrices in an 8- or 4-bit compute type, made for one pass (zero 3)."""
    restored_bytes: Int
    """The largest frozen matrix in 16 bit, made anew for each use (quantised weights beside adapters)."""
    fetched_bytes: Int
    """The rank's shard of the weights, if it comes from the host for each use."""
    gradient_shard_bytes: Int
    """The rank's shard of the gradients, which goes to the host if the optimizer is there."""

    @property
    def num_parameters(self) -> Int:
        """Trained parameters that the rank computes with."""
        return self.dense_parameters + self.expert_parameters


OF_EACH_USE = ("dense_gathered_bytes", "expert_gathered_bytes", "quantised_bytes", "restored_bytes", "fetched_bytes")
"""What sharded weights cost each time that a layer uses them, even if another one holds them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerShare(WeightShare):
    """A layer and what one rank holds of it; a head has a tied table of its own or shares that of its rank."""

    layer: Layer
    """The layer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StageShare:
    """What one of its ranks holds of a virtual stage."""

    stage: Stage
    """The stage."""
    layers: tuple[LayerShare, ...]
    """In order of the forward pass."""
    states: StateBytes
    """Bytes of parameters, gradients and optimizer on the device."""
    outside: OffloadedStates
    """Those outside the device."""
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
    table = None
    if model.tied_table is not None:
        table = weight_share((model.tied_table,), degrees, training, vocab_padding=vocab_padding)
    by_key: dict[object, StageShare] = {}
    shares: list[StageShare] = []
    for stage in stages:
        key = (stage.key, stage.tied_copy is not None)
        if key not in by_key:
            held = [layers[layer] for layer in stage.layers]
            if table is not None and stage.layers[-1] is model.head:
                held[-1] = _with_tied_table(held[-1], stage, table, degrees)
            by_key[key] = _stage_share(stage, tuple(held), 0 if table is None else table.dense_parameters)
        shares.append(replace(by_key[key], stage=stage))
    return tuple(shares)


def layer_share(layer: Layer, degrees: Degrees, training: Training, *, vocab_padding: int) -> LayerShare:
    """Returns what a rank holds of a layer."""
    share = weight_share(layer.weights, degrees, training, vocab_padding=vocab_padding)
    if layer.repeats and np.max(degrees.zero) >= ZERO_SHARDS_WEIGHTS:
        used = weight_share(layer.applied_weights, degrees, training, vocab_padding=vocab_padding)
        share = replace(share, **{name: getattr(used, name) for name in OF_EACH_USE})
    return LayerShare(layer=layer, **{name: getattr(share, name) for name in WeightShare.__dataclass_fields__})


def weight_share(
    weights: tuple[Weight, ...], degrees: Degrees, training: Training, *, vocab_padding: int
) -> WeightShare:
    """Returns what a rank holds of some weights."""
    share = parameter_share(weights, degrees, vocab_padding=vocab_padding)
    states = state_bytes(weights, degrees, training, vocab_padding=vocab_padding)
    on_host = training.offload.optimizer != "none"
    replicated: Int = 0
    dense: Int = 0
    expert: Int = 0
    quantised: Int = 0
    restored: Int = 0
    for weight in weights:
        count = _local_size(weight, degrees, vocab_padding)
        gathered = gathered_bytes(weight, count, degrees, training)
        quantised = quantised + passing_copy_bytes(weight, count, degrees, training)
        if training.lora is not None:
            restored = np.maximum(restored, restored_bytes(weight, count, training))
        if is_expert(weight):
            expert = expert + gathered
            continue
        dense = dense + gathered
        if weight.trained and not is_split_over_tensor(weight):
            replicated = replicated + count
    return WeightShare(
        dense_parameters=share.dense,
        expert_parameters=share.expert,
        replicated_parameters=replicated,
        states=resident_states(states, training),
        outside=offloaded_states(weights, states, degrees, training, vocab_padding=vocab_padding),
        optimizer_temporary_bytes=0
        if on_host
        else gradient_copy_bytes(weights, degrees, training, vocab_padding=vocab_padding),
        dense_gathered_bytes=dense,
        expert_gathered_bytes=expert,
        quantised_bytes=quantised,
        restored_bytes=restored,
        fetched_bytes=fetched_bytes(weights, degrees, training, vocab_padding=vocab_padding),
        gradient_shard_bytes=gradient_shard_bytes(weights, degrees, training, vocab_padding=vocab_padding),
    )


def _local_size(weight: Weight, degrees: Degrees, vocab_padding: int) -> Int:
    return local_elements(weight.axes, degrees, vocab_padding=vocab_padding)


def _stage_share(stage: Stage, layers: tuple[LayerShare, ...], table: Int) -> StageShare:
    counts = Counter(id(layer) for layer in layers)
    distinct = [(layer, counts[id(layer)]) for layer in {id(layer): layer for layer in layers}.values()]
    return StageShare(
        stage=stage,
        layers=layers,
        states=sum((layer.states.times(count) for layer, count in distinct), StateBytes()),
        outside=sum((layer.outside.times(count) for layer, count in distinct), NOTHING_OUTSIDE),
        num_parameters=sum(layer.num_parameters * count for layer, count in distinct),
        tied_parameters=table,
        optimizer_temporary_bytes=sum(layer.optimizer_temporary_bytes * count for layer, count in distinct),
    )


def _with_tied_table(head: LayerShare, stage: Stage, table: WeightShare, degrees: Degrees) -> LayerShare:
    """The head holds its own copy of a tied table, or shares that of the embedding where both are on one stage.

    What it shares is gathered, and fetched, for it once more under zero 3.
    """
    names = ["dense_gathered_bytes", "fetched_bytes"]
    if stage.tied_copy is not None:
        names += ["dense_parameters", "states", "outside", "optimizer_temporary_bytes", "gradient_shard_bytes"]
    elif np.max(degrees.zero) < ZERO_SHARDS_WEIGHTS:
        return head
    return replace(head, **{name: getattr(head, name) + getattr(table, name) for name in names})
