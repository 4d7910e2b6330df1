"""Pipeline stages: which layers lie on which virtual stage."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import groupby

from simulator.errors import SimulatorFault
from simulator.model.layers import Layer, LayerKind, Model
from simulator.model.tensors import Weight
from simulator.parallel.degrees import Degrees
from simulator.parallel.layout import Layout, StageBalance

StageKey = tuple[tuple[str, int], ...]
"""Runs of equal layers, by their keys: stages with the same key do the same work."""


@dataclass(frozen=True, kw_only=True)
class Stage:
    """The layers at one place of the pipeline."""

    index: int
    """Virtual stage, from 0."""
    layers: tuple[Layer, ...]
    """In order of the forward pass; the first stage begins with the embedding, the last ends with the head."""
    tied_copy: Weight | None = None
    """The last stage's own copy of a token table that its head shares with the first stage (E1.12)."""

    @cached_property
    def key(self) -> StageKey:
        """What the stage is made of."""
        return tuple((key, len(list(run))) for key, run in groupby(layer.key for layer in self.layers))

    @cached_property
    def weights(self) -> tuple[Weight, ...]:
        """All weights that the ranks of this stage hold."""
        own = tuple(weight for layer in self.layers for weight in layer.weights)
        return own if self.tied_copy is None else (*own, self.tied_copy)

    @cached_property
    def num_transformer_layers(self) -> int:
        """Layers without embedding and head."""
        return sum(layer.kind in (LayerKind.DENSE, LayerKind.EXPERTS) for layer in self.layers)


def layers_per_stage(num_layers: int, num_stages: int) -> tuple[int, ...]:
    """Returns an even split; left-over layers go to the middle, away from embedding and head.

    126 layers on 16 stages are 7, 8, …, 8, 7, as Llama 3.1 405B was laid out (arXiv 2407.21783, section 3.3.2).
    """
    base, extra = divmod(num_layers, num_stages)
    first = (num_stages - extra + 1) // 2
    return tuple(base + (first <= stage < first + extra) for stage in range(num_stages))


def split_into_stages(model: Model, layout: Layout, degrees: Degrees, *, ends_meet: bool = False) -> tuple[Stage, ...]:
    """Returns the virtual stages, pp · vpp of them, in order of the forward pass.

    Stages that are to be balanced have been listed before (`simulator.lowering.stage_balance`).

    Args:
        model: its layers.
        layout: how many lie on each stage.
        degrees: number of stages.
        ends_meet: whether one rank holds the first and the last stage (V placement), and with them one token table.

    Raises:
        SimulatorFault: they have not.
    """
    num_stages = degrees.pp * degrees.vpp
    if layout.stages in (StageBalance.AUTO, StageBalance.AUTO_MEMORY):
        raise SimulatorFault(f"layout.stages {layout.stages} was not resolved")
    counts = layout.listed_stages or layers_per_stage(len(model.layers), num_stages)
    stages: list[Stage] = []
    begin = 0
    for index, count in enumerate(counts):
        layers = model.layers[begin : begin + count]
        begin += count
        is_last = index == num_stages - 1
        if index == 0:
            layers = (model.embedding, *layers)
        if is_last:
            layers = (*layers, model.head)
        copy = model.tied_table if is_last and degrees.pp > 1 and not ends_meet else None
        stages.append(Stage(index=index, layers=layers, tied_copy=copy))
    return tuple(stages)
