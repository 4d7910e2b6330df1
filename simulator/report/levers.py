"""Single changes of a scenario that lower its memory: what to try when it does not fit."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from simulator.cost.validity import broken_rules
from simulator.parallel.degrees import num_microbatches, resolve_degrees
from simulator.parallel.layout import Layout
from simulator.parallel.scenario import Scenario
from simulator.parallel.training import Recompute
from simulator.report.result import Lever, Report

MAX_ZERO = 3
ROUNDS = {"1f1b": 1, "interleaved-1f1b": 2}
"""Microbatches for each pipeline rank after which the memory of no rank rises any more (E3.11)."""


def tried_changes(scenario: Scenario, simulate: Callable[[Scenario], Report]) -> tuple[Lever, ...]:
    """Returns what every single change does that keeps the scenario valid, those that make it fit first.

    A step of a few microbatches tells the memory; changes that fit are then simulated whole.

    Args:
        scenario: one that does not fit.
        simulate: simulates a scenario.
    """
    found = []
    for change, changed in single_changes(scenario):
        if broken_rules(changed):
            continue
        memory = simulate(shortened(changed)).memory
        step_time_s = None
        if memory.fits:
            report = simulate(changed)
            memory, step_time_s = report.memory, report.step.time_s
        found.append(
            Lever(
                change=change,
                reserved_peak_bytes=memory.reserved_peak_bytes,
                fits=memory.fits,
                step_time_s=step_time_s,
            )
        )
    return tuple(sorted(found, key=lambda lever: (not lever.fits, lever.reserved_peak_bytes)))


def single_changes(scenario: Scenario) -> Iterator[tuple[str, Scenario]]:
    """Yields each change as `key: value` and the scenario with it; not all of them need be valid.

    Where a degree changes, the data-parallel degree follows (`dp: auto`), so that the devices stay the same.
    """
    layout, training = scenario.layout, scenario.training
    if training.recompute is not Recompute.FULL:
        for mode in (Recompute.SELECTIVE, Recompute.FULL):
            if mode is not training.recompute:
                yield (
                    f"training.recompute: {mode}",
                    replace(scenario, training=training.model_copy(update={"recompute": mode})),
                )
    for zero in range(layout.zero + 1, MAX_ZERO + 1):
        yield f"layout.zero: {zero}", _with_layout(scenario, {"zero": zero})
    if layout.sp is False and layout.tp > 1:
        yield "layout.sp: true", _with_layout(scenario, {"sp": True})
    for key in ("tp", "pp", "cp", "ep"):
        doubled = 2 * getattr(layout, key)
        if key == "ep" and scenario.model.experts is None:
            continue
        changes: dict[str, object] = {key: doubled}
        if key != "ep":
            changes |= {"dp": "auto", "shard_group": "auto"}
        if key == "pp":
            changes["stages"] = "auto"
        yield f"layout.{key}: {doubled}", _with_layout(scenario, changes)
    if training.micro_batch > 1:
        half = training.micro_batch // 2
        yield (
            f"training.micro_batch: {half}",
            replace(scenario, training=training.model_copy(update={"micro_batch": half})),
        )


def shortened(scenario: Scenario) -> Scenario:
    """Returns the scenario with only as many microbatches as its memory needs to reach its peak.

    1F1B holds at most p of them, interleaved at most the chunks of 2p; a schedule that holds all is left as it is.
    """
    degrees = resolve_degrees(scenario.layout, devices=scenario.devices)
    if scenario.schedule not in ROUNDS:
        return scenario
    wanted = ROUNDS[scenario.schedule] * degrees.pp
    if num_microbatches(scenario.training, degrees) <= wanted:
        return scenario
    batch = wanted * degrees.dp * scenario.training.micro_batch
    return replace(scenario, training=scenario.training.model_copy(update={"global_batch": batch}))


def _with_layout(scenario: Scenario, changes: dict[str, object]) -> Scenario:
    layout: Layout = scenario.layout.model_copy(update=changes)
    return replace(scenario, layout=layout)
