"""Multi-token prediction: a module behind the last layer for each further token (DeepSeek-V3, section 2.2; E1.10)."""

from __future__ import annotations

from dataclasses import replace

from simulator.model.attention_core import linear, reduced
from simulator.model.embedding import token_lookup
from simulator.model.head import head_blocks
from simulator.model.kernels import Kernels
from simulator.model.layers import Block, prefixed
from simulator.model.normalisation import norm
from simulator.model.operators import MatMul
from simulator.model.spec import ModelSpec
from simulator.model.tensors import Axes, TensorAxis, Tokens
from simulator.model.transformer import INPUT, OUTPUT, layer_blocks, plan_of, stream

TRUNK = "trunk"
"""The hidden features that a module continues: those of the model, or of the module before it."""


def prediction_blocks(spec: ModelSpec, *, sequence_length: int, kernels: Kernels) -> tuple[Block, ...]:
    """Returns the blocks of all modules; they stand in the head, on the last stage.

    A module normalises the hidden features of the module before it and the embedding of the next token, projects
    both, 2h·h, runs one layer of the main kind, and predicts with the head's table: 3h of norms, table and head
    shared. Recompute leaves it alone.
    """
    blocks: list[Block] = []
    source = INPUT
    plan = plan_of(spec, spec.layers - 1, sequence_length=sequence_length)
    inner = (
        _entrance(spec, kernels),
        *layer_blocks(spec, plan, sequence_length=sequence_length, kernels=kernels),
        *head_blocks(spec, source=OUTPUT, kernels=kernels, stores_table=False),
    )
    for module in range(1, spec.mtp_layers + 1):
        blocks += prefixed(inner, f"mtp {module}", given={TRUNK: source})
        source = f"mtp {module} {OUTPUT}"
    return tuple(blocks)


def _entrance(spec: ModelSpec, kernels: Kernels) -> Block:
    hidden: Axes = ((TensorAxis.HIDDEN, spec.hidden),)
    both: Axes = ((TensorAxis.HIDDEN, 2 * spec.hidden),)
    # The ids are those of the embedding, one place further: nothing of its own is kept.
    lookup = replace(token_lookup(spec, weights=()), reads=(), saves=())
    names = ("hidden norm", "embedding norm")
    norms = tuple(
        norm(spec, name, source=read, kernels=kernels)
        for name, read in zip(names, (TRUNK, "entrance branch"), strict=True)
    )
    read = tuple(each.writes[0].name for each in norms)
    return Block(
        name="entrance",
        core=(lookup, reduced("entrance", lookup.writes[0].name, spec.hidden)),
        exit=(
            *norms,
            MatMul(
                name="entrance projection",
                tokens=Tokens.SEQUENCE,
                inputs=both,
                outputs=hidden,
                weights=linear("entrance_projection", both, hidden, bias=False),
                reads=read,
                saves=read,
                writes=(stream(spec, INPUT),),
            ),
        ),
    )
