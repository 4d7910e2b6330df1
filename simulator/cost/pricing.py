"""Prices of everything a step does: compute of blocks, collectives of groups, bytes of states, for every stage."""

from __future__ import annotations

from dataclasses import dataclass, replace

from simulator.cost.blocks import BlockCost, Pricing, accelerator_kernels, half_recompute_s, price_block
from simulator.cost.collectives import Port, ports_of
from simulator.cost.kernels import elementwise_time_s, gemm_time_s
from simulator.cost.shares import LayerShare, StageShare, share_stages
from simulator.cost.stage_memory import MemoryRules
from simulator.cost.states import Matrix, is_orthogonalised, matrix_of, shard_group_of, updated_elements
from simulator.model.layers import Layer, LayerKind, Model
from simulator.parallel.assumptions import Assumptions
from simulator.parallel.layout import ContextMethod, Layout
from simulator.parallel.mesh import DeviceMesh
from simulator.parallel.sharding import Workload, workload_of_layer
from simulator.parallel.stages import Stage
from simulator.parallel.training import Dtype, Optimizer, Recompute, Training

NEWTON_SCHULZ_ROUNDS = 5
"""Rounds of Muon's orthogonalisation (E7.1)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerCost:
    """What one layer costs one rank for one microbatch."""

    share: LayerShare
    """Its parameters on the rank."""
    blocks: tuple[BlockCost, ...]
    """In order of the forward pass."""
    half_recompute_s: float = 0.0
    """Forward seconds of all operators but attention and every other matrix product, if those are run again."""

    @property
    def kind(self) -> LayerKind:
        """What the layer is."""
        return self.share.layer.kind

    @property
    def dense_parameters(self) -> int:
        """Trained parameters that the rank computes with and reduces over data x context."""
        return int(self.share.dense_parameters)

    @property
    def expert_parameters(self) -> int:
        """Trained parameters reduced over the experts' own group."""
        return int(self.share.expert_parameters)

    @property
    def shared_parameters(self) -> int:
        """Parameters of another layer of the same rank that it uses too."""
        return int(self.share.shared_parameters)


@dataclass(frozen=True, slots=True, kw_only=True)
class StageCost:
    """What one virtual stage costs one of its ranks."""

    share: StageShare
    """What the rank holds of it."""
    layers: tuple[LayerCost, ...]
    """In order of the forward pass."""
    optimizer_s: float
    """Seconds of the update of this stage's share."""

    @property
    def stage(self) -> Stage:
        """The stage."""
        return self.share.stage


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
    memory: MemoryRules
    """What the passes of a stage do to memory."""


def workload_of(model: Model, layout: Layout, training: Training, assumptions: Assumptions) -> Workload:
    """Returns the microbatch as shapes see it."""
    return Workload(
        sequence_length=training.sequence_length,
        micro_batch=training.micro_batch,
        top_k=model.spec.experts.top_k if model.spec.experts else 1,
        num_experts=model.spec.experts.count if model.spec.experts else 0,
        expert_imbalance=assumptions.expert_imbalance,
        expert_capacity=assumptions.expert_capacity,
        vocab_padding=assumptions.vocab_padding,
        compute=training.types.compute,
        ulysses=layout.cp_method is ContextMethod.ULYSSES,
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
        workload=workload_of(model, layout, training, assumptions),
        degrees=degrees,
        attention=assumptions.attention_kernel,
        context_method=layout.cp_method,
        dropout=model.spec.dropout,
        sustained=assumptions.sustained_compute,
    )
    shares = share_stages(model, stages, degrees, training, vocab_padding=pricing.workload.vocab_padding)
    rules = MemoryRules(
        workload=pricing.workload,
        degrees=degrees,
        training=training,
        assumptions=assumptions,
        has_experts=model.spec.experts is not None,
        context=layout.cp_method,
        reshard_after_forward=layout.reshard_after_forward,
    )
    blocks: dict[Layer, tuple[BlockCost, ...]] = {}
    halves: dict[Layer, float] = {}
    by_key: dict[object, StageCost] = {}
    priced: list[StageCost] = []
    for share in shares:
        key = (share.stage.key, share.stage.tied_copy is not None)
        if key not in by_key:
            for held in share.layers:
                if held.layer not in blocks:
                    of_layer = replace(pricing, workload=workload_of_layer(pricing.workload, held.layer))
                    if training.recompute is Recompute.EVERY_OTHER_MATMUL:
                        halves[held.layer] = half_recompute_s(held.layer, pricing)
                    blocks[held.layer] = tuple(price_block(block, of_layer) for block in held.layer.blocks)
            by_key[key] = StageCost(
                share=share,
                layers=tuple(
                    LayerCost(share=held, blocks=blocks[held.layer], half_recompute_s=halves.get(held.layer, 0.0))
                    for held in share.layers
                ),
                optimizer_s=_optimizer_time_s(share, pricing, training),
            )
        priced.append(replace(by_key[key], share=share))
    tokens = training.sequence_length * training.micro_batch
    return StageCosts(
        stages=tuple(priced),
        ports=ports_of(mesh.cluster),
        boundary_bytes=int(rules.boundary_bytes(shares[0])),
        loss_bytes=Dtype.FP32.bytes * tokens // degrees.cp,
        memory=rules,
    )


def _optimizer_time_s(share: StageShare, pricing: Pricing, training: Training) -> float:
    """Seconds of the gradient norm and the update on one rank (E7.1, E7.2).

    Bytes: states read and written, gradient read twice (norm and update), weight written: 30 a parameter for Adam in
    mixed precision, and 4 for the norm. Muon adds its rounds of Newton-Schulz, shared over the shard group.
    """
    degrees, padding = pricing.degrees, pricing.workload.vocab_padding
    updated = 0
    seconds = 0.0
    for weight in share.stage.weights:
        if weight.trained:
            updated += updated_elements(weight, degrees, vocab_padding=padding)
            if training.optimizer is Optimizer.MUON and is_orthogonalised(weight):
                ranks = shard_group_of(weight, degrees) if degrees.zero >= 1 else 1
                seconds += _newton_schulz_s(matrix_of(weight, degrees, vocab_padding=padding), pricing) / ranks
    types = training.types
    moved = 2 * share.states.optimizer + updated * (2 * types.gradients.bytes + types.parameters.bytes)
    return seconds + float(elementwise_time_s(pricing.kernels, moved))


def _newton_schulz_s(matrix: Matrix, pricing: Pricing) -> float:
    """Seconds of five rounds on one weight: X·X^T, its square, and one product, 2·(2·r²·c + r³) FLOPs (E7.1)."""
    short, long = min(matrix.rows, matrix.columns), max(matrix.rows, matrix.columns)
    kernels = pricing.kernels
    square = gemm_time_s(kernels, m=short, n=short, k=long, count=matrix.count)
    cube = gemm_time_s(kernels, m=short, n=short, k=short, count=matrix.count)
    product = gemm_time_s(kernels, m=short, n=long, k=short, count=matrix.count)
    return NEWTON_SCHULZ_ROUNDS * float(square + cube + product)
