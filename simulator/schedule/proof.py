"""Proof that a schedule is complete and cannot deadlock.

A schedule is right when every action appears once, on the rank that holds its stage, and the graph of "must come
before" has no cycle: along each rank from action to action, from stage to stage forward, and back again. A graph
has no cycle exactly when every node can be given a tick that is larger than the ticks of all that come before it.
There are two ways to get the ticks:

- the builder of a schedule gives them in closed form (`Clock`), and checking them is a few array comparisons;
- `walk` finds them for any order: all ranks advance in lockstep, each running its next action once its inputs
  are there. It is slower (one round a tick) and names the actions that wait for each other when it is stuck.

The built-in schedules carry clocks; the tests hold the two ways against each other on small sizes.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from simulator.errors import SimulatorFault
from simulator.schedule.actions import (
    BACKWARD_CODE,
    BACKWARD_INPUT_CODE,
    BACKWARD_WEIGHT_CODE,
    FORWARD_CODE,
    ActionArray,
    ActionKind,
    PipelineSchedule,
)

Ticks = NDArray[np.int32]
Clock = Callable[[NDArray[np.int32], NDArray[np.int32]], tuple[Ticks, Ticks]]
"""From virtual stage [stages, 1] and microbatch [1, microbatches] to the ticks of forward and of whole backward."""

_ABSENT = -1


def verify(schedule: PipelineSchedule, clock: Clock | None = None) -> PipelineSchedule:
    """Returns the schedule itself, once it is shown to be complete and free of deadlock.

    Args:
        schedule: The schedule to check.
        clock: Ticks in closed form for schedules of whole backwards; without it `walk` finds them.

    Raises:
        SimulatorFault: An action is missing, doubled or on the wrong rank, or the order deadlocks.
    """
    actions = np.concatenate(schedule.ranks)
    _check_complete(schedule, actions)
    if clock is None:
        walk(schedule)
    else:
        _check_clock(schedule, actions, clock)
    return schedule


def _check_complete(schedule: PipelineSchedule, actions: ActionArray) -> None:
    """Every (stage, microbatch) has one F and either one B or one I and one W, each on the rank of the stage."""
    kind, stage, microbatch, _ = actions.T
    in_range = (stage >= 0) & (stage < schedule.num_stages) & (microbatch >= 0) & (microbatch < schedule.microbatches)
    if not in_range.all():
        raise SimulatorFault(
            f"{schedule.name}: {_text(actions[~in_range][0])} names no stage or microbatch of this step"
        )
    holder = np.asarray(schedule.stage_to_rank, dtype=np.int32)
    rank = np.repeat(np.arange(schedule.pp, dtype=np.int32), [len(actions) for actions in schedule.ranks])
    if (misplaced := holder[stage] != rank).any():
        raise SimulatorFault(f"{schedule.name}: rank {rank[misplaced][0]} runs {_text(actions[misplaced][0])}")
    cells = schedule.num_stages * schedule.microbatches
    place = (kind * schedule.num_stages + stage) * schedule.microbatches + microbatch
    counts = np.bincount(place, minlength=len(ActionKind) * cells).reshape(len(ActionKind), cells)
    complete = counts[FORWARD_CODE] == 1
    complete &= counts[BACKWARD_CODE] + counts[BACKWARD_INPUT_CODE] == 1
    complete &= counts[BACKWARD_INPUT_CODE] == counts[BACKWARD_WEIGHT_CODE]
    if not complete.all():
        stage_, microbatch_ = divmod(int(np.argmin(complete)), schedule.microbatches)
        raise SimulatorFault(
            f"{schedule.name}: stage {stage_}, microbatch {microbatch_} does not have exactly one forward and one "
            "backward (whole, or of inputs and of weights)"
        )


def _check_clock(schedule: PipelineSchedule, actions: ActionArray, clock: Clock) -> None:
    """The ticks of the clock grow along every rank and every dependency."""
    stages = np.arange(schedule.num_stages, dtype=np.int32)[:, None]
    forward, backward = clock(stages, np.arange(schedule.microbatches, dtype=np.int32)[None, :])
    grows = (
        (forward[1:] > forward[:-1]).all()
        and (backward[:-1] > backward[1:]).all()
        and (backward[-1] > forward[-1]).all()
        and (backward > forward).all()
    )
    ticks = np.stack([forward, backward])[actions[:, 0], actions[:, 1], actions[:, 2]]
    step = np.diff(ticks)
    starts_of_ranks = np.cumsum([len(actions) for actions in schedule.ranks])[:-1] - 1
    step[starts_of_ranks] = 1
    if not grows or (step <= 0).any():
        raise SimulatorFault(f"{schedule.name}: the clock of this schedule does not prove that its order can run")


def walk(schedule: PipelineSchedule) -> tuple[Ticks, ...]:
    """Returns, per rank, the round in which each of its actions runs when all ranks advance in lockstep.

    In a round every rank runs its next action if the actions that it needs ran in earlier rounds. A forward needs
    the forward of the stage before; a backward (whole, or of inputs) the backward of the stage after and its own
    forward; a backward of weights its own backward of inputs.

    Raises:
        SimulatorFault: No rank can go on; the message lists the action at which each one waits.
    """
    done = np.full((len(ActionKind), schedule.num_stages + 1, schedule.microbatches), _ABSENT, dtype=np.int32)
    done[BACKWARD_CODE, -1] = done[BACKWARD_INPUT_CODE, -1] = 0  # the stage after the last one is the loss
    lengths = np.array([len(actions) for actions in schedule.ranks])
    table = np.zeros((schedule.pp, int(lengths.max(initial=0)), 4), dtype=np.int32)
    for rank, actions in enumerate(schedule.ranks):
        table[rank, : len(actions)] = actions
    rounds = np.zeros(table.shape[:2], dtype=np.int32)
    position = np.zeros(schedule.pp, dtype=np.int64)
    tick = 0
    while (running := np.flatnonzero(position < lengths)).size:
        tick += 1
        kind, stage, microbatch, _ = table[running, position[running]].T
        ready = _is_ready(done, kind, stage, microbatch)
        if not ready.any():
            waits = ", ".join(f"rank {rank} at {_text(table[rank, position[rank]])}" for rank in running[:8])
            raise SimulatorFault(f"{schedule.name}: deadlock: {waits}")
        runs = running[ready]
        done[kind[ready], stage[ready], microbatch[ready]] = tick
        rounds[runs, position[runs]] = tick
        position[runs] += 1
    return tuple(rounds[rank, : lengths[rank]] for rank in range(schedule.pp))


def _is_ready(
    done: Ticks, kind: NDArray[np.int32], stage: NDArray[np.int32], microbatch: NDArray[np.int32]
) -> NDArray[np.bool_]:
    """Whether the inputs of each action are there; `done[kind, stage, microbatch]` is negative until it ran."""
    own_forward = done[FORWARD_CODE, stage, microbatch] >= 0
    previous_forward = (stage == 0) | (done[FORWARD_CODE, stage - 1, microbatch] >= 0)
    next_backward = (done[BACKWARD_CODE, stage + 1, microbatch] >= 0) | (
        done[BACKWARD_INPUT_CODE, stage + 1, microbatch] >= 0
    )
    own_input = done[BACKWARD_INPUT_CODE, stage, microbatch] >= 0
    ready: NDArray[np.bool_] = np.where(kind == BACKWARD_WEIGHT_CODE, own_input, previous_forward)
    needs_gradient = (kind == BACKWARD_CODE) | (kind == BACKWARD_INPUT_CODE)
    ready[needs_gradient] = (own_forward & next_backward)[needs_gradient]
    return ready


def _text(action: NDArray[np.int32]) -> str:
    kind, stage, microbatch, _ = action.tolist()
    return f"{tuple(ActionKind)[kind]}{stage}.{microbatch}"
