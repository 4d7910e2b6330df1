"""Proof that a schedule is complete and cannot deadlock.

A schedule is right when every action appears once, on the rank that holds its stage, and the graph of "must come
before" has no cycle: along each rank from action to action, from stage to stage forward, and back again. A graph
has no cycle exactly when every node can be given a tick that is larger than the ticks of all that come before it.
There are two ways to get the ticks:

- the builder of a schedule gives them in closed form (`Clock`), and checking them is a few array comparisons;
- `walk` finds them for any order as the longest path with actions of one tick, and is stuck exactly when the order
  deadlocks; it names the ranks that wait for each other.

The tests hold the two ways against each other on small sizes.
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
from simulator.schedule.deadlock import circle_of_waits
from simulator.schedule.longest_path import longest_path

Ticks = NDArray[np.int32]
Clock = Callable[[NDArray[np.int32], NDArray[np.int32]], tuple[Ticks, Ticks]]
"""From virtual stage [stages, 1] and microbatch [1, microbatches] to the ticks of forward and of whole backward."""


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
    _check_pairs(schedule)
    if clock is None:
        walk(schedule)
    else:
        _check_clock(schedule, actions, clock)
    return schedule


def _check_complete(schedule: PipelineSchedule, actions: ActionArray) -> None:
    """Every (stage, microbatch) has one F and either one B or one I and one W, each on the rank of the stage."""
    kind, stage, microbatch, _ = actions.T
    num_microbatches = schedule.microbatches_per_direction
    in_range = (stage >= 0) & (stage < schedule.num_stages) & (microbatch >= 0) & (microbatch < num_microbatches)
    if not in_range.all():
        raise SimulatorFault(
            f"{schedule.name}: {_text(actions[~in_range][0])} names no stage or microbatch of this step"
        )
    holder = np.asarray(schedule.stage_to_rank, dtype=np.int32)
    rank = np.repeat(np.arange(schedule.pp, dtype=np.int32), [len(actions) for actions in schedule.ranks])
    if (misplaced := holder[stage] != rank).any():
        raise SimulatorFault(f"{schedule.name}: rank {rank[misplaced][0]} runs {_text(actions[misplaced][0])}")
    cells = schedule.num_stages * num_microbatches
    place = (kind.astype(np.int64) * schedule.num_stages + stage) * num_microbatches + microbatch
    counts = np.bincount(place, minlength=len(ActionKind) * cells).reshape(len(ActionKind), cells)
    complete = counts[FORWARD_CODE] == 1
    complete &= counts[BACKWARD_CODE] + counts[BACKWARD_INPUT_CODE] == 1
    complete &= counts[BACKWARD_INPUT_CODE] == counts[BACKWARD_WEIGHT_CODE]
    if not complete.all():
        stage_, microbatch_ = divmod(int(np.argmin(complete)), num_microbatches)
        raise SimulatorFault(
            f"{schedule.name}: stage {stage_}, microbatch {microbatch_} does not have exactly one forward and one "
            "backward (whole, or of inputs and of weights)"
        )


def _check_pairs(schedule: PipelineSchedule) -> None:
    """Every joined pair is a forward and a whole backward, next to each other on a rank."""
    for rank, order in enumerate(schedule.ranks):
        first = np.flatnonzero(order[:, 3])
        if not first.size:
            continue
        if first[-1] == len(order) - 1:
            raise SimulatorFault(
                f"{schedule.name}: rank {rank} joins its last action, {_text(order[-1])}, with nothing"
            )
        kinds = np.sort([order[first, 0], order[first + 1, 0]], axis=0)
        fits = (kinds[0] == FORWARD_CODE) & (kinds[1] == BACKWARD_CODE) & (order[first + 1, 3] == 0)
        if not fits.all():
            row = first[np.argmin(fits)]
            raise SimulatorFault(
                f"{schedule.name}: rank {rank} joins {_text(order[row])} with {_text(order[row + 1])}; a pair is one "
                "forward and one whole backward"
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

    In a round every rank runs its next action, or joined pair, if the actions that it needs ran in earlier rounds.

    Raises:
        SimulatorFault: The order deadlocks; the message lists ranks that wait for each other in a circle.
    """
    path = longest_path(schedule, np.ones((len(ActionKind), schedule.num_stages)), joined=1.0)
    if not path.is_complete:
        waits = ", ".join(str(wait) for wait in circle_of_waits(schedule, path.reached))
        raise SimulatorFault(f"{schedule.name}: deadlock: {waits}")
    return tuple(ends.astype(np.int32) for ends in path.ends)


def _text(action: NDArray[np.int32]) -> str:
    kind, stage, microbatch, _ = action.tolist()
    return f"{tuple(ActionKind)[kind]}{stage}.{microbatch}"
