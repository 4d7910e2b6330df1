"""Prices of everything a step does: compute of blocks, collectives of groups, bytes of states, for every stage."""

from __future__ import annotations

from dataclasses import dataclass, replace

from simulator.cost.blocks import BlockCost, Pricing, accelerator_kernels, price_block
from simulator.cost.collectives import Port, ports_of
from simulator.cost.kernels import elementwise_time_s, gemm_time_s
from simulator.cost.states import (
    Matrix,
    StateBytes,
    gradient_copy_bytes,
    is_orthogonalised,
    matrix_of,
    parameter_share,
    shard_group_of,
    state_bytes,
    updated_elements,
)
from simulator.model.layers import Layer, LayerKind, Model
from simulator.parallel.assumptions import Assumptions
from simulator.parallel.layout import Layout
from simulator.parallel.mesh import DeviceMesh
from simulator.parallel.sharding import Workload, is_expert, is_split_over_tensor, local_elements
from simulator.parallel.stages import Stage
from simulator.parallel.training import Dtype, Optimizer, Training

NEWTON_SCHULZ_ROUNDS = 5
"""Rounds of Muon's orthogonalisation (E7.1)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerCost:
    """What one layer costs one rank for one microbatch."""

    kind: LayerKind
    blocks: tuple[BlockCost, ...]
    """In order of the forward pass."""
    dense_parameters: int
    """Trained parameters that the rank computes with and reduces over data x context."""
    expert_parameters: int
    """Trained parameters reduced over the experts' own group."""
    shared_parameters: int = 0
    """Parameters of another layer of the same rank that it uses too: a tied table, which zero 3 gathers again."""
    replicated_parameters: int
    """Part of the dense ones that every tensor rank holds in full: norms, router, output biases (E4.14)."""

    @property
    def kept_bytes(self) -> int:
        """Activations kept without recompute."""
        return int(sum(block.kept_bytes for block in self.blocks))

    @property
    def core_kept_bytes(self) -> int:
        """Part that selective recompute drops."""
        return int(sum(block.core_kept_bytes for block in self.blocks))

    @property
    def input_bytes(self) -> int:
        """The layer's input."""
        return int(self.blocks[0].input_bytes)


@dataclass(frozen=True, slots=True, kw_only=True)
class StageCost:
    """What one virtual stage costs one of its ranks."""

    stage: Stage
    layers: tuple[LayerCost, ...]
    """In order of the forward pass."""
    states: StateBytes
    """Resident bytes of its share of the model."""
    num_parameters: int
    """Trained parameters that the rank computes with, padding included."""
    tied_parameters: int
    """Local part of a token table that first and last stage share."""
    optimizer_s: float
    """Seconds of the update of this stage's share."""
    optimizer_temporary_bytes: int
    """Buffers alive only during the update: gradients cast to the type of the master weights (E3.1, fp16 row)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StageCosts:
    """Prices of the whole step."""

    stages: tuple[StageCost, ...]
    """One for each virtual stage."""
    ports: tuple[Port, ...]
    """Ports of a device, one direction."""
    boundary_bytes: int
    """Activation that a rank hands to the next stage, for one microbatch (E4.15)."""
    loss_bytes: int
    """Payload of each all-reduce of a vocabulary-parallel loss (E3.10)."""


def workload_of(model: Model, training: Training, assumptions: Assumptions) -> Workload:
    """Returns the microbatch as shapes see it."""
    return Workload(
        sequence_length=training.sequence_length,
        micro_batch=training.micro_batch,
        top_k=model.spec.experts.top_k if model.spec.experts else 1,
        expert_imbalance=assumptions.expert_imbalance,
        vocab_padding=assumptions.vocab_padding,
        compute=training.types.compute,
    )


def price_stages(
    model: Model,
    stages: tuple[Stage, ...],
    *,
    mesh: DeviceMesh,
    layout: Layout,
    training: Training,
    assumptions: Assumptions,
) -> StageCosts:
    """Returns the cost of every stage; layers of one kind are priced once."""
    degrees = mesh.degrees
    pricing = Pricing(
        kernels=accelerator_kernels(mesh.cluster.accelerator, training.types.compute),
        workload=workload_of(model, training, assumptions),
        degrees=degrees,
        attention=assumptions.attention_kernel,
        context_method=layout.cp_method,
        dropout=model.spec.dropout,
        sustained=assumptions.sustained_compute,
    )
    kinds = {layer.kind: layer for stage in stages for layer in stage.layers}
    layer_costs = {kind: price_layer(layer, pricing) for kind, layer in kinds.items()}
    by_key: dict[object, StageCost] = {}
    priced: list[StageCost] = []
    for stage in stages:
        key = (stage.key, stage.tied_copy is not None)
        if key not in by_key:
            by_key[key] = _price_stage(model, stage, layer_costs, pricing, training)
        priced.append(replace(by_key[key], stage=stage))
    tokens = training.sequence_length * training.micro_batch
    return StageCosts(
        stages=tuple(priced),
        ports=ports_of(mesh.cluster),
        boundary_bytes=layer_costs[LayerKind.EMBEDDING].input_bytes,
        loss_bytes=Dtype.FP32.bytes * tokens // degrees.cp,
    )


def price_layer(layer: Layer, pricing: Pricing) -> LayerCost:
    """Returns the cost of one layer."""
    padding = pricing.workload.vocab_padding
    share = parameter_share(layer.weights, pricing.degrees, vocab_padding=padding)
    replicated = sum(
        local_elements(weight.axes, pricing.degrees, vocab_padding=padding)
        for weight in layer.weights
        if weight.trained and not is_expert(weight) and not is_split_over_tensor(weight)
    )
    return LayerCost(
        kind=layer.kind,
        blocks=tuple(price_block(block, pricing) for block in layer.blocks),
        dense_parameters=share.dense,
        expert_parameters=share.expert,
        replicated_parameters=replicated,
    )


def _price_stage(
    model: Model, stage: Stage, layer_costs: dict[LayerKind, LayerCost], pricing: Pricing, training: Training
) -> StageCost:
    padding = pricing.workload.vocab_padding
    degrees = pricing.degrees
    tied = 0
    if model.tied_table is not None:
        tied = local_elements(model.tied_table.axes, degrees, vocab_padding=padding)
    share = parameter_share(stage.weights, degrees, vocab_padding=padding)
    states = state_bytes(stage.weights, degrees, training, vocab_padding=padding)
    return StageCost(
        stage=stage,
        layers=tuple(_with_tied_table(layer_costs[layer.kind], stage, tied) for layer in stage.layers),
        states=states,
        num_parameters=share.dense + share.expert,
        tied_parameters=tied,
        optimizer_s=_optimizer_time_s(stage, states, pricing, training),
        optimizer_temporary_bytes=gradient_copy_bytes(stage.weights, degrees, training, vocab_padding=padding),
    )


def _with_tied_table(layer: LayerCost, stage: Stage, tied_parameters: int) -> LayerCost:
    """The head holds its own copy of a tied table, or shares that of the embedding where both are on one stage."""
    if layer.kind is not LayerKind.HEAD or not tied_parameters:
        return layer
    if stage.tied_copy is None:
        return replace(layer, shared_parameters=tied_parameters)
    return replace(layer, dense_parameters=layer.dense_parameters + tied_parameters)


def _optimizer_time_s(stage: Stage, states: StateBytes, pricing: Pricing, training: Training) -> float:
    """Seconds of the gradient norm and the update on one rank (E7.1, E7.2).

    Bytes: states read and written, gradient read twice (norm and update), weight written: 30 a parameter for Adam in
    mixed precision, and 4 for the norm. Muon adds its rounds of Newton-Schulz, shared over the shard group.
    """
    degrees, padding = pricing.degrees, pricing.workload.vocab_padding
    updated = 0
    seconds = 0.0
    for weight in stage.weights:
        if weight.trained:
            updated += updated_elements(weight, degrees, vocab_padding=padding)
            if training.optimizer is Optimizer.MUON and is_orthogonalised(weight):
                ranks = shard_group_of(weight, degrees) if degrees.zero >= 1 else 1
                seconds += _newton_schulz_s(matrix_of(weight, degrees, vocab_padding=padding), pricing) / ranks
    types = training.types
    moved = 2 * states.optimizer + updated * (2 * types.gradients.bytes + types.parameters.bytes)
    return seconds + float(elementwise_time_s(pricing.kernels, moved))


def _newton_schulz_s(matrix: Matrix, pricing: Pricing) -> float:
    """Seconds of five rounds on one weight: X·X^T, its square, and one product, 2·(2·r²·c + r³) FLOPs (E7.1)."""
    short, long = min(matrix.rows, matrix.columns), max(matrix.rows, matrix.columns)
    kernels = pricing.kernels
    square = gemm_time_s(kernels, m=short, n=short, k=long, count=matrix.count)
    cube = gemm_time_s(kernels, m=short, n=short, k=short, count=matrix.count)
    product = gemm_time_s(kernels, m=short, n=long, k=short, count=matrix.count)
    return NEWTON_SCHULZ_ROUNDS * float(square + cube + product)
