"""Interleaved 1F1B: each rank holds several model chunks, so the pipeline fills in a v-th of the time."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from simulator.schedule.actions import PipelineSchedule
from simulator.schedule.order import looped_schedule, split_schedule
from simulator.schedule.proof import Clock, Ticks, verify
from simulator.schedule.rules import SEVERAL_RANKS, SEVERAL_STAGES_A_RANK, ScheduleRule

NAME = "interleaved-1f1b"
NAME_SPLIT = "interleaved-zb"
RULES: tuple[ScheduleRule, ...] = (SEVERAL_RANKS, SEVERAL_STAGES_A_RANK)


def interleaved(pp: int, vpp: int, microbatches: int) -> PipelineSchedule:
    """Returns the interleaved 1F1B order of Megatron-LM and torch.distributed.pipelining.

    Virtual stage = chunk * p + r. The m * v units of a rank go in rounds of G microbatches through all chunks
    (backward: chunks from last to first): w = min(2(p - r - 1) + (v - 1)G, m * v) forwards, then pairs (F, B), then
    w backwards. Rank r holds at most min(2(p - r - 1) + (v - 1)G + 1, m * v) activations of a chunk.

    Args:
        pp: Pipeline ranks, at least 2.
        vpp: Virtual stages per rank, at least 2.
        microbatches: Microbatches in a step.

    Source: Narayanan et al. 2021, arXiv:2104.04473, section 2.2; equations.md E5.3. Left out: the extra warm-up
        unit of Megatron-LM when sends overlap.
    """
    group = round_size(pp, microbatches)
    schedule = looped_schedule(
        NAME,
        pp=pp,
        vpp=vpp,
        microbatches=microbatches,
        group=group,
        warmup=[min(2 * (pp - rank - 1) + (vpp - 1) * group, microbatches * vpp) for rank in range(pp)],
    )
    return verify(schedule, _clock(pp, vpp) if group == pp and microbatches % pp == 0 else None)


def interleaved_zb(pp: int, vpp: int, microbatches: int) -> PipelineSchedule:
    """Returns the interleaved zero-bubble order of torch.distributed.pipelining: ZB-H1 with several chunks.

    Rounds are those of `interleaved`; warm-up of min(p - r - 1 + (v - 1)G, m * v) forwards, and W behind I by r
    units. The bubble is that of ZB-H1 over v.

    Args:
        pp: Pipeline ranks, at least 2.
        vpp: Virtual stages per rank, at least 2.
        microbatches: Microbatches in a step.

    Source: Qi et al. 2024, arXiv:2401.10241; torch.distributed.pipelining; equations.md E5.1.
    """
    group = round_size(pp, microbatches)
    schedule = split_schedule(
        NAME_SPLIT,
        pp=pp,
        vpp=vpp,
        microbatches=microbatches,
        group=group,
        warmup=[min(pp - rank - 1 + (vpp - 1) * group, microbatches * vpp) for rank in range(pp)],
        lag=[min(rank, microbatches * vpp) for rank in range(pp)],
    )
    return verify(schedule)


def round_size(pp: int, microbatches: int) -> int:
    """Returns G, the microbatches that go through a chunk before the next chunk starts.

    The smallest G of at least p that leaves no last round smaller than p: m mod G = 0 or m mod G >= p. Then the
    bubble stays (p - 1)T/v; a smaller last round lengthens it, and some orders deadlock (p = 8, v = 2, m = 10,
    G = 8). A larger G keeps more activations. With m <= p all microbatches are one round.

    Args:
        pp: Pipeline ranks.
        microbatches: Microbatches in a step.

    Source: equations.md E5.3.
    """
    if microbatches <= pp:
        return microbatches
    sizes = np.arange(pp, microbatches + 1)
    left_over = microbatches % sizes
    return int(sizes[(left_over == 0) | (left_over >= pp)][0])


def _clock(pp: int, vpp: int) -> Clock:
    """Returns the ticks of interleaved 1F1B with G = p."""
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

    return clock
