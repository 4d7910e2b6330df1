"""When each action of a schedule runs, given the times of the stages alone: no streams, no shared links.

This is the time of a schedule on paper, as papers draw it. What a step takes on a cluster is for the engine.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from simulator.errors import SimulatorFault
from simulator.schedule.actions import (
    BACKWARD_CODE,
    BACKWARD_INPUT_CODE,
    BACKWARD_WEIGHT_CODE,
    FORWARD_CODE,
    ActionKind,
    PipelineSchedule,
)
from simulator.schedule.deadlock import circle_of_waits
from simulator.schedule.longest_path import longest_path
from simulator.schedule.profile import StageProfile

Times = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ScheduleTiming:
    """When each action of a schedule begins and ends; in the unit of time of the profile, from the step's start."""

    begins: tuple[Times, ...]
    """Per rank, begin of each action in the order of the schedule; the two of a joined pair begin together."""
    ends: tuple[Times, ...]
    """Per rank, end of each action; the two of a joined pair end together."""
    busy: Times
    """Per rank, time in which it runs an action, [pp]; a joined pair counts once."""

    @property
    def makespan(self) -> float:
        """From the first begin of all ranks to the last end."""
        return max(float(ends[-1]) for ends in self.ends)

    @property
    def spans(self) -> Times:
        """Per rank, from its first begin to its last end, [pp]."""
        return np.array([ends[-1] - begins[0] for begins, ends in zip(self.begins, self.ends, strict=True)])

    @property
    def longest_span(self) -> float:
        """The longest of the spans: the step, if stages need not begin or end it together."""
        return float(self.spans.max())

    @property
    def idle(self) -> Times:
        """Per rank, time of the makespan in which it runs nothing, [pp]."""
        return self.makespan - self.busy


def time_schedule(schedule: PipelineSchedule, profile: StageProfile, *, joined: float | None = None) -> ScheduleTiming:
    """Returns when each action runs if it begins as soon as its rank is free and its inputs are there.

    A whole backward takes the time of its two halves. A message between different ranks takes `profile.hop`; the
    sender is not held up and messages do not queue. The memory of the profile is not looked at.

    Args:
        schedule: A verified schedule.
        profile: Times of its stages.
        joined: Time of a joined pair of forward and backward; None if overlap gains nothing, which is their sum.

    Raises:
        SimulatorFault: The order deadlocks.

    Source: longest path in the graph of what must come before what; equations.md E5.1, E5.4 and E5.6 are its values.
    """
    times = np.empty((len(ActionKind), schedule.num_stages))
    times[FORWARD_CODE] = profile.forward
    times[BACKWARD_CODE] = profile.backward_input + profile.backward_weight
    times[BACKWARD_INPUT_CODE] = profile.backward_input
    times[BACKWARD_WEIGHT_CODE] = profile.backward_weight
    path = longest_path(schedule, times, joined=joined, hop=profile.hop)
    if not path.is_complete:
        waits = ", ".join(str(wait) for wait in circle_of_waits(schedule, path.reached))
        raise SimulatorFault(f"{schedule.name}: deadlock: {waits}")
    runs = zip(schedule.ranks, path.begins, path.ends, strict=True)
    # The first action of a joined pair is left out: the second one has the same begin and end.
    busy = [float(((ends - begins) * (order[:, 3] == 0)).sum()) for order, begins, ends in runs]
    return ScheduleTiming(begins=path.begins, ends=path.ends, busy=np.array(busy))
