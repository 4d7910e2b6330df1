"""GPipe: all forwards, then all backwards."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from simulator.schedule.actions import PipelineSchedule
from simulator.schedule.order import looped_schedule
from simulator.schedule.proof import Ticks, verify
from simulator.schedule.rules import ONE_STAGE_A_RANK, ScheduleRule

NAME = "gpipe"
RULES: tuple[ScheduleRule, ...] = (ONE_STAGE_A_RANK,)


def gpipe(pp: int, vpp: int, microbatches: int) -> PipelineSchedule:
    """Returns the GPipe order: F0..F(m-1), B0..B(m-1) on every rank.

    The original runs the backwards in reverse order of microbatches; makespan and peak are the same. Every rank
    holds the activations of all m microbatches.

    Args:
        pp: Pipeline ranks.
        vpp: Virtual stages per rank; 1.
        microbatches: Microbatches in a step.

    Source: Huang et al. 2019, arXiv:1811.06965; equations.md E5.3.
    """

    def clock(stage: NDArray[np.int32], microbatch: NDArray[np.int32]) -> tuple[Ticks, Ticks]:
        # The last stage ends its forwards at tick p + m - 2; the first backward starts after it.
        return stage + microbatch, (pp + microbatches - 1) + (pp - 1 - stage) + microbatch

    schedule = looped_schedule(
        NAME, pp=pp, vpp=vpp, microbatches=microbatches, group=microbatches, warmup=[vpp * microbatches] * pp
    )
    return verify(schedule, clock)
