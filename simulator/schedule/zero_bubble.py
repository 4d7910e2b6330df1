"""ZB-H1 and ZB-H2: 1F1B with backwards split, so that the weight halves fill the bubble."""

from __future__ import annotations

from simulator.schedule.actions import PipelineSchedule
from simulator.schedule.order import split_schedule
from simulator.schedule.proof import verify
from simulator.schedule.rules import ONE_STAGE_A_RANK, ScheduleRule

NAME_H1 = "zb-h1"
NAME_H2 = "zb-h2"
RULES: tuple[ScheduleRule, ...] = (ONE_STAGE_A_RANK,)


def zb_h1(pp: int, vpp: int, microbatches: int) -> PipelineSchedule:
    """Returns the ZB-H1 order: the memory of 1F1B, about a third of its bubble.

    Warm-up of min(p - r - 1, m) forwards; then F if any is left, I, and a W once more than r backwards of inputs
    wait; then the waiting W. Every rank keeps min(p, m) microbatches until W, rank r min(p - r, m) until I.

    Args:
        pp: Pipeline ranks.
        vpp: Virtual stages per rank; 1.
        microbatches: Microbatches in a step.

    Source: Qi et al. 2024, arXiv:2401.10241, section 2.2 and figure 3; equations.md E5.3.
    """
    schedule = split_schedule(
        NAME_H1,
        pp=pp,
        vpp=vpp,
        microbatches=microbatches,
        group=microbatches,
        warmup=[min(pp - rank - 1, microbatches) for rank in range(pp)],
        lag=[min(rank, microbatches) for rank in range(pp)],
    )
    return verify(schedule)


def zb_h2(pp: int, vpp: int, microbatches: int) -> PipelineSchedule:
    """Returns the ZB-H2 order: twice the memory of 1F1B, and no bubble between first and last action of a rank.

    Warm-up of min(2(p - r) - 2, m) forwards and W behind I by 2r. Every rank keeps min(2p - 1, m) microbatches
    until W, rank r min(2(p - r) - 1, m) until I. It pays from m = 2p - 1 on.

    Args:
        pp: Pipeline ranks.
        vpp: Virtual stages per rank; 1.
        microbatches: Microbatches in a step.

    Source: Qi et al. 2024, arXiv:2401.10241, section 2.3 and figure 3; equations.md E5.3. Left out: the validation
        of the optimizer step after the fact, which lets stages end the step at different times.
    """
    schedule = split_schedule(
        NAME_H2,
        pp=pp,
        vpp=vpp,
        microbatches=microbatches,
        group=microbatches,
        warmup=[min(2 * (pp - rank) - 2, microbatches) for rank in range(pp)],
        lag=[min(2 * rank, microbatches) for rank in range(pp)],
    )
    return verify(schedule)
