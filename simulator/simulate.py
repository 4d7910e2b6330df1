"""The ten steps from a scenario to its report. Read the code in this order.

Step 1, `read_scenario`, stands in `simulator.config.scenario`, so that a notebook can also build a `Scenario` itself.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from time import perf_counter
from typing import TYPE_CHECKING

import numpy as np

from simulator.cluster import build_cluster
from simulator.config.scenario import Scenario, problems_of
from simulator.cost.pricing import price_stages
from simulator.cost.validity import broken_rules
from simulator.engine import run
from simulator.errors import ScenarioError, SimulatorFault
from simulator.lowering.evaluation import MemoryEvaluation, evaluate
from simulator.lowering.paces import pacer_of
from simulator.lowering.step import LoweredStep, lower_step
from simulator.lowering.variation import alike_members, drawn_members, resolve_variation, single_varied_members
from simulator.model.decoder import build_model
from simulator.parallel.degrees import num_microbatches, resolve_degrees
from simulator.parallel.mesh import build_mesh
from simulator.parallel.stages import split_into_stages
from simulator.report.levers import Base, tried_changes
from simulator.report.pipeline_actions import PipelineActions, actions_of_step
from simulator.report.recording import record_class
from simulator.report.result import Lever, Report
from simulator.report.simulated import Simulated
from simulator.report.snapshot import Recording
from simulator.report.spans import classes_to_draw, classes_to_show, span_table
from simulator.report.spread import Draws
from simulator.report.summary import slowest_class, summarise
from simulator.report.trace import Trace
from simulator.report.trace_pipeline import traced_pipeline
from simulator.schedule import SCHEDULES, build_schedule

if TYPE_CHECKING:
    import polars as pl

__all__ = [
    "Outcome",
    "Wanted",
    "evaluate_memory",
    "run_steps",
    "simulate",
    "simulate_in_full",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What is wanted of a simulation beside its figures."""

    levers: bool = True
    """Changes that may make it fit, if it does not."""
    explain: bool = False
    """Changes that lower its memory, also if it fits."""
    trace: bool = False
    """The timeline of every task, for Perfetto."""
    timeline: bool = False
    """The timeline of every task, as a table."""
    timeline_classes: tuple[str, ...] = ()
    """Names or numbers of the rank classes of both; none: as many as there is room for."""
    pipeline: bool = False
    """When the actions of the pipeline ran."""
    snapshot: bool = False
    """The allocations of one rank class."""
    memory_class: str | None = None
    """Name or number of that class; None: the one with the highest peak."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Outcome:
    """What a simulation gives."""

    report: Report
    """The figures."""
    trace: Trace | None
    """For Perfetto, if wanted."""
    snapshot: Recording | None
    """For PyTorch's memory viewer, if wanted."""
    timeline: pl.DataFrame | None
    """Every task that ran, if wanted."""
    pipeline: PipelineActions | None
    """When each action of the pipeline ran, if wanted."""


def run_steps(
    scenario: Scenario,
    *,
    record_spans: bool | Callable[[LoweredStep], Collection[int]] = False,
    fold: bool = True,
) -> Simulated:
    """Returns what steps 2 to 9 make of a scenario that has passed all rules.

    Args:
        scenario: the scenario.
        record_spans: keep every task's begin and end, of as many rank classes as a trace has room for; or of those
            that a function of the program chooses.
        fold: simulate interchangeable ranks once; false: each on its own, for small clusters.
    """
    started = perf_counter()
    layout, training, assumptions = scenario.layout, scenario.training, scenario.assumptions
    degrees = resolve_degrees(layout, devices=scenario.devices)
    model = build_model(
        scenario.model,
        sequence_length=training.sequence_length,
        kernels=assumptions.kernels,
        adapters=training.adapters,
    )
    cluster = build_cluster(scenario.cluster)
    mesh = build_mesh(layout, degrees, cluster, has_experts=scenario.model.experts is not None)
    stages = split_into_stages(model, layout, degrees, ends_meet=SCHEDULES[scenario.schedule].ends_meet)
    costs = price_stages(model, stages, mesh=mesh, layout=layout, training=training, assumptions=assumptions)
    schedule = build_schedule(
        scenario.schedule, pp=layout.pp, vpp=layout.vpp, microbatches=num_microbatches(training, degrees)
    )
    variation = resolve_variation(scenario.variability, mesh=mesh, training=training, seed=scenario.seed)
    members = alike_members(variation, schedule) if fold else single_varied_members(variation)
    step = lower_step(
        costs, schedule, mesh=mesh, layout=layout, training=training, assumptions=assumptions, members=members
    )
    step = pacer_of(step, members, variation, schedule).paced()
    choose = classes_to_show if record_spans is True else record_spans
    timeline = run(step.program, record_spans=choose(step) if choose else False)
    return Simulated(
        scenario=scenario,
        model=model,
        mesh=mesh,
        costs=costs,
        schedule=schedule,
        variation=variation,
        step=step,
        timeline=timeline,
        wall_s=perf_counter() - started,
    )


def simulate(scenario: Scenario, *, with_levers: bool = True, explain: bool = False) -> Report:
    """Returns the report of one training step.

    Args:
        scenario: what to simulate.
        with_levers: if the job does not fit, also simulate single changes that may mend that.
        explain: simulate single changes that lower its memory also if it fits.

    Raises:
        ScenarioError: the scenario breaks a rule.
    """
    return simulate_in_full(scenario, Wanted(levers=with_levers, explain=explain)).report


def simulate_in_full(scenario: Scenario, wanted: Wanted) -> Outcome:
    """Returns the report of one training step, and what else is wanted of it.

    Raises:
        ScenarioError: the scenario breaks a rule, or there is no such rank class.
    """
    _require_valid(scenario)
    simulated = _with_comparisons(run_steps(scenario, record_spans=_recording(wanted)))
    recording = record_class(simulated, wanted.memory_class) if wanted.snapshot else None
    levers = _levers if wanted.explain else _levers_if_needed if wanted.levers else None
    return Outcome(
        report=summarise(simulated, levers=levers),
        trace=_trace(simulated, wanted) if wanted.trace else None,
        snapshot=recording,
        timeline=span_table(simulated, _shown(simulated.step, wanted)) if wanted.timeline else None,
        pipeline=actions_of_step(simulated) if wanted.pipeline else None,
    )


def _recording(wanted: Wanted) -> Callable[[LoweredStep], Collection[int]] | bool:
    """Returns how to choose the rank classes whose spans are needed."""

    def chosen(step: LoweredStep) -> set[int]:
        shown = _shown(step, wanted) if wanted.trace or wanted.timeline else []
        return {*shown, *(classes_to_draw(step) if wanted.pipeline else [])}

    return chosen if wanted.trace or wanted.timeline or wanted.pipeline else False


def _shown(step: LoweredStep, wanted: Wanted) -> list[int]:
    return classes_to_show(step, wanted.timeline_classes)


def evaluate_memory(scenario: Scenario) -> MemoryEvaluation:
    """Returns the memory of every pipeline rank over one training step, without simulating its time.

    The peaks are exactly those of `simulate`. The reserved memory, which needs the allocator, is not among them.

    Raises:
        ScenarioError: the scenario breaks a rule.
    """
    _require_valid(scenario)
    return evaluate(scenario)


def _with_comparisons(simulated: Simulated) -> Simulated:
    """Returns the simulation with what else `variability` asks for: steps with jitter, the step without slow ranks."""
    scenario = simulated.scenario
    variability = scenario.variability
    if variability.drawn_steps:
        simulated = replace(simulated, draws=draw_steps(simulated))
    if variability.marks_ranks:
        without = run_steps(replace(scenario, variability=variability.without_marks()))
        simulated = replace(simulated, without_slow_ranks_ps=without.timeline.makespan_ps)
    return simulated


def draw_steps(simulated: Simulated) -> Draws:
    """Returns the times of steps with jitter; the step is lowered once, and each gets paces of its own."""
    scenario, variation, schedule = simulated.scenario, simulated.variation, simulated.schedule
    jitter = scenario.variability.jitter
    if jitter is None:
        raise SimulatorFault("steps are drawn without jitter")
    members = drawn_members(variation, jitter.fold)
    step = lower_step(
        simulated.costs,
        schedule,
        mesh=simulated.mesh,
        layout=scenario.layout,
        training=scenario.training,
        assumptions=scenario.assumptions,
        members=members,
    )
    pacer = pacer_of(step, members, variation, schedule, jitter=jitter, seed=scenario.seed)
    makespans, slowest = [], []
    for number in range(scenario.variability.drawn_steps):
        timeline = run(pacer.paced(number).program)
        makespans.append(timeline.makespan_ps)
        slowest.append(members.names[slowest_class(timeline)])
    return Draws(makespans_ps=np.array(makespans, dtype=np.int64), slowest=tuple(slowest))


def _trace(simulated: Simulated, wanted: Wanted) -> Trace:
    return Trace(
        program=simulated.step.program,
        timeline=simulated.timeline,
        class_names=tuple(rank_class.name for rank_class in simulated.step.program.classes),
        classes=tuple(_shown(simulated.step, wanted)) if wanted.timeline_classes else None,
        pipeline=traced_pipeline(simulated.step, simulated.schedule),
    )


def _require_valid(scenario: Scenario) -> None:
    if violations := broken_rules(scenario):
        raise ScenarioError(problems_of(violations, scenario.origin))


def _levers(base: Base) -> tuple[Lever, ...]:
    return tried_changes(base, lambda changed: summarise(run_steps(changed)))


def _levers_if_needed(base: Base) -> tuple[Lever, ...]:
    return () if base.memory.fits else _levers(base)
