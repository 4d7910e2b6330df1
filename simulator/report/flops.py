"""Model and hardware FLOPs of a step, by the convention asked for (equations section 2)."""

from __future__ import annotations

from dataclasses import dataclass

from simulator.cost.pricing import StageCosts
from simulator.lowering.passes import choice_at
from simulator.model.layers import Model
from simulator.model.operators import AttentionCore, ExpertMatMul, MatMul, Operator
from simulator.parallel.assumptions import FlopsConvention
from simulator.parallel.training import Training


@dataclass(frozen=True, slots=True, kw_only=True)
class StepFlops:
    """FLOPs of all devices in one step."""

    model: int
    """What the model needs: three times the forward pass."""
    hardware: int
    """What is executed, recomputation included."""


def step_flops(model: Model, costs: StageCosts, training: Training, convention: FlopsConvention) -> StepFlops:
    """Returns the FLOPs of a step.

    megatron: 3 x (2 a multiply-add of every linear layer and the head + attention over all s keys); causal: over s/2
    keys (E2.1 to E2.4). 6n: 6 x active parameters x tokens (E2.8). Hardware adds the forward of what is recomputed
    (E2.6): 4·b·s²·h·L for the attention core, not the 12 of Korthikanti's equation 8 (a misprint, see the sheet).
    """
    tokens = training.sequence_length * training.global_batch
    again = _recomputed_per_token(costs, training, convention)
    if convention is FlopsConvention.SIX_N:
        per_token = 6 * model.num_active_parameters
    else:
        per_token = 3 * (model.matmul_flops_per_token + _attention(model.attention_flops_per_key, training, convention))
    return StepFlops(model=per_token * tokens, hardware=(per_token + again) * tokens)


def _attention(flops_per_key: int, training: Training, convention: FlopsConvention) -> int:
    """FLOPs of a token's attention: all keys, or half of them."""
    full = flops_per_key * training.sequence_length
    return full if convention is FlopsConvention.MEGATRON else full // 2


def _recomputed_per_token(costs: StageCosts, training: Training, convention: FlopsConvention) -> int:
    total = 0
    for stage in costs.stages:
        for position, layer in enumerate(stage.stage.layers):
            choice = choice_at(stage, position, training)
            if not choice.nothing:
                total += sum(
                    _forward_flops(operator, training, convention)
                    for block in layer.blocks
                    for operator in block.operators
                    if choice.region(block=block.name, part=operator.part) is not None
                )
    return total


def _forward_flops(operator: Operator, training: Training, convention: FlopsConvention) -> int:
    match operator:
        case MatMul() | ExpertMatMul():
            return operator.forward_flops_per_token
        case AttentionCore():
            return _attention(operator.forward_flops_per_key, training, convention)
        case _:
            return 0
