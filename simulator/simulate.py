"""The ten steps from a scenario to its report. Read the code in this order.

Step 1, `read_scenario`, stands in `simulator.config.scenario`, so that a notebook can also build a `Scenario` itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from time import perf_counter

from simulator.cluster import build_cluster
from simulator.config.scenario import Scenario, problems_of
from simulator.cost.pricing import price_stages
from simulator.cost.validity import broken_rules
from simulator.engine import run
from simulator.errors import ScenarioError
from simulator.lowering.evaluation import MemoryEvaluation, evaluate
from simulator.lowering.stage_balance import with_stages_listed
from simulator.lowering.stage_profile import schedule_of
from simulator.lowering.step import lower_step
from simulator.model.decoder import build_model
from simulator.parallel.degrees import resolve_degrees
from simulator.parallel.mesh import build_mesh
from simulator.parallel.stages import split_into_stages
from simulator.report.levers import Base, tried_changes
from simulator.report.recording import record_class
from simulator.report.result import Lever, Report
from simulator.report.simulated import Simulated
from simulator.report.snapshot import Recording
from simulator.report.summary import summarise
from simulator.report.trace import DEFAULT_MAX_SPANS, Trace, choose_classes, spans_per_class

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
    """The timeline of every task."""
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


def run_steps(scenario: Scenario, *, record_spans: bool = False, fold: bool = True) -> Simulated:
    """Returns what steps 2 to 9 make of a scenario that has passed all rules.

    Args:
        scenario: the scenario.
        record_spans: keep every task's begin and end, of as many rank classes as a trace has room for.
        fold: simulate interchangeable ranks once; false: each on its own, for small clusters.
    """
    started = perf_counter()
    scenario = with_stages_listed(scenario)
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
    stages = split_into_stages(model, layout, degrees, ends_meet=scenario.ends_meet)
    costs = price_stages(model, stages, mesh=mesh, layout=layout, training=training, assumptions=assumptions)
    schedule = schedule_of(scenario, costs=costs, mesh=mesh)
    step = lower_step(costs, schedule, mesh=mesh, layout=layout, training=training, assumptions=assumptions, fold=fold)
    traced = choose_classes(spans_per_class(step.program), max_spans=DEFAULT_MAX_SPANS) if record_spans else False
    timeline = run(step.program, record_spans=traced)
    return Simulated(
        scenario=scenario,
        model=model,
        mesh=mesh,
        costs=costs,
        schedule=schedule,
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
    simulated = run_steps(scenario, record_spans=wanted.trace)
    recording = record_class(simulated, wanted.memory_class) if wanted.snapshot else None
    levers = _levers if wanted.explain else _levers_if_needed if wanted.levers else None
    return Outcome(
        report=summarise(simulated, levers=levers),
        trace=_trace(simulated) if wanted.trace else None,
        snapshot=recording,
    )


def evaluate_memory(scenario: Scenario) -> MemoryEvaluation:
    """Returns the memory of every pipeline rank over one training step, without simulating its time.

    The peaks are exactly those of `simulate`. The reserved memory, which needs the allocator, is not among them.

    Raises:
        ScenarioError: the scenario breaks a rule.
    """
    _require_valid(scenario)
    return evaluate(with_stages_listed(scenario))


def _trace(simulated: Simulated) -> Trace:
    return Trace(
        program=simulated.step.program,
        timeline=simulated.timeline,
        class_names=tuple(rank_class.name for rank_class in simulated.step.program.classes),
    )


def _require_valid(scenario: Scenario) -> None:
    if violations := broken_rules(scenario):
        raise ScenarioError(problems_of(violations, scenario.origin))


def _levers(base: Base) -> tuple[Lever, ...]:
    return tried_changes(base, lambda changed: summarise(run_steps(changed)))


def _levers_if_needed(base: Base) -> tuple[Lever, ...]:
    return () if base.memory.fits else _levers(base)
