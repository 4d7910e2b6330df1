"""When a schedule may be used: rules as data, for one layout (a message) or for many candidates (a mask)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from simulator.errors import Violation

Counts = NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class ScheduleRule:
    """One condition that a schedule puts on the layout and the batch."""

    path: str
    """Dotted key that the message points at."""
    broken: Callable[[Counts, Counts, Counts], NDArray[np.bool_]]
    """From (pp, vpp, microbatches), arrays of one shape, to where the rule is broken."""
    problem: Callable[[str, int, int, int], str]
    """From (schedule name, pp, vpp, microbatches) to what is wrong."""
    why: str
    """Reason for the rule."""
    mend: Callable[[int, int, int], str]
    """From (pp, vpp, microbatches) to what to change."""

    def violation(self, name: str, pp: int, vpp: int, microbatches: int) -> Violation:
        """Returns the message for one layout that breaks this rule."""
        return Violation(
            path=self.path,
            problem=self.problem(name, pp, vpp, microbatches),
            why=self.why,
            mend=self.mend(pp, vpp, microbatches),
        )


def _mend_groups(pp: int, _vpp: int, microbatches: int) -> str:
    below, above = microbatches // pp * pp, -(-microbatches // pp) * pp
    counts = f"{above}" if below == 0 else f"{below} or {above}"
    return (
        f"change training.global_batch so that each replica gets {counts} microbatches "
        "(global_batch = microbatches * micro_batch * dp), or set schedule to 1f1b and layout.vpp to 1"
    )


AT_LEAST_ONE = (
    ScheduleRule(
        path="layout.pp",
        broken=lambda pp, _vpp, _m: pp < 1,
        problem=lambda _name, pp, _vpp, _m: f"{pp} is not a number of pipeline stages",
        why="a pipeline has at least one stage",
        mend=lambda _pp, _vpp, _m: "set layout.pp to 1 or more",
    ),
    ScheduleRule(
        path="layout.vpp",
        broken=lambda _pp, vpp, _m: vpp < 1,
        problem=lambda _name, _pp, vpp, _m: f"{vpp} is not a number of model chunks",
        why="a pipeline rank holds at least one model chunk",
        mend=lambda _pp, _vpp, _m: "set layout.vpp to 1 or more",
    ),
    ScheduleRule(
        path="training.global_batch",
        broken=lambda _pp, _vpp, m: m < 1,
        problem=lambda _name, _pp, _vpp, m: f"gives {m} microbatches a replica",
        why="a step runs at least one microbatch through each pipeline",
        mend=lambda _pp, _vpp, _m: "raise training.global_batch to at least micro_batch * dp",
    ),
)
"""Rules of every schedule; while one is broken the others are not looked at."""

ONE_STAGE_A_RANK = ScheduleRule(
    path="layout.vpp",
    broken=lambda _pp, vpp, _m: vpp > 1,
    problem=lambda name, _pp, vpp, _m: f"{vpp} model chunks per pipeline rank, but schedule {name} runs one",
    why="gpipe and 1f1b have one stage per pipeline rank; several chunks per rank need an interleaved order",
    mend=lambda pp, _vpp, _m: (
        "set schedule to interleaved-1f1b, or layout.vpp to 1" if pp > 1 else "set layout.vpp to 1"
    ),
)

SEVERAL_RANKS = ScheduleRule(
    path="schedule",
    broken=lambda pp, _vpp, _m: pp == 1,
    problem=lambda name, _pp, _vpp, _m: f"{name} needs layout.pp of 2 or more, which is 1",
    why="without pipeline ranks there is no bubble for interleaving to shorten (Megatron-LM refuses it too)",
    mend=lambda _pp, _vpp, _m: "set schedule to 1f1b and layout.vpp to 1, or layout.pp to 2 or more",
)

SEVERAL_STAGES_A_RANK = ScheduleRule(
    path="layout.vpp",
    broken=lambda _pp, vpp, _m: vpp == 1,
    problem=lambda name, _pp, _vpp, _m: f"1 model chunk per pipeline rank, but schedule {name} interleaves several",
    why="interleaving runs the chunks of a rank in turn (Megatron-LM demands 2 or more)",
    mend=lambda _pp, _vpp, _m: "set layout.vpp to 2 or more, or schedule to 1f1b",
)

MICROBATCHES_FILL_GROUPS = ScheduleRule(
    path="training.global_batch",
    broken=lambda pp, _vpp, m: m % np.maximum(pp, 1) != 0,
    problem=lambda _name, pp, _vpp, m: f"gives {m} microbatches a replica, which is not a multiple of layout.pp, {pp}",
    why="interleaved-1f1b sends microbatches through the chunks in groups of layout.pp (Megatron-LM demands it); with "
    "a part of a group left over the bubble grows and some orders deadlock",
    mend=_mend_groups,
)
