"""1F1B (PipeDream-flush): each rank runs a backward as soon as it can, so few activations are in flight."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from simulator.schedule.actions import PipelineSchedule
from simulator.schedule.order import looped_schedule
from simulator.schedule.proof import Ticks, verify
from simulator.schedule.rules import ONE_STAGE_A_RANK, ScheduleRule

NAME = "1f1b"
RULES: tuple[ScheduleRule, ...] = (ONE_STAGE_A_RANK,)


def one_f_one_b(pp: int, vpp: int, microbatches: int) -> PipelineSchedule:
    """Returns the 1F1B order: w = min(p - r - 1, m) forwards, then pairs (F, B), then w backwards.

    Rank r holds at most min(p - r, m) activations. With one rank it is F B F B.

    Args:
        pp: Pipeline ranks.
        vpp: Virtual stages per rank; 1.
        microbatches: Microbatches in a step.

    Source: Narayanan et al. 2019 and 2021, arXiv:2104.04473, section 2.2; equations.md E5.3.
    """

    def clock(stage: NDArray[np.int32], microbatch: NDArray[np.int32]) -> tuple[Ticks, Ticks]:
        # With F = B = 1 the last stage alternates F at p - 1 + 2k and B one tick later. Derived.
        return stage + 2 * microbatch, (2 * pp - 1 - stage) + 2 * microbatch

    warmup = [min(pp - rank - 1, microbatches) for rank in range(pp)]
    schedule = looped_schedule(NAME, pp=pp, vpp=vpp, microbatches=microbatches, group=microbatches, warmup=warmup)
    return verify(schedule, clock)
