"""Pipelines without a model: programs of the engine, made of nothing but stage times and hops."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from simulator.engine import Communicator, EventSlot, Program, RankClass, Routine, Task
from simulator.schedule import Action, ActionKind, PipelineSchedule

COMPUTE = 0
NUM_WAYS = 4
"""Into and out of a stage, forward and backward: each a stream and a communicator of its own."""


def pipeline_program(
    schedule: PipelineSchedule, forward_ps: Sequence[int], backward_ps: Sequence[int], hop_ps: int
) -> Program:
    """Returns a program that runs a schedule of whole backwards.

    Args:
        schedule: order of actions; stages of one rank do not follow each other.
        forward_ps: time of a microbatch in each virtual stage.
        backward_ps: the same of its backward.
        hop_ps: time of a message between ranks, beside compute.
    """
    routines: list[Routine] = []
    number: dict[tuple[ActionKind, int], int] = {}
    last = schedule.num_stages - 1
    for stage in range(schedule.num_stages):
        chunk = schedule.stages_of(schedule.stage_to_rank[stage]).index(stage)
        for way, (kind, seconds, first, end) in enumerate(
            ((ActionKind.FORWARD, forward_ps, 0, last), (ActionKind.BACKWARD, backward_ps, last, 0))
        ):
            into, out = 2 * (2 * chunk + way), 2 * (2 * chunk + way) + 1
            tasks = []
            if stage != first:
                tasks.append(
                    Task(name="in", stream=1 + into, category=1, duration_ps=hop_ps, communicator=into, records=into)
                )
            tasks.append(
                Task(
                    name=str(kind),
                    stream=COMPUTE,
                    category=1,
                    duration_ps=seconds[stage],
                    waits=(into,) if stage != first else (),
                    records=out,
                )
            )
            if stage != end:
                tasks.append(
                    Task(name="out", stream=1 + out, category=1, duration_ps=hop_ps, communicator=out, waits=(out,))
                )
            number[kind, stage] = len(routines)
            routines.append(Routine(name=f"{kind}{stage}", tasks=tuple(tasks)))
    slots = NUM_WAYS * schedule.vpp
    return Program(
        streams=("compute", *(f"way {slot}" for slot in range(slots))),
        categories=("bubble", "work"),
        counters=(),
        events=tuple(EventSlot(name=f"way {slot}") for slot in range(slots)),
        num_indices=schedule.microbatches,
        routines=tuple(routines),
        classes=tuple(
            RankClass(
                name=f"rank {rank}",
                count=1,
                calls=np.array(
                    [(number[action.kind, action.stage], action.microbatch) for action in schedule.actions(rank)],
                    dtype=np.int32,
                ),
                communicators=tuple(
                    communicator for stage in schedule.stages_of(rank) for communicator in _boundaries(stage)
                ),
            )
            for rank in range(schedule.pp)
        ),
        communicators=tuple(
            Communicator(name=f"boundary {number}", participants=2) for number in range(2 * (schedule.num_stages + 1))
        ),
    )


def _boundaries(stage: int) -> tuple[int, int, int, int]:
    """Communicators of a stage: activations in and out, gradients in and out; boundary b lies before stage b."""
    before, after = stage, stage + 1
    return 2 * before, 2 * after, 2 * after + 1, 2 * before + 1


def actions_of_calls(schedule: PipelineSchedule, rank: int) -> list[tuple[Action, ...]]:
    """The actions of each call of a rank between the begin and the end of the step: one, or a joined pair."""
    actions = schedule.actions(rank)
    return [(action, next(actions)) if action.joined else (action,) for action in actions]


def source_of(schedule: PipelineSchedule, action: Action) -> int | None:
    """The stage from which an action gets its activation or gradient; None: it gets none."""
    if action.kind is ActionKind.FORWARD:
        return schedule.previous(action.stage)
    return None if action.kind is ActionKind.BACKWARD_WEIGHT else schedule.next(action.stage)


def target_of(schedule: PipelineSchedule, action: Action) -> int | None:
    """The stage to which an action hands on its activation or gradient; None: to none."""
    if action.kind is ActionKind.FORWARD:
        return schedule.next(action.stage)
    return None if action.kind is ActionKind.BACKWARD_WEIGHT else schedule.previous(action.stage)
