"""Fills in `layout.stages: auto` and `auto-memory`: which stage gets how many layers, by time or by memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from simulator.cost.pricing import StageCosts
from simulator.lowering.evaluation import evaluate
from simulator.lowering.pass_times import PassTimer
from simulator.lowering.stage_profile import price_scenario, schedule_of
from simulator.model.layers import Model
from simulator.parallel.balance import LayerTimes, balanced_layers
from simulator.parallel.layout import StageBalance
from simulator.parallel.recompute import NOTHING, recompute_choice
from simulator.parallel.scenario import Scenario
from simulator.parallel.stages import layers_per_stage
from simulator.parallel.training import FullRecompute

TARGETS = 4
"""Stages of ranks with low peaks that a layer of the fullest rank is moved to, one after another."""


def with_stages_listed(scenario: Scenario) -> Scenario:
    """Returns the scenario with the layers of every stage, where they were to be balanced; else as it is.

    A scenario that has passed all rules gives one that passes them too.
    """
    match scenario.layout.stages:
        case StageBalance.AUTO:
            return _with_stages(scenario, stages_of_equal_time(scenario))
        case StageBalance.AUTO_MEMORY:
            return _with_stages(scenario, stages_of_lowest_peak(scenario))
        case _:
            return scenario


def stages_of_equal_time(scenario: Scenario) -> tuple[int, ...]:
    """Returns the layers of each stage for which the longest forward and backward is shortest.

    With several virtual stages a rank each of them is balanced. What is not counted: messages between stages and what
    runs beside compute (see `pass_times`).
    """
    model, costs, timer = _priced_evenly(scenario)
    num_stages = len(costs.stages)
    training = scenario.training
    priced = {layer.share.layer: layer for stage in costs.stages for layer in stage.layers}
    # Of layers of which only the first of each stage are recomputed, position 0 is one that is; the last is not.
    first, later = (
        [timer.layer(priced[layer], recompute_choice(training, layer.kind, at)).total_s for layer in model.layers]
        for at in (0, len(model.layers))
    )
    recompute = training.recompute
    times = LayerTimes(
        layers=np.array(later),
        embedding=timer.layer(priced[model.embedding], NOTHING).total_s,
        head=timer.layer(priced[model.head], NOTHING).total_s,
        again=np.array(first) - np.array(later),
        num_again=recompute.full_layers if isinstance(recompute, FullRecompute) else 0,
    )
    return balanced_layers(times, num_stages, preferred=layers_per_stage(len(model.layers), num_stages))


def stages_of_lowest_peak(scenario: Scenario) -> tuple[int, ...]:
    """Returns the layers of each stage with which the highest peak of memory of all pipeline ranks is lowest.

    A local search: from the even split on, a layer goes from the fullest rank to one of those with the lowest peaks, or
    to the stage beside it, as long as that lowers the peaks, the highest first. Never worse than the even split; not
    always the best of all.
    """
    layout = scenario.layout
    counts = layers_per_stage(scenario.model.num_layers, layout.pp * layout.vpp)
    holders = _holders(scenario)
    peaks = _peaks(scenario, counts)
    while True:
        found = [(sorted(new, reverse=True), moved, new) for moved, new in _moves(scenario, counts, peaks, holders)]
        best = min(found, default=None)
        if best is None or best[0] >= sorted(peaks, reverse=True):
            return counts
        _, counts, peaks = best


def _moves(
    scenario: Scenario, counts: tuple[int, ...], peaks: tuple[int, ...], holders: list[tuple[int, ...]]
) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Yields splits in which one layer has left the fullest rank, and the peaks of all ranks with each."""
    fullest = peaks.index(max(peaks))
    last = len(counts) - 1
    low = sorted(range(len(counts)), key=lambda stage: max(peaks[rank] for rank in holders[stage]))[:TARGETS]
    for source in (stage for stage, ranks in enumerate(holders) if fullest in ranks):
        if counts[source] <= (source not in (0, last)):
            continue
        for target in sorted({*low, max(0, source - 1), min(last, source + 1)} - {source}):
            moved = list(counts)
            moved[source] -= 1
            moved[target] += 1
            yield tuple(moved), _peaks(scenario, tuple(moved))


def _peaks(scenario: Scenario, counts: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(rank.peak_bytes for rank in evaluate(_with_stages(scenario, counts)).ranks)


def _holders(scenario: Scenario) -> list[tuple[int, ...]]:
    """Returns the pipeline ranks that hold each stage of the model: one, or two with two directions."""
    schedule = schedule_of(scenario)
    return [schedule.stage_to_rank[stage :: schedule.chain] for stage in range(schedule.chain)]


def _with_stages(scenario: Scenario, counts: tuple[int, ...]) -> Scenario:
    return replace(scenario, layout=scenario.layout.model_copy(update={"stages": counts}))


def _priced_evenly(scenario: Scenario) -> tuple[Model, StageCosts, PassTimer]:
    """Returns the model, and the prices of its layers in an even split."""
    even = replace(scenario, layout=scenario.layout.model_copy(update={"stages": StageBalance.EVEN}))
    model, costs, mesh = price_scenario(even)
    timer = PassTimer(
        costs, mesh=mesh, layout=even.layout, training=scenario.training, assumptions=scenario.assumptions
    )
    return model, costs, timer
