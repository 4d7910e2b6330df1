"""When each action of a schedule begins and ends: the longest path in the graph of what must come before what."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from simulator.schedule.actions import PipelineSchedule


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LongestPath:
    """How far the order of a schedule runs, and when."""

    begins: tuple[NDArray[np.float64], ...]
    """Per rank, when each of its actions begins; undefined from `reached` on."""
    ends: tuple[NDArray[np.float64], ...]
    """Per rank, when each of its actions ends; undefined from `reached` on."""
    reached: tuple[int, ...]
    """Per rank, its actions that can run: all of them, or those before the one at which it waits for ever."""

    @property
    def is_complete(self) -> bool:
        """Whether every action runs."""
        return all(len(begins) == reached for begins, reached in zip(self.begins, self.reached, strict=True))


def longest_path(
    schedule: PipelineSchedule, seconds: NDArray[np.float64], *, joined: float | None = None, hop: float = 0.0
) -> LongestPath:
    """Returns when the actions of a schedule run if each starts as soon as its rank is free and its inputs are there.

    A forward needs the forward of the stage before; a backward, whole or of inputs, its own forward and the backward
    of the stage after; a backward of weights its own backward of inputs. A joined pair needs the inputs of both.

    Args:
        schedule: A complete schedule; it may deadlock.
        seconds: Duration by kind code and stage, [4, stages].
        joined: Duration of a joined pair; None for the sum of its two.
        hop: Time of a message between different ranks; the sender is not held up and messages do not queue.
    """
    # Imported here because it imports numba, which costs a third of a second.
    from simulator.schedule.kernel import run_ranks

    actions = np.ascontiguousarray(np.concatenate(schedule.ranks))
    first = np.concatenate([[0], np.cumsum([len(order) for order in schedule.ranks])]).astype(np.int64)
    previous, following = neighbours(schedule)
    begins, ends = np.empty(len(actions)), np.empty(len(actions))
    reached = np.empty(schedule.pp, dtype=np.int64)
    run_ranks(
        actions,
        first,
        np.array(schedule.stage_to_rank, dtype=np.int64),
        previous,
        following,
        schedule.microbatches_per_direction,
        np.ascontiguousarray(seconds, dtype=np.float64),
        -1.0 if joined is None else float(joined),
        float(hop),
        begins,
        ends,
        reached,
    )
    return LongestPath(
        begins=tuple(np.split(begins, first[1:-1])),
        ends=tuple(np.split(ends, first[1:-1])),
        reached=tuple((reached - first[:-1]).tolist()),
    )


def neighbours(schedule: PipelineSchedule) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Returns the stage before and the stage after each stage, -1 for none."""
    stages = np.arange(schedule.num_stages)
    is_first, is_last = stages % schedule.chain == 0, (stages + 1) % schedule.chain == 0
    return np.where(is_first, -1, stages - 1), np.where(is_last, -1, stages + 1)
