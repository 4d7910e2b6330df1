"""What a rank holds outside any microbatch: states, and what its libraries keep."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby

import numpy as np

from simulator.cost.memory import MEMORY, Held, Levels, Memory
from simulator.cost.shares import StageShare
from simulator.cost.stage_memory import MemoryRules
from simulator.model.layers import Layer
from simulator.model.operators import ExpertMatMul, MatMul, is_router, one_gemm_with
from simulator.parallel.degrees import Degrees, Int
from simulator.parallel.sharding import local_elements

GROUPED_GEMM_STREAMS = 4
"""Streams on which the GEMMs of experts run, each with a workspace of its own (Transformer Engine)."""
PIPELINE_NEIGHBOURS = 2
"""Pipeline ranks that a rank has a communicator with: the one before and the one after."""
PLANNING_VENDORS = ("google",)
"""Vendors whose compiler plans a program's memory ahead (XLA)."""
OUTSIDE_ALLOCATOR = (Memory.COMMUNICATION, Memory.FRAMEWORK)
"""Resident memory of these categories does not come from the framework's caching allocator."""


def resident(rules: MemoryRules, shares: Sequence[StageShare]) -> tuple[Held, ...]:
    """Returns the resident tensors of a rank, and what its driver and communicators take (E3.1, E3.13).

    Args:
        rules: what memory depends on.
        shares: what it holds of each of its stages.
    """
    held: list[Held] = []
    for share in shares:
        held += [
            _held(f"parameters of stage {share.stage.index}", Memory.PARAMETERS, share.states.parameters),
            _held(f"optimizer states of stage {share.stage.index}", Memory.OPTIMIZER, share.states.optimizer),
        ]
        if not rules.frees_gradients:
            held.append(_held(f"gradients of stage {share.stage.index}", Memory.GRADIENTS, share.states.gradients))
    assumptions, degrees = rules.assumptions, rules.degrees
    has_libraries = not rules.planned_ahead
    workspaces = (1 + GROUPED_GEMM_STREAMS * rules.has_experts) * has_libraries
    return (
        *held,
        _held("placeholders of weight gradients", Memory.GRADIENTS, _placeholder_bytes(rules, shares)),
        _held("gradients as autograd makes them", Memory.GRADIENTS, _raw_gradient_bytes(rules, shares)),
        _held("buckets of gradients and parameters", Memory.TEMPORARY, _bucket_bytes(rules, shares)),
        _held("workspaces of GEMMs", Memory.TEMPORARY, workspaces * assumptions.gemm_workspace),
        _held(
            "buffers of communicators",
            Memory.COMMUNICATION,
            _num_communicators(degrees, has_experts=rules.has_experts)
            * assumptions.communicator_buffers
            * has_libraries,
        ),
        _held("device context", Memory.FRAMEWORK, assumptions.device_context),
    )


def _bucket_bytes(rules: MemoryRules, shares: Sequence[StageShare]) -> Int:
    types, held = rules.training.types, sum(share.num_parameters for share in shares)
    most = rules.assumptions.bucket_copies
    elements = np.minimum(held, most) if isinstance(held, np.ndarray) else min(held, most)
    return (types.gradients.bytes + types.parameters.bytes) * elements


def _raw_gradient_bytes(rules: MemoryRules, shares: Sequence[StageShare]) -> Int:
    if rules.zero >= 3 or not rules.assumptions.raw_gradients:
        return 0
    return rules.weight_gradient_bytes * sum(share.num_parameters for share in shares)


def levels_of(held: Iterable[Held]) -> Levels:
    """Returns the bytes of each category."""
    levels: dict[Memory, Int] = dict.fromkeys(MEMORY, 0)
    for tensor in held:
        levels[tensor.category] = levels[tensor.category] + tensor.bytes
    return tuple(levels[category] for category in MEMORY)


def _held(name: str, category: Memory, size: Int) -> Held:
    return Held(name=name, operator="resident", category=category, bytes=size)


def _num_communicators(degrees: Degrees, *, has_experts: bool) -> Int:
    """One for each group of more than one rank, and one for each neighbour in the pipeline."""
    sizes = [degrees.tp, degrees.cp, degrees.shard_group, degrees.replicas // degrees.shard_group]
    if has_experts:
        replicas, shard = degrees.expert_replicas, degrees.expert_shard_group
        sizes += [degrees.ep, degrees.etp, shard, replicas // shard]
    return sum((size > 1) * 1 for size in sizes) + PIPELINE_NEIGHBOURS * (degrees.pp > 1)


def _placeholder_bytes(rules: MemoryRules, shares: Sequence[StageShare]) -> Int:
    """Bytes of the tensors that stand for weight gradients which a GEMM has already added to the resident ones.

    One 16-bit tensor for each distinct shape of a linear layer's local weight, kept for the life of the process; the
    experts of a rank share one. Source: Transformer Engine, `get_dummy_wgrad`; measured on 15 rows of SimuMax's B200
    runs (docs/accuracy.md).
    """
    assumptions = rules.assumptions
    fused = assumptions.gradient_accumulation_fusion and assumptions.weight_gradient_placeholders
    if rules.zero >= 3 or rules.planned_ahead or not fused:
        return 0
    layers = dict.fromkeys(layer.layer for share in shares for layer in share.layers)
    seen: list[tuple[Int, Int]] = []
    elements: Int = 0
    for layer in layers:
        for rows, columns in _weight_shapes(layer, rules):
            is_new: Int = 1
            for other_rows, other_columns in seen:
                # Candidates agree in names of axes, not in which local shapes coincide.
                is_new = is_new * (1 - (rows == other_rows) * (columns == other_columns))
            elements = elements + is_new * rows * columns
            seen.append((rows, columns))
    return rules.weight_gradient_bytes * elements


def _weight_shapes(layer: Layer, rules: MemoryRules) -> Iterable[tuple[Int, Int]]:
    """Yields the local (inputs, outputs) of each GEMM; those of the same input are one (Q, K and V; gate and up)."""
    degrees, padding = rules.degrees, rules.workload.vocab_padding
    for _, run in groupby(layer.operators, key=one_gemm_with):
        linear = [operator for operator in run if isinstance(operator, MatMul | ExpertMatMul)]
        if linear and not linear[0].frozen and not is_router(linear[0]):
            inputs = local_elements(linear[0].inputs, degrees, vocab_padding=padding)
            outputs = sum(local_elements(operator.outputs, degrees, vocab_padding=padding) for operator in linear)
            yield inputs, outputs
