"""Interleaved 1F1B: each rank holds several model chunks, so the pipeline fills in a v-th of the time."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from simulator.schedule.actions import PipelineSchedule
from simulator.schedule.order import looped_schedule
from simulator.schedule.proof import Ticks, verify
from simulator.schedule.rules import MICROBATCHES_FILL_GROUPS, SEVERAL_RANKS, SEVERAL_STAGES_A_RANK, ScheduleRule

NAME = "interleaved-1f1b"
RULES: tuple[ScheduleRule, ...] = (SEVERAL_RANKS, SEVERAL_STAGES_A_RANK, MICROBATCHES_FILL_GROUPS)


def interleaved(pp: int, vpp: int, microbatches: int) -> PipelineSchedule:
    """Returns the interleaved 1F1B order of Megatron-LM and torch.distributed.pipelining.

    Virtual stage = chunk * p + r. The m * v units of a rank go in rounds of p microbatches through all chunks
    (backward: chunks from last to first): w = min(2(p - r - 1) + (v - 1)p, m * v) forwards, then pairs (F, B), then
    w backwards. Rank r holds at most min(2(p - r - 1) + (v - 1)p + 1, m * v) activations of a chunk.

    Args:
        pp: Pipeline ranks, at least 2.
        vpp: Virtual stages per rank, at least 2.
        microbatches: Microbatches in a step, a multiple of pp.

    Source: Narayanan et al. 2021, arXiv:2104.04473, section 2.2; equations.md E5.3. Left out: other group sizes
        than p, and the extra warm-up unit of Megatron-LM when sends overlap.
    """
    last_chunk = vpp - 1

    def clock(stage: NDArray[np.int32], microbatch: NDArray[np.int32]) -> tuple[Ticks, Ticks]:
        # Unit k of rank r: forward at 2(r + k), backward at C + 2(p - 1 - r + k), with C the smallest odd number after
        # the first forward of the last stage. Derived: warm-up is two units shorter on each following rank.
        rank, chunk = stage % pp, stage // pp
        unit_of_chunk_0 = microbatch // pp * (pp * vpp) + microbatch % pp
        first_backward = 2 * (pp - 1) + 2 * last_chunk * pp + 1
        forward = 2 * (rank + unit_of_chunk_0 + chunk * pp)
        backward = first_backward + 2 * (pp - 1 - rank + unit_of_chunk_0 + (last_chunk - chunk) * pp)
        return forward, backward

    warmup = [min(2 * (pp - rank - 1) + last_chunk * pp, microbatches * vpp) for rank in range(pp)]
    schedule = looped_schedule(NAME, pp=pp, vpp=vpp, microbatches=microbatches, group=pp, warmup=warmup)
    return verify(schedule, clock)
