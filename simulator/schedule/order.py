"""Orders with looped placement: a rank holds every p-th stage and runs its chunks in turn.

GPipe, 1F1B and their interleaved forms run forwards to warm up, then pairs of a forward and a whole backward, then
the backwards that are left. The zero-bubble forms split the backward and put off its weight half.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from simulator.schedule.actions import (
    BACKWARD_CODE,
    BACKWARD_INPUT_CODE,
    BACKWARD_WEIGHT_CODE,
    FORWARD_CODE,
    ActionArray,
    PipelineSchedule,
)


def looped_schedule(
    name: str, *, pp: int, vpp: int, microbatches: int, group: int, warmup: Sequence[int]
) -> PipelineSchedule:
    """Returns the schedule in which rank r runs warmup[r] forwards, then (F, B) pairs, then the other backwards.

    Placement is looped: virtual stage = chunk * pp + rank. Units go in rounds of `group` microbatches through all
    chunks of a rank, backwards through the chunks from last to first; what is left over is a smaller last round.

    Args:
        name: Name of the schedule.
        pp: Pipeline ranks.
        vpp: Virtual stages per rank.
        microbatches: Microbatches in a step.
        group: Microbatches that go through one chunk before the next chunk starts.
        warmup: Per rank, forwards before the first backward, at most microbatches * vpp.
    """
    forward = units(FORWARD_CODE, pp=pp, vpp=vpp, microbatches=microbatches, group=group)
    backward = units(BACKWARD_CODE, pp=pp, vpp=vpp, microbatches=microbatches, group=group)
    count = len(forward)
    table = np.empty((pp, 2 * count, 4), dtype=np.int32)
    for order, lead in zip(table, warmup, strict=True):
        order[:lead] = forward[:lead]
        order[lead : 2 * count - lead : 2] = forward[lead:]
        order[lead + 1 : 2 * count - lead : 2] = backward[: count - lead]
        order[2 * count - lead :] = backward[count - lead :]
    return placed_in_a_loop(name, table, vpp=vpp, microbatches=microbatches)


def split_schedule(
    name: str,
    *,
    pp: int,
    vpp: int,
    microbatches: int,
    group: int,
    warmup: Sequence[int],
    lag: Sequence[int],
) -> PipelineSchedule:
    """Returns the schedule in which rank r runs warmup[r] forwards, then (F, I, W) with W behind I by lag[r] units.

    Once no forward is left the loop goes on with (I, W), and at its end the weight halves that wait run one after
    another. Placement and rounds are those of `looped_schedule`.

    Args:
        name: Name of the schedule.
        pp: Pipeline ranks.
        vpp: Virtual stages per rank.
        microbatches: Microbatches in a step.
        group: Microbatches that go through one chunk before the next chunk starts.
        warmup: Per rank, forwards before the first backward, at most microbatches * vpp.
        lag: Per rank, backwards of inputs that wait for their weight half, at most microbatches * vpp.

    Source: Qi et al. 2024, arXiv:2401.10241, section 2.2; equations.md E5.3.
    """
    forward = units(FORWARD_CODE, pp=pp, vpp=vpp, microbatches=microbatches, group=group)
    inputs = units(BACKWARD_INPUT_CODE, pp=pp, vpp=vpp, microbatches=microbatches, group=group)
    weights = units(BACKWARD_WEIGHT_CODE, pp=pp, vpp=vpp, microbatches=microbatches, group=group)
    count = len(forward)
    table = np.empty((pp, 3 * count, 4), dtype=np.int32)
    loop = np.zeros((count, 3, 4), dtype=np.int32)
    loop[:, 1] = inputs
    for order, lead, behind in zip(table, warmup, lag, strict=True):
        runs = np.ones((count, 3), dtype=np.bool_)
        runs[count - lead :, 0] = False
        runs[:behind, 2] = False
        loop[: count - lead, 0] = forward[lead:]
        loop[behind:, 2] = weights[: count - behind]
        order[:lead] = forward[:lead]
        order[lead : 3 * count - behind] = loop[runs]
        order[3 * count - behind :] = weights[count - behind :]
    return placed_in_a_loop(name, table, vpp=vpp, microbatches=microbatches)


def units(kind_code: int, *, pp: int, vpp: int, microbatches: int, group: int) -> ActionArray:
    """Returns the forwards or backwards of rank 0 in order, [microbatches * vpp, 4].

    Unit k of a round of g microbatches that begins with microbatch i has chunk k div g (backward: v - 1 - that) and
    microbatch i + k mod g; g is `group`, or what is left over for the last round.

    Args:
        kind_code: Kind of all the actions; forwards take the chunks first to last, backwards last to first.
        pp: Pipeline ranks.
        vpp: Virtual stages per rank.
        microbatches: Microbatches in a step.
        group: Microbatches of a round.

    Source: equations.md E5.3.
    """
    unit = np.arange(microbatches * vpp, dtype=np.int32)
    first = unit // (group * vpp) * group
    size = np.minimum(group, microbatches - first)
    chunk, offset = np.divmod(unit - first * vpp, size)
    if kind_code != FORWARD_CODE:
        chunk = vpp - 1 - chunk
    return np.stack([np.full_like(unit, kind_code), chunk * pp, first + offset, np.zeros_like(unit)], axis=1)


def placed_in_a_loop(name: str, table: NDArray[np.int32], *, vpp: int, microbatches: int) -> PipelineSchedule:
    """Returns the schedule of looped placement, virtual stage = chunk * pp + rank.

    Args:
        name: Name of the schedule.
        table: Actions of every rank, [pp, actions, 4], as if rank 0 ran them; it becomes part of the schedule.
        vpp: Virtual stages per rank.
        microbatches: Microbatches in a step.
    """
    pp = len(table)
    table[:, :, 1] += np.arange(pp, dtype=np.int32)[:, None]
    table.flags.writeable = False
    return PipelineSchedule(
        name=name,
        pp=pp,
        vpp=vpp,
        microbatches=microbatches,
        stage_to_rank=tuple(stage % pp for stage in range(pp * vpp)),
        ranks=tuple(table),
    )
