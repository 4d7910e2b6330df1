"""What a trace knows of the pipeline: which tasks are its messages, and a track of its actions."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from simulator.engine.program import Program
from simulator.engine.timeline import Timeline
from simulator.lowering.builder import CATEGORIES, Category, Direction
from simulator.lowering.step import LoweredStep
from simulator.report.pipeline_actions import KINDS, RankActions, action_bounds, rank_actions
from simulator.report.pipeline_style import NAMES
from simulator.schedule import ActionKind, PipelineSchedule

_CHROME_COLOURS: dict[ActionKind, str] = {
    ActionKind.FORWARD: "rail_response",
    ActionKind.BACKWARD: "good",
    ActionKind.BACKWARD_INPUT: "thread_state_running",
    ActionKind.BACKWARD_WEIGHT: "olive",
}
"""Reserved colours of chrome://tracing; Perfetto colours by name without its digits."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TracedPipeline:
    """The pipeline behind a program."""

    schedule: PipelineSchedule
    """Order of actions."""
    pipeline_ranks: tuple[int, ...]
    """Pipeline rank of each class."""
    sends: frozenset[tuple[int, int]]
    """(routine, task) of what sends a message of the pipeline."""
    receives: frozenset[tuple[int, int]]
    """(routine, task) of what receives one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ActionSlice:
    """An action, or a joined pair of them, on the track of a class."""

    name: str
    """For example `forward 3`."""
    colour: str
    """Its colour in chrome://tracing."""
    args: dict[str, object]
    """Details."""
    begin_ps: int
    """When it begins."""
    end_ps: int
    """When it ends."""


def traced_pipeline(step: LoweredStep, schedule: PipelineSchedule) -> TracedPipeline:
    """Returns what a trace of a step needs to know of its pipeline."""
    found: dict[Direction, set[tuple[int, int]]] = {direction: set() for direction in Direction}
    pipeline = CATEGORIES.index(Category.PIPELINE)
    for routine, written in enumerate(step.routines):
        tasks = [at for at, task in enumerate(written.routine.tasks) if task.category == pipeline]
        exchanges = [exchange for exchange in written.exchanges if exchange.axis == Category.PIPELINE]
        for task, exchange in zip(tasks, exchanges, strict=True):
            found[exchange.direction].add((routine, task))
    return TracedPipeline(
        schedule=schedule,
        pipeline_ranks=step.pipeline_ranks,
        sends=frozenset(found[Direction.SEND]),
        receives=frozenset(found[Direction.RECEIVE]),
    )


def action_slices(pipeline: TracedPipeline, program: Program, timeline: Timeline, number: int) -> Iterator[ActionSlice]:
    """Yields the actions of a rank class in their order."""
    rank = pipeline.pipeline_ranks[number]
    begins, ends = action_bounds(pipeline.schedule, program, timeline, number, rank=rank)
    actions = rank_actions(pipeline.schedule, rank, begins.astype(float), ends.astype(float))
    at = 0
    while at < len(actions.kind):
        parts = [at, at + 1] if actions.joined[at] else [at]
        yield ActionSlice(
            name=" + ".join(f"{_kind_name(actions, part)} {actions.microbatch[part]}" for part in parts),
            colour=_CHROME_COLOURS[KINDS[int(actions.kind[at])]],
            args={
                "stage": " + ".join(str(actions.stage[part]) for part in parts),
                "chunk": " + ".join(str(actions.chunk[part]) for part in parts),
            },
            begin_ps=int(begins[at]),
            end_ps=int(ends[at]),
        )
        at += len(parts)


def _kind_name(actions: RankActions, at: int) -> str:
    return NAMES[KINDS[int(actions.kind[at])]].replace(",", " of")
