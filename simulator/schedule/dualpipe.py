"""DualPipe and DualPipeV: forwards overlapped with backwards, so that each hides the communication of the other."""

from __future__ import annotations

from simulator.schedule.actions import BACKWARD_INPUT_CODE as INPUT
from simulator.schedule.actions import BACKWARD_WEIGHT_CODE, ActionArray, PipelineSchedule
from simulator.schedule.phases import (
    BACKWARDS,
    FORWARDS,
    INPUTS,
    WEIGHTS,
    Pass,
    numbered,
    passes_of,
    placed_in_a_v,
)
from simulator.schedule.proof import verify
from simulator.schedule.rules import (
    EVEN_MICROBATCHES,
    EVEN_RANKS,
    ONE_STAGE_A_RANK,
    TWICE_THE_RANKS,
    TWO_STAGES_A_RANK,
    ScheduleRule,
)

NAME = "dualpipe"
RULES: tuple[ScheduleRule, ...] = (ONE_STAGE_A_RANK, EVEN_RANKS, EVEN_MICROBATCHES, TWICE_THE_RANKS)
NAME_V = "dualpipe-v"
RULES_V: tuple[ScheduleRule, ...] = (TWO_STAGES_A_RANK, TWICE_THE_RANKS)


def dualpipe(pp: int, vpp: int, microbatches: int) -> PipelineSchedule:
    """Returns the DualPipe order: two directions, half of the microbatches entering at each end of the pipeline.

    Rank r holds model stage r twice over: stage r of the first direction and, as virtual stage 2p - 1 - r, model
    stage p - 1 - r of the second. It keeps at most p + 1 activations of a stage.

    Args:
        pp: Pipeline ranks, even.
        vpp: Model stages per rank and direction; 1.
        microbatches: Microbatches in a step, of both directions together; even, at least 2p.

    Source: DeepSeek-AI 2024, arXiv:2412.19437, section 3.2.1, and its published code; equations.md E5.3.
    """
    orders = []
    for rank in range(pp):
        stages = (rank, 2 * pp - 1 - rank)
        if rank >= pp // 2:  # its own direction is the one that enters at its end of the pipeline
            stages = stages[::-1]
        orders.append(_order(min(rank, pp - 1 - rank), pp // 2, microbatches // 2, stages))
    return verify(placed_in_a_v(NAME, orders, vpp=vpp, microbatches=microbatches, directions=2))


def dualpipe_v(pp: int, vpp: int, microbatches: int) -> PipelineSchedule:
    """Returns the DualPipeV order: one half of DualPipe, whose two directions become the two arms of a V.

    Rank r holds the stages r and 2p - 1 - r once, and keeps at most 2p + 1 activations of a stage.

    Args:
        pp: Pipeline ranks.
        vpp: Virtual stages per rank; 2.
        microbatches: Microbatches in a step, at least 2p.

    Source: the "cut-in-half" of Sea AI Lab 2025 in the published code of DeepSeek-AI's DualPipe; equal to
        torch.distributed.pipelining; equations.md E5.3.
    """
    orders = [_order(rank, pp, microbatches, (rank, 2 * pp - 1 - rank)) for rank in range(pp)]
    return verify(placed_in_a_v(NAME_V, orders, vpp=vpp, microbatches=microbatches))


def _order(place: int, half: int, microbatches: int, stages: tuple[int, int]) -> ActionArray:
    """Returns the eight steps of one rank.

    Args:
        place: Ranks between this one and the end of the pipeline that its own microbatches enter at.
        half: Ranks from that end to the middle (DualPipeV: to the turn).
        microbatches: Microbatches of a direction.
        stages: The rank's stage of its own direction, and of the other one.
    """
    (f0, f1), (b0, b1), (i0, i1), (w, _) = FORWARDS, BACKWARDS, INPUTS, WEIGHTS
    to_middle = half - 1 - place
    pair0, pair1 = (_joined(f0), b1), (_joined(f1), b0)
    # The middle rank does not overlap its first two passes, which shortens the bubble.
    opening = pair0 if to_middle else (f0, b1)
    whole, split = divmod(place + 1, 2)
    passes = passes_of(
        [
            (2 * to_middle, (f0,)),
            (place + 1, (f0, f1)),
            (to_middle, (i1, w, f1)),
            (1, (*opening, *pair1)),
            (microbatches - 2 * half + place, (*pair0, *pair1)),
            (to_middle, (b1, *pair1)),
            # 2(place + 1) backwards b1, b0, b1 ...: the first half whole, the second half split.
            (whole, (b1, b0)),
            (split, (b1, i0)),
            (whole, (i1, i0)),
            (to_middle, (w, i0)),
            (place + 1, (w,)),
        ]
    )
    # Weight halves run in the order of their input halves, whichever stage those were of.
    passes[passes[:, 0] == BACKWARD_WEIGHT_CODE, 1] = passes[passes[:, 0] == INPUT, 1]
    return numbered(passes, stages)


def _joined(first: Pass) -> Pass:
    return first[0], first[1], 1
