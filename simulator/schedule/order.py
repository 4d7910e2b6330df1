"""The order that GPipe, 1F1B and interleaved 1F1B share: forwards to warm up, pairs, the remaining backwards."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from simulator.schedule.actions import BACKWARD_CODE, FORWARD_CODE, ActionArray, PipelineSchedule


def looped_schedule(
    name: str, *, pp: int, vpp: int, microbatches: int, group: int, warmup: Sequence[int]
) -> PipelineSchedule:
    """Returns the schedule in which rank r runs warmup[r] forwards, then (F, B) pairs, then the other backwards.

    Placement is looped: virtual stage = chunk * pp + rank. Units go in rounds of `group` microbatches through all
    chunks of a rank, backwards through the chunks from last to first.

    Args:
        name: Name of the schedule.
        pp: Pipeline ranks.
        vpp: Virtual stages per rank.
        microbatches: Microbatches in a step, a multiple of `group`.
        group: Microbatches that go through one chunk before the next chunk starts.
        warmup: Per rank, forwards before the first backward, at most microbatches * vpp.
    """
    forward = _units(FORWARD_CODE, pp=pp, vpp=vpp, microbatches=microbatches, group=group)
    backward = _units(BACKWARD_CODE, pp=pp, vpp=vpp, microbatches=microbatches, group=group)
    units = len(forward)
    table = np.empty((pp, 2 * units, 4), dtype=np.int32)
    for order, lead in zip(table, warmup, strict=True):
        order[:lead] = forward[:lead]
        order[lead : 2 * units - lead : 2] = forward[lead:]
        order[lead + 1 : 2 * units - lead : 2] = backward[: units - lead]
        order[2 * units - lead :] = backward[units - lead :]
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


def _units(kind_code: int, *, pp: int, vpp: int, microbatches: int, group: int) -> ActionArray:
    """Returns the forwards or backwards of rank 0 in order, [microbatches * vpp, 4].

    Unit k has chunk (k mod group * v) div group (backward: v - 1 - that) and microbatch
    (k div group * v) * group + k mod group. Source: equations.md E5.3.
    """
    unit = np.arange(microbatches * vpp, dtype=np.int32)
    chunk = unit % (group * vpp) // group
    if kind_code == BACKWARD_CODE:
        chunk = vpp - 1 - chunk
    microbatch = unit // (group * vpp) * group + unit % group
    return np.stack([np.full_like(unit, kind_code), chunk * pp, microbatch, np.zeros_like(unit)], axis=1)
