"""Bytes and seconds of the optimizer's update on one rank (E7.1, E7.2)."""

from __future__ import annotations

from collections.abc import Iterable

from simulator.cost.blocks import Pricing
from simulator.cost.kernels import elementwise_time_s, gemm_time_s
from simulator.cost.states import (
    Matrix,
    is_orthogonalised,
    is_sharded,
    matrix_of,
    resident_bytes,
    shard_group_of,
    state_bytes,
    updated_elements,
    weight_copy_bytes,
)
from simulator.model.tensors import Weight
from simulator.parallel.degrees import Degrees, Int
from simulator.parallel.sharding import local_elements
from simulator.parallel.training import Optimizer, Training

NEWTON_SCHULZ_ROUNDS = 5
"""Rounds of Muon's orthogonalisation (E7.1)."""


def update_traffic_bytes(weights: Iterable[Weight], degrees: Degrees, training: Training, *, vocab_padding: int) -> Int:
    """Returns the bytes of memory traffic of the update of a rank's share of some weights.

    Master weights and moments read and written, gradient read, weight written: 30 bytes a parameter for Adam with
    fp32 states and gradients and bf16 weights, 28 with bf16 gradients. Source: E7.1.
    """
    trained = [weight for weight in weights if weight.trained]
    states = state_bytes(trained, degrees, training, vocab_padding=vocab_padding)
    types = training.types
    moved = 2 * states.optimizer
    for weight in trained:
        updated = updated_elements(weight, degrees, vocab_padding=vocab_padding)
        moved += types.gradients.bytes * updated + resident_bytes(weight, updated, training)
    return moved


def norm_traffic_bytes(weights: Iterable[Weight], degrees: Degrees, training: Training, *, vocab_padding: int) -> Int:
    """Returns the bytes that the norm of the gradients reads on a rank. Source: E7.2."""
    updated = sum(
        updated_elements(weight, degrees, vocab_padding=vocab_padding) for weight in weights if weight.trained
    )
    return training.types.gradients.bytes * updated


def quantisation_traffic_bytes(
    weights: Iterable[Weight], degrees: Degrees, training: Training, *, vocab_padding: int
) -> Int:
    """Returns the bytes that making a rank's quantised copies of its weights moves: weights read, copies written."""
    types, moved = training.types, 0
    for weight in weights:
        count = local_elements(weight.axes, degrees, vocab_padding=vocab_padding)
        if copies := weight_copy_bytes(weight, count, types, sharded=is_sharded(weight, degrees)):
            moved += resident_bytes(weight, count, training) + copies
    return moved


def update_time_s(weights: tuple[Weight, ...], pricing: Pricing, training: Training) -> float:
    """Returns the seconds of the gradient norm, the update and new quantised copies of weights on one device.

    All of it is memory traffic, but for Muon's rounds of Newton-Schulz, which are shared over the shard group. An
    offloaded optimizer updates on the host (`simulator.cost.offload`); the norm is the device's.
    """
    degrees, padding = pricing.degrees, pricing.workload.vocab_padding
    seconds = 0.0
    if training.rule.name is Optimizer.MUON:
        for weight in weights:
            if weight.trained and is_orthogonalised(weight):
                ranks = shard_group_of(weight, degrees) if degrees.zero >= 1 else 1
                seconds += _newton_schulz_s(matrix_of(weight, degrees, vocab_padding=padding), pricing) / ranks
    on_device = [norm_traffic_bytes, quantisation_traffic_bytes]
    if training.offload.optimizer == "none":
        on_device.append(update_traffic_bytes)
    moved = sum(traffic(weights, degrees, training, vocab_padding=padding) for traffic in on_device)
    return seconds + float(elementwise_time_s(pricing.kernels, moved))


def _newton_schulz_s(matrix: Matrix, pricing: Pricing) -> float:
    """Seconds of five rounds on one weight: X·X^T, its square, and one product, 2·(2·r²·c + r³) FLOPs (E7.1)."""
    short, long = min(matrix.rows, matrix.columns), max(matrix.rows, matrix.columns)
    kernels = pricing.kernels
    square = gemm_time_s(kernels, m=short, n=short, k=long, count=matrix.count)
    cube = gemm_time_s(kernels, m=short, n=short, k=short, count=matrix.count)
    product = gemm_time_s(kernels, m=short, n=long, k=short, count=matrix.count)
    return NEWTON_SCHULZ_ROUNDS * float(square + cube + product)
