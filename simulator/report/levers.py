"""Single changes of a scenario that lower its memory: what to try, and what each saves."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from simulator.cost.validity import broken_rules
from simulator.lowering.evaluation import evaluate
from simulator.lowering.stage_balance import with_stages_listed
from simulator.model.kernels import CrossEntropy
from simulator.parallel.layout import StageBalance
from simulator.parallel.precision import BITS
from simulator.parallel.scenario import Scenario
from simulator.parallel.training import (
    Dtype,
    Offload,
    Precision,
    Recompute,
    RecomputedOperators,
    SelectiveRecompute,
    Training,
)
from simulator.report.result import Lever, Memory, Report

MAX_ZERO = 3
MAX_TASKS = 12_000_000
"""Tasks of the engine spent on the step times of changes, about two seconds."""
MIN_SIMULATED = 2
"""Changes whose step time is simulated even if that takes more."""
OFFLOAD_TARGETS = ("cpu", "nvme")


@dataclass(frozen=True, slots=True, kw_only=True)
class Base:
    """What changes are compared with."""

    scenario: Scenario
    """The scenario as it is."""
    memory: Memory
    """Its memory."""
    num_tasks: int
    """Tasks of its step, which tell how long a simulation takes."""


def tried_changes(base: Base, simulate: Callable[[Scenario], Report]) -> tuple[Lever, ...]:
    """Returns every single change that keeps the scenario valid and lowers the peak, those that save most first.

    What a change saves is the difference of two peaks, each that of a whole step. Where the job does not fit, those
    changes that may mend that are simulated whole, for their reserved memory and their step time; of very large jobs
    only the first few. Elsewhere the reserved memory is the allocated one at the fragmentation of the base.

    Args:
        base: the scenario and its memory.
        simulate: simulates a scenario whole.
    """
    found = []
    for change, changed in single_changes(base.scenario):
        if not broken_rules(changed):
            peak_bytes = evaluate(with_stages_listed(changed)).peak_bytes
            if peak_bytes < base.memory.peak_bytes:
                found.append((peak_bytes, change, changed))
    left = max(MIN_SIMULATED, MAX_TASKS // base.num_tasks)
    levers = []
    for peak_bytes, change, changed in sorted(found, key=lambda entry: entry[0]):
        whole = not base.memory.fits and peak_bytes <= base.memory.capacity_bytes and left > 0
        left -= whole
        levers.append(_lever(change, peak_bytes, base.memory, simulate(changed) if whole else None))
    return tuple(levers)


def _lever(change: str, peak_bytes: int, base: Memory, report: Report | None) -> Lever:
    if report is None:
        inside, outside = base.peak_bytes - base.allocator.outside_bytes, base.allocator.outside_bytes
        wasted = base.allocator.reserved_peak_bytes - inside
        reserved = peak_bytes + (wasted * max(0, peak_bytes - outside) // inside if inside else 0)
        fits = reserved <= base.capacity_bytes
    else:
        reserved, fits = report.memory.reserved_peak_bytes, report.memory.fits
    return Lever(
        change=change,
        peak_bytes=peak_bytes,
        saved_bytes=base.peak_bytes - peak_bytes,
        reserved_peak_bytes=reserved,
        fits=fits,
        step_time_s=None if report is None else report.step.time_s,
    )


def single_changes(scenario: Scenario) -> Iterator[tuple[str, Scenario]]:
    """Yields each change as `key: value` and the scenario with it; not all of them need be valid.

    Where a degree changes, the data-parallel degree follows (`dp: auto`), so that the devices stay the same.
    """
    yield from _recomputation(scenario)
    yield from _degrees(scenario)
    training = scenario.training
    if training.micro_batch > 1:
        half = training.micro_batch // 2
        yield f"training.micro_batch: {half}", _with_training(scenario, {"micro_batch": half})
    yield from _precision(scenario)
    if scenario.assumptions.cross_entropy is not CrossEntropy.FUSED:
        fused = scenario.assumptions.model_copy(update={"cross_entropy": CrossEntropy.FUSED})
        yield f"assumptions.cross_entropy: {CrossEntropy.FUSED}", replace(scenario, assumptions=fused)
    for what in Offload.model_fields:
        for target in OFFLOAD_TARGETS:
            if getattr(training.offload, what) != target:
                offload = training.offload.model_copy(update={what: target})
                yield f"training.offload.{what}: {target}", _with_training(scenario, {"offload": offload})


def _recomputation(scenario: Scenario) -> Iterator[tuple[str, Scenario]]:
    recompute = scenario.training.recompute
    if recompute is Recompute.FULL:
        return
    for mode in (Recompute.SELECTIVE, Recompute.FULL):
        if mode is not recompute:
            yield f"training.recompute: {mode}", _with_training(scenario, {"recompute": mode})
    named = recompute.operators if isinstance(recompute, SelectiveRecompute) else ()
    for operator in RecomputedOperators:
        if operator not in named:
            operators = (*named, operator)
            listed = ", ".join(operators)
            yield (
                f"training.recompute: {{operators: [{listed}]}}",
                _with_training(scenario, {"recompute": SelectiveRecompute(operators=operators)}),
            )


def _degrees(scenario: Scenario) -> Iterator[tuple[str, Scenario]]:
    layout = scenario.layout
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
            # A list is of the old number of stages.
            changes["stages"] = StageBalance.EVEN if layout.listed_stages else layout.stages
        yield f"layout.{key}: {doubled}", _with_layout(scenario, changes)


def _precision(scenario: Scenario) -> Iterator[tuple[str, Scenario]]:
    """Smaller types, each beside the rest of the recipe as it is."""
    types, default = scenario.training.types, Precision()
    for key, smaller in (("gradients", Dtype.BF16), ("optimizer", Dtype.BF16), ("compute", Dtype.FP8)):
        if BITS[getattr(types, key)] > BITS[smaller]:
            changed = types.model_copy(update={key: smaller})
            told = {name: value for name, value in changed if value != getattr(default, name)}
            listed = ", ".join(f"{name}: {value}" for name, value in told.items())
            yield f"training.precision: {{{listed}}}", _with_training(scenario, {"precision": changed})


def _with_training(scenario: Scenario, changes: dict[str, Any]) -> Scenario:
    training: Training = scenario.training.model_copy(update=changes)
    return replace(scenario, training=training)


def _with_layout(scenario: Scenario, changes: dict[str, Any]) -> Scenario:
    return replace(scenario, layout=scenario.layout.model_copy(update=changes))
