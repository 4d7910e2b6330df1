"""Bytes of parameters, gradients and optimizer state on a rank (E3.1, E3.2)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from simulator.model.tensors import TensorAxis, Weight
from simulator.parallel.degrees import Degrees, Int
from simulator.parallel.sharding import is_expert, local_elements, local_size
from simulator.parallel.training import Dtype, Optimizer, Training

BLOCK_8BIT = 256
"""Elements that share one fp32 scale in 8-bit Adam (Dettmers 2022)."""
TABLE_AXES = (TensorAxis.VOCAB, TensorAxis.POSITIONS)


@dataclass(frozen=True, slots=True, kw_only=True)
class StateBytes:
    """Resident bytes of one rank."""

    parameters: Int
    """Weights in their storage type."""
    gradients: Int
    """Gradient buffers."""
    optimizer: Int
    """Master weights and moments."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ParameterShare:
    """Parameters that one rank computes with, before any sharding over data."""

    dense: Int
    """Reduced over data x context."""
    expert: Int
    """Reduced over the experts' own data-parallel group."""


def parameter_share(weights: Iterable[Weight], degrees: Degrees, *, vocab_padding: int) -> ParameterShare:
    """Returns the trained parameters of a rank, padding included (E1.11, E1.12)."""
    dense: Int = 0
    expert: Int = 0
    for weight in weights:
        if weight.trained:
            count = local_elements(weight.axes, degrees, vocab_padding=vocab_padding)
            if is_expert(weight):
                expert = expert + count
            else:
                dense = dense + count
    return ParameterShare(dense=dense, expert=expert)


def bytes_per_parameter(training: Training) -> tuple[int, int, float]:
    """Returns resident bytes a parameter of weights, gradients and optimizer state (master and moments), unsharded.

    The moments are those of a matrix; factored (Adafactor) ones count as none here. Source: E3.1.
    """
    types = training.types
    master = 0 if types.master == "none" else types.master.bytes
    return types.parameters.bytes, types.gradients.bytes, master + moment_bytes(training.optimizer, types.optimizer)


def moment_bytes(optimizer: Optimizer, storage: Dtype) -> float:
    """Returns the bytes a parameter of the moments of a matrix (E3.1)."""
    match optimizer:
        case Optimizer.ADAMW:
            return 2 * storage.bytes
        case Optimizer.ADAM8BIT:
            return 2 * (1 + 4 / BLOCK_8BIT)
        case Optimizer.SGD | Optimizer.MUON:
            return storage.bytes
        case Optimizer.ADAFACTOR:
            return 0


def state_bytes(weights: Iterable[Weight], degrees: Degrees, training: Training, *, vocab_padding: int) -> StateBytes:
    """Returns the resident state of a rank that holds its share of `weights`.

    ZeRO 1 divides optimizer state by the shard group, 2 also gradients, 3 also parameters; experts are divided by
    their own group (Rajbhandari 2020; E3.2). Shards are rounded up to whole elements.
    """
    weight_size, gradient_size, _ = bytes_per_parameter(training)
    parameters: Int = 0
    gradients: Int = 0
    optimizer: Int = 0
    for weight in weights:
        group = shard_group_of(weight, degrees)
        count = local_elements(weight.axes, degrees, vocab_padding=vocab_padding)
        parameters = parameters + weight_size * shard(count, group, degrees.zero >= 3)
        if weight.trained:
            gradients = gradients + gradient_size * shard(count, group, degrees.zero >= 2)
            optimizer = optimizer + _optimizer_bytes(
                weight, shard(count, group, degrees.zero >= 1), degrees, training, vocab_padding=vocab_padding
            )
    return StateBytes(parameters=parameters, gradients=gradients, optimizer=optimizer)


def gradient_copy_bytes(weights: Iterable[Weight], degrees: Degrees, training: Training, *, vocab_padding: int) -> Int:
    """Returns the bytes of a rank's gradients in the type of its master weights, if they are kept in a smaller one.

    Megatron-LM makes that copy for the update: the last 4 of its 20 bytes a parameter with fp16 gradients (E3.1).
    """
    types = training.types
    if types.master == "none" or types.gradients.bytes >= types.master.bytes:
        return 0
    trained = (weight for weight in weights if weight.trained)
    return types.master.bytes * sum(
        updated_elements(weight, degrees, vocab_padding=vocab_padding) for weight in trained
    )


def updated_elements(weight: Weight, degrees: Degrees, *, vocab_padding: int) -> Int:
    """Returns the elements of a weight that one rank updates: its shard, if the optimizer state is sharded."""
    group = shard_group_of(weight, degrees)
    return shard(local_elements(weight.axes, degrees, vocab_padding=vocab_padding), group, degrees.zero >= 1)


def shard_group_of(weight: Weight, degrees: Degrees) -> Int:
    """Returns the ranks that share a weight's state under ZeRO: experts have a group of their own (E3.2)."""
    return degrees.expert_shard_group if is_expert(weight) else degrees.shard_group


def shard(count: Int, group: Int, sharded: Int) -> Int:
    """Returns ceil(count / group) where `sharded`, else count; numbers or arrays."""
    return -(-count // (1 + (group - 1) * sharded))


def _optimizer_bytes(weight: Weight, count: Int, degrees: Degrees, training: Training, *, vocab_padding: int) -> Int:
    types = training.types
    master = 0 if types.master == "none" else types.master.bytes * count
    optimizer = training.optimizer
    if optimizer is Optimizer.MUON and not is_orthogonalised(weight):
        return master + 2 * types.optimizer.bytes * count
    if optimizer is Optimizer.ADAFACTOR:
        if len(weight.axes) == 1:
            return master + types.optimizer.bytes * count
        matrix = matrix_of(weight, degrees, vocab_padding=vocab_padding)
        return master + types.optimizer.bytes * matrix.count * (matrix.rows + matrix.columns)
    if optimizer is Optimizer.ADAM8BIT:
        return master + 2 * (count + 4 * -(-count // BLOCK_8BIT))
    return master + int(moment_bytes(optimizer, types.optimizer)) * count


@dataclass(frozen=True, slots=True, kw_only=True)
class Matrix:
    """A weight as the optimizer sees it on one rank: equal matrices, one for each local expert."""

    count: Int
    """Matrices."""
    rows: Int
    """Rows of each."""
    columns: Int
    """Columns of each."""


def matrix_of(weight: Weight, degrees: Degrees, *, vocab_padding: int) -> Matrix:
    """Returns the local matrices of a weight; heads and head_dim make one side together."""
    count: Int = 1
    sides: list[Int] = []
    for axis, size in weight.axes:
        part = local_size(axis, size, degrees, vocab_padding=vocab_padding)
        if axis is TensorAxis.EXPERTS:
            count = part
        elif axis is TensorAxis.HEAD_DIM and sides:
            sides[-1] = sides[-1] * part
        else:
            sides.append(part)
    rows, columns = (sides[0], sides[1]) if len(sides) > 1 else (1, sides[0])
    return Matrix(count=count, rows=rows, columns=columns)


def is_orthogonalised(weight: Weight) -> bool:
    """Returns whether Muon treats a weight as a matrix; tables, norms and biases stay on Adam (E3.1)."""
    axes = [axis for axis, _ in weight.axes if axis not in (TensorAxis.EXPERTS, TensorAxis.HEAD_DIM)]
    return len(axes) > 1 and not any(axis in TABLE_AXES for axis in axes)
