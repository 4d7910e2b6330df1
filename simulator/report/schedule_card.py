"""A schedule by itself: what it is, what it asks for, and when its actions run with given times of its passes."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from simulator.errors import ScenarioError, Violation
from simulator.report.drawing import say
from simulator.report.pipeline_actions import PipelineActions, actions_of_schedule
from simulator.report.pipeline_text import print_picture
from simulator.report.wording import percent
from simulator.schedule import SCHEDULES, PipelineSchedule, build_schedule, schedule_violations
from simulator.schedule.profile import StageProfile
from simulator.schedule.timing import time_schedule

if TYPE_CHECKING:
    from rich.console import Console

DEFAULT_PP, DEFAULT_MICROBATCHES = 4, 8
VPP_TRIED = (1, 2)
"""Stages of a rank that are tried if none are given: each schedule takes one of these."""
_OPTION_OF_PATH = {"layout.pp": "--pp", "layout.vpp": "--vpp", "training.global_batch": "--microbatches"}
_SOURCE = "Source:"


@dataclass(frozen=True, slots=True, kw_only=True)
class PassTimes:
    """Times of the passes of every stage, in any one unit."""

    forward: float
    """A forward."""
    backward_input: float
    """A backward of inputs."""
    backward_weight: float
    """A backward of weights; the whole backward takes both."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ScheduleCard:
    """A schedule and when its actions run."""

    schedule: PipelineSchedule
    """The order."""
    times: PassTimes
    """What its passes take."""
    actions: PipelineActions
    """When they run."""


def parse_times(text: str | None) -> PassTimes:
    """Returns the times that `F,I,W` names; None: one unit each.

    Raises:
        ScenarioError: it is not three positive numbers.
    """
    if text is None:
        return PassTimes(forward=1.0, backward_input=1.0, backward_weight=1.0)
    try:
        forward, backward_input, backward_weight = (float(part) for part in text.split(","))
        is_sensible = all(0 < each < np.inf for each in (forward, backward_input, backward_weight))
    except ValueError:
        is_sensible = False
    if not is_sensible:
        violation = Violation(
            path=f"--times {text[:80]}",
            problem="is not three positive numbers",
            why="a forward, a backward of inputs and a backward of weights each take time",
            mend="write F,I,W in any unit, for example 1,1,1",
        )
        raise ScenarioError([violation])
    return PassTimes(forward=forward, backward_input=backward_input, backward_weight=backward_weight)


def schedule_card(
    name: str,
    *,
    pp: int | None = None,
    vpp: int | None = None,
    microbatches: int | None = None,
    times: PassTimes,
) -> ScheduleCard:
    """Returns a built-in schedule with the times of its actions; messages take no time.

    A schedule that is built from the memory of the stages has room for p microbatches on each rank, as 1F1B needs, if
    each is held until its backward of weights.

    Args:
        name: name of the schedule.
        pp: pipeline ranks; None: `DEFAULT_PP`.
        vpp: stages of a rank; None: as many as the schedule takes, of `VPP_TRIED`.
        microbatches: microbatches of the step; None: `DEFAULT_MICROBATCHES`.
        times: of the passes of every stage.

    Raises:
        ScenarioError: the schedule does not run with these.
    """
    pp = DEFAULT_PP if pp is None else pp
    microbatches = DEFAULT_MICROBATCHES if microbatches is None else microbatches
    if vpp is None:
        vpp = min(VPP_TRIED, key=lambda tried: len(schedule_violations(name, pp, tried, microbatches)))
    if violations := schedule_violations(name, pp, vpp, microbatches):
        raise ScenarioError([_at_option(each) for each in violations])
    schedule = build_schedule(
        name, pp=pp, vpp=vpp, microbatches=microbatches, profile=_profile(times, pp * vpp, pp=pp, vpp=vpp)
    )
    timing = time_schedule(schedule, _profile(times, schedule.num_stages, pp=pp, vpp=vpp))
    return ScheduleCard(
        schedule=schedule, times=times, actions=actions_of_schedule(schedule, timing.begins, timing.ends)
    )


def _profile(times: PassTimes, num_stages: int, *, pp: int, vpp: int) -> StageProfile:
    stages = np.ones(num_stages)
    return StageProfile(
        forward=times.forward * stages,
        backward_input=times.backward_input * stages,
        backward_weight=times.backward_weight * stages,
        hop=0.0,
        activation=stages / vpp,
        freed_by_input=0.0 * stages,
        limit=np.full(pp, float(pp)),
    )


def _at_option(violation: Violation) -> Violation:
    """A violation of a scenario, said of the option that stands for its key here."""
    path = _OPTION_OF_PATH.get(violation.path, violation.path)
    return Violation(path=path, problem=violation.problem, why=violation.why, mend=violation.mend)


def print_card(card: ScheduleCard, console: Console) -> None:
    """Prints what the schedule is, its picture and its figures."""
    name, schedule = card.schedule.name, card.schedule
    about, source = _documentation(name)
    say(console, f"{name}: {about[0]}", style="bold")
    for paragraph in about[1:]:
        say(console, paragraph)
    say(console, f"source: {source}")
    for rule in SCHEDULES[name].rules:
        say(console, f"rule on {rule.path}: {rule.why}")
    console.print()
    print_picture(card.actions, console)
    console.print()
    actions, times = card.actions, card.times
    say(
        console,
        f"bubble: {percent(actions.idle_fraction)} of the ranks' time until {actions.passes_end:.6g}, with forward "
        f"{times.forward:g}, backward of inputs {times.backward_input:g}, of weights {times.backward_weight:g}",
    )
    say(console, f"most microbatches in flight, counted by stage: {_listed(schedule.in_flight_max())}")
    say(console, f"messages sent: {_listed(schedule.messages_sent())}")


def _listed(values: Sequence[int]) -> str:
    if len(set(values)) == 1:
        return f"{values[0]} by each rank"
    return f"{', '.join(map(str, values))} by rank"


def _documentation(name: str) -> tuple[list[str], str]:
    """What the builder of a schedule says of it, in paragraphs, and its source."""
    paragraphs = [
        " ".join(each.split()) for each in (inspect.getdoc(SCHEDULES[name].build) or name).split("\n\n") if each.strip()
    ]
    about = [each for each in paragraphs if not each.startswith(("Args:", "Raises:", _SOURCE))]
    sources = [each.removeprefix(_SOURCE).strip() for each in paragraphs if each.startswith(_SOURCE)]
    return [each.removeprefix("Returns ") for each in about], " ".join(sources)
