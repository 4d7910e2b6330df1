"""Who waits for whom when the order of a schedule cannot go on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from simulator.schedule.actions import BACKWARD_WEIGHT_CODE, FORWARD_CODE, Action, ActionKind, PipelineSchedule


@dataclass(frozen=True, slots=True, kw_only=True)
class Wait:
    """A rank that can never go on."""

    rank: int
    """The rank that waits."""
    place: int
    """Index in its order of the action that cannot begin."""
    action: Action
    """That action; of a joined pair the one whose input is missing."""
    needs: Action
    """The action whose result is missing."""
    holder: int
    """Rank that has to run it."""

    def __str__(self) -> str:
        where = "later in its own order" if self.holder == self.rank else f"of rank {self.holder}"
        return f"rank {self.rank} at {self.action} waits for {self.needs} {where}"


def circle_of_waits(schedule: PipelineSchedule, reached: Sequence[int]) -> tuple[Wait, ...]:
    """Returns ranks that wait for each other in a circle, first to last; the last one waits for the first.

    Args:
        schedule: A complete schedule that deadlocks.
        reached: Per rank, how many of its actions can run (`LongestPath.reached`).
    """
    done = np.zeros((2, schedule.num_stages, schedule.microbatches_per_direction), dtype=np.bool_)
    for order, count in zip(schedule.ranks, reached, strict=True):
        kind, stage, microbatch, _ = order[:count].T
        has_result = kind != BACKWARD_WEIGHT_CODE
        done[(kind[has_result] != FORWARD_CODE).astype(np.int64), stage[has_result], microbatch[has_result]] = True
    rank = next(number for number, count in enumerate(reached) if count < len(schedule.ranks[number]))
    path: list[Wait] = []
    while rank not in [wait.rank for wait in path]:
        path.append(_wait_of(schedule, rank, reached[rank], done))
        rank = path[-1].holder
    return tuple(path[[wait.rank for wait in path].index(rank) :])


def _wait_of(
    schedule: PipelineSchedule, rank: int, place: int, done: np.ndarray[tuple[int, ...], np.dtype[np.bool_]]
) -> Wait:
    order = schedule.ranks[rank]
    for row in order[place : place + 1 + order[place, 3]]:
        action = Action(tuple(ActionKind)[row[0]], int(row[1]), int(row[2]))
        for is_backward, stage in _inputs(schedule, action):
            if not done[int(is_backward), stage, action.microbatch]:
                holder = schedule.stage_to_rank[stage]
                needs = _maker(schedule, holder, is_backward=is_backward, stage=stage, microbatch=action.microbatch)
                return Wait(rank=rank, place=place, action=action, needs=needs, holder=holder)
    raise LookupError(f"rank {rank} does not wait at {place}")


def _inputs(schedule: PipelineSchedule, action: Action) -> list[tuple[bool, int]]:
    """Whether a backward, and of which stage: the results that an action needs."""
    if action.kind is ActionKind.BACKWARD_WEIGHT:
        return [(True, action.stage)]
    if action.kind is ActionKind.FORWARD:
        source = schedule.previous(action.stage)
        return [] if source is None else [(False, source)]
    source = schedule.next(action.stage)
    return [(False, action.stage), *([] if source is None else [(True, source)])]


def _maker(schedule: PipelineSchedule, holder: int, *, is_backward: bool, stage: int, microbatch: int) -> Action:
    """The action of a rank that makes a result: a forward, or a backward, whole or of inputs."""
    if not is_backward:
        return Action(ActionKind.FORWARD, stage, microbatch)
    order = schedule.ranks[holder]
    is_whole = (order[:, 0] == ActionKind.BACKWARD.code) & (order[:, 1] == stage) & (order[:, 2] == microbatch)
    return Action(ActionKind.BACKWARD if is_whole.any() else ActionKind.BACKWARD_INPUT, stage, microbatch)
