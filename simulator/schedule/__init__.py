"""Order of work in a pipeline: pure combinatorics, one file a schedule.

`SCHEDULES` maps each name to its builder and rules. A new schedule is one file and one line here.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from simulator.errors import ScenarioError, SimulatorFault, Violation
from simulator.schedule import (
    auto_zero_bubble,
    breadth_first,
    dualpipe,
    gpipe,
    interleaved,
    one_f_one_b,
    zero_bubble,
    zero_bubble_v,
)
from simulator.schedule.actions import Action, ActionArray, ActionKind, PipelineSchedule
from simulator.schedule.hand_written import read_schedule_csv, table_violations
from simulator.schedule.profile import StageProfile
from simulator.schedule.proof import Clock, verify, walk
from simulator.schedule.rules import AT_LEAST_ONE, ScheduleRule
from simulator.schedule.table import write_schedule_csv
from simulator.schedule.timing import ScheduleTiming, time_schedule

__all__ = [
    "SCHEDULES",
    "Action",
    "ActionArray",
    "ActionKind",
    "Clock",
    "PipelineSchedule",
    "ScheduleKind",
    "ScheduleRule",
    "ScheduleTiming",
    "StageProfile",
    "build_schedule",
    "read_schedule_csv",
    "schedule_is_valid",
    "schedule_violations",
    "table_violations",
    "time_schedule",
    "verify",
    "walk",
    "write_schedule_csv",
]


@dataclass(frozen=True, slots=True)
class ScheduleKind:
    """One built-in schedule."""

    build: Callable[..., PipelineSchedule]
    """From (pp, vpp, microbatches), and a profile if it needs one, to the verified order."""
    rules: tuple[ScheduleRule, ...]
    """What the layout and the batch must satisfy."""
    needs_profile: bool = False
    """Whether the order depends on the times and the memory of the stages."""
    ends_meet: bool = False
    """Whether one rank holds the first and the last stage of the model, also where there are several."""
    joins_passes: bool = False
    """Whether some of its passes run overlapped."""


SCHEDULES: dict[str, ScheduleKind] = {
    gpipe.NAME: ScheduleKind(gpipe.gpipe, gpipe.RULES),
    one_f_one_b.NAME: ScheduleKind(one_f_one_b.one_f_one_b, one_f_one_b.RULES),
    interleaved.NAME: ScheduleKind(interleaved.interleaved, interleaved.RULES),
    breadth_first.NAME: ScheduleKind(breadth_first.looped_bfs, breadth_first.RULES),
    zero_bubble.NAME_H1: ScheduleKind(zero_bubble.zb_h1, zero_bubble.RULES),
    zero_bubble.NAME_H2: ScheduleKind(zero_bubble.zb_h2, zero_bubble.RULES),
    zero_bubble_v.NAME: ScheduleKind(zero_bubble_v.zb_v, zero_bubble_v.RULES, ends_meet=True),
    interleaved.NAME_SPLIT: ScheduleKind(interleaved.interleaved_zb, interleaved.RULES),
    auto_zero_bubble.NAME: ScheduleKind(auto_zero_bubble.auto_zero_bubble, auto_zero_bubble.RULES, needs_profile=True),
    dualpipe.NAME: ScheduleKind(dualpipe.dualpipe, dualpipe.RULES, ends_meet=True, joins_passes=True),
    dualpipe.NAME_V: ScheduleKind(dualpipe.dualpipe_v, dualpipe.RULES_V, ends_meet=True, joins_passes=True),
}


def build_schedule(
    name: str, *, pp: int, vpp: int, microbatches: int, profile: StageProfile | None = None
) -> PipelineSchedule:
    """Returns the verified order of actions on every pipeline rank.

    Args:
        name: Name in `SCHEDULES`.
        pp: Pipeline ranks.
        vpp: Virtual stages per pipeline rank.
        microbatches: Microbatches in a step, per pipeline.
        profile: Times and memory of the stages, for schedules that need them; others do not look at it.

    Raises:
        ScenarioError: The name is unknown or a rule of the schedule is broken.
        SimulatorFault: The built order is incomplete or deadlocks, or a profile is missing.
    """
    if violations := schedule_violations(name, pp, vpp, microbatches):
        raise ScenarioError(violations)
    kind = SCHEDULES[name]
    if not kind.needs_profile:
        return kind.build(pp, vpp, microbatches)
    if profile is None:
        raise SimulatorFault(f"schedule {name} is built from the times of the stages, which were not given")
    return kind.build(pp, vpp, microbatches, profile)


def schedule_violations(name: str, pp: int, vpp: int, microbatches: int) -> tuple[Violation, ...]:
    """Returns the rules that a schedule breaks with this layout and number of microbatches; empty when it may run."""
    if name not in SCHEDULES:
        return (_unknown(name),)
    sizes = (np.int64(pp), np.int64(vpp), np.int64(microbatches))
    for rules in (AT_LEAST_ONE, SCHEDULES[name].rules):
        if found := tuple(rule.violation(name, pp, vpp, microbatches) for rule in rules if _broken(rule, *sizes).any()):
            return found
    return ()


def schedule_is_valid(
    name: str, pp: npt.ArrayLike, vpp: npt.ArrayLike, microbatches: npt.ArrayLike
) -> npt.NDArray[np.bool_]:
    """Returns where a built-in schedule may run, for arrays of candidates that broadcast together.

    The same rules as `schedule_violations`, without messages.
    """
    sizes = np.broadcast_arrays(*(np.asarray(size, dtype=np.int64) for size in (pp, vpp, microbatches)))
    valid = np.ones(sizes[0].shape, dtype=np.bool_)
    for rule in (*AT_LEAST_ONE, *SCHEDULES[name].rules):
        valid &= ~_broken(rule, *sizes)
    return valid


def _broken(
    rule: ScheduleRule, pp: npt.ArrayLike, vpp: npt.ArrayLike, microbatches: npt.ArrayLike
) -> npt.NDArray[np.bool_]:
    return np.asarray(rule.broken(np.asarray(pp), np.asarray(vpp), np.asarray(microbatches)), dtype=np.bool_)


def _unknown(name: str) -> Violation:
    near = difflib.get_close_matches(name, SCHEDULES, n=1, cutoff=0.0)[0]
    return Violation(
        path="schedule",
        problem=f"unknown schedule {name!r}",
        why=f"the schedules are {', '.join(SCHEDULES)}",
        mend=f"did you mean {near}?",
    )
