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
    why="this order has one stage per pipeline rank; several chunks per rank need an interleaved order",
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

TWO_STAGES_A_RANK = ScheduleRule(
    path="layout.vpp",
    broken=lambda _pp, vpp, _m: vpp != 2,
    problem=lambda name, _pp, vpp, _m: f"{_chunks(vpp)} per pipeline rank, but schedule {name} runs two",
    why="stages are placed in a V: each rank holds one on the way down and one on the way up",
    mend=lambda _pp, _vpp, _m: "set layout.vpp to 2, or schedule to one for other counts",
)

EVEN_RANKS = ScheduleRule(
    path="layout.pp",
    broken=lambda pp, _vpp, _m: pp % 2 == 1,
    problem=lambda name, pp, _vpp, _m: f"{pp} is odd, but schedule {name} needs an even number of pipeline ranks",
    why="microbatches enter at both ends and meet between the two middle ranks",
    mend=lambda pp, _vpp, _m: f"set layout.pp to {pp + 1}, or schedule to dualpipe-v with layout.vpp 2",
)

EVEN_MICROBATCHES = ScheduleRule(
    path="training.global_batch",
    broken=lambda _pp, _vpp, m: m % 2 == 1,
    problem=lambda name, _pp, _vpp, m: f"gives {m} microbatches a replica, but schedule {name} needs an even number",
    why="half of the microbatches enters at each end of the pipeline",
    mend=lambda _pp, _vpp, m: f"change training.global_batch so that each replica gets {m + 1} microbatches",
)

TWICE_THE_RANKS = ScheduleRule(
    path="training.global_batch",
    broken=lambda pp, _vpp, m: m < 2 * pp,
    problem=lambda name, pp, _vpp, m: (
        f"gives {m} microbatches a replica, but schedule {name} needs at least {2 * pp}, twice layout.pp"
    ),
    why="with fewer the pipeline never fills, and the order of the steady state does not exist",
    mend=lambda pp, _vpp, _m: (
        f"raise training.global_batch so that each replica gets {2 * pp} microbatches or more, lower layout.pp, "
        "or set schedule to 1f1b or zb-h1 with layout.vpp 1"
    ),
)


def _chunks(vpp: int) -> str:
    return f"{vpp} model chunk" + ("s" if vpp != 1 else "")
