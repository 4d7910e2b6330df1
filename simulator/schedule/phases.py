"""Orders of ranks that hold two stages and go through phases: so many times this pattern, then that one.

Stages are placed in a V: rank r holds stages r and 2p - 1 - r. In ZB-V and DualPipeV they are the first and the
second half of one chain; in DualPipe the second half is a chain of its own, whose microbatches come from the other end.
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

Pass = tuple[int, int, int]
"""Kind code, which of the rank's two stages (0 or 1), 1 if joined with the next pass."""
Phase = tuple[int, tuple[Pass, ...]]
"""How many times a pattern of passes runs."""

FORWARDS = ((FORWARD_CODE, 0, 0), (FORWARD_CODE, 1, 0))
BACKWARDS = ((BACKWARD_CODE, 0, 0), (BACKWARD_CODE, 1, 0))
INPUTS = ((BACKWARD_INPUT_CODE, 0, 0), (BACKWARD_INPUT_CODE, 1, 0))
WEIGHTS = ((BACKWARD_WEIGHT_CODE, 0, 0), (BACKWARD_WEIGHT_CODE, 1, 0))
"""The passes of a kind: of the rank's first stage, and of its second one."""


def passes_of(phases: Sequence[Phase]) -> NDArray[np.int32]:
    """Returns the passes of all phases one after another, [passes, 3]."""
    return np.concatenate([np.tile(np.array(pattern, dtype=np.int32), (count, 1)) for count, pattern in phases])


def numbered(passes: NDArray[np.int32], stages: tuple[int, int]) -> ActionArray:
    """Returns passes as actions: each stage takes its microbatches in order, forwards and backwards alike.

    A backward of weights belongs to the oldest backward of inputs of its stage that still waits for one.

    Args:
        passes: Kind, which of the two stages, joined; [passes, 3].
        stages: The rank's first and second virtual stage.
    """
    actions = np.empty((len(passes), 4), dtype=np.int32)
    kind, chunk = passes[:, 0], passes[:, 1]
    actions[:, 0], actions[:, 3] = kind, passes[:, 2]
    actions[:, 1] = np.array(stages, dtype=np.int32)[chunk]
    microbatch = actions[:, 2]
    for number in range(len(stages)):
        mine = chunk == number
        inputs = mine & (kind == BACKWARD_INPUT_CODE)
        for passed in (mine & (kind == FORWARD_CODE), inputs | (mine & (kind == BACKWARD_CODE))):
            microbatch[passed] = np.arange(np.count_nonzero(passed), dtype=np.int32)
        microbatch[mine & (kind == BACKWARD_WEIGHT_CODE)] = microbatch[inputs]
    return actions


def placed_in_a_v(
    name: str, ranks: Sequence[ActionArray], *, vpp: int, microbatches: int, directions: int = 1
) -> PipelineSchedule:
    """Returns the schedule of ranks that hold the stages r and 2p - 1 - r.

    Args:
        name: Name of the schedule.
        ranks: Actions of every rank.
        vpp: Virtual stages per rank and direction.
        microbatches: Microbatches in a step, of all directions together.
        directions: 2 if the second stages are a chain of their own.
    """
    for actions in ranks:
        actions.flags.writeable = False
    return PipelineSchedule(
        name=name,
        pp=len(ranks),
        vpp=vpp,
        microbatches=microbatches,
        stage_to_rank=(*range(len(ranks)), *reversed(range(len(ranks)))),
        ranks=tuple(ranks),
        directions=directions,
    )
