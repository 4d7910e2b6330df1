"""Breadth-first (looped BFS): each chunk of a rank runs all microbatches before the next chunk starts."""

from __future__ import annotations

import numpy as np

from simulator.schedule.actions import BACKWARD_CODE, FORWARD_CODE, PipelineSchedule
from simulator.schedule.order import placed_in_a_loop, units
from simulator.schedule.proof import verify
from simulator.schedule.rules import SEVERAL_RANKS, SEVERAL_STAGES_A_RANK, ScheduleRule

NAME = "looped-bfs"
RULES: tuple[ScheduleRule, ...] = (SEVERAL_RANKS, SEVERAL_STAGES_A_RANK)


def looped_bfs(pp: int, vpp: int, microbatches: int) -> PipelineSchedule:
    """Returns the breadth-first order: all forwards, chunk by chunk, then all backwards in the reverse order.

    Virtual stage = chunk * p + r. Every rank holds the activations of all m * v units, as GPipe does, but a chunk's
    weights are gathered once for all its microbatches.

    Args:
        pp: Pipeline ranks, at least 2.
        vpp: Virtual stages per rank, at least 2.
        microbatches: Microbatches in a step.

    Source: Lamy-Poirier 2022, arXiv:2211.05953, section 4.1; torch.distributed.pipelining.
    """
    forward = units(FORWARD_CODE, pp=pp, vpp=vpp, microbatches=microbatches, group=microbatches)
    backward = forward[::-1].copy()
    backward[:, 0] = BACKWARD_CODE
    table = np.tile(np.concatenate([forward, backward]), (pp, 1, 1))
    return verify(placed_in_a_loop(NAME, table, vpp=vpp, microbatches=microbatches))
