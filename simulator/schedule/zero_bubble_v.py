"""ZB-V: two stages a rank in a V, so that zero bubble needs no more memory than 1F1B."""

from __future__ import annotations

from simulator.schedule.actions import ActionArray, PipelineSchedule
from simulator.schedule.phases import FORWARDS, INPUTS, WEIGHTS, numbered, passes_of, placed_in_a_v
from simulator.schedule.proof import verify
from simulator.schedule.rules import TWO_STAGES_A_RANK, ScheduleRule

NAME = "zb-v"
RULES: tuple[ScheduleRule, ...] = (TWO_STAGES_A_RANK,)


def zb_v(pp: int, vpp: int, microbatches: int) -> PipelineSchedule:
    """Returns the ZB-V order of the paper and of torch.distributed.pipelining.

    Rank r holds the stages r and 2p - 1 - r and keeps at most 2p activations of a stage, which is p of a rank. The
    order is made for at least 2p - 1 microbatches; with fewer, the actions of those that do not exist are left out.

    Args:
        pp: Pipeline ranks.
        vpp: Virtual stages per rank; 2.
        microbatches: Microbatches in a step.

    Source: Qi et al. 2024, arXiv:2401.10241, section 6; equations.md E5.3.
    """
    orders = [_order(rank, pp, microbatches) for rank in range(pp)]
    return verify(placed_in_a_v(NAME, orders, vpp=vpp, microbatches=microbatches))


def _order(rank: int, pp: int, microbatches: int) -> ActionArray:
    full = max(microbatches, 2 * pp - 1)
    (f0, f1), (i0, i1), (w0, w1) = FORWARDS, INPUTS, WEIGHTS
    passes = passes_of(
        [
            (2 * (pp - rank) - 1, (f0,)),
            (rank, (f1, f0)),
            (pp - rank, (f1, i1, w1)),
            (full - 2 * pp + rank + 1, (f0, i0, w0, f1, i1, w1)),
            (pp - rank - 1, (i0, w0, f1, i1, w1)),
            (rank, (i0, i1)),
            (pp - rank, (i0, w0)),
            (rank, (w1,)),
            (rank, (w0,)),
        ]
    )
    actions = numbered(passes, (rank, 2 * pp - 1 - rank))
    return actions[actions[:, 2] < microbatches]
