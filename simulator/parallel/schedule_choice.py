"""What `schedule:` of a scenario may be: a name, a schedule made for a limit of memory, or an order of actions."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

from simulator.errors import Violation
from simulator.schedule import SCHEDULES, PipelineSchedule, schedule_violations, table_violations
from simulator.units import Bytes

LIMITED = tuple(name for name, kind in SCHEDULES.items() if kind.needs_profile)
"""Schedules whose order is made for the times and the memory of the stages."""


class LimitedSchedule(BaseModel):
    """A schedule that is made for a limit of memory; without one, for the memory of the device."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(description=f"Pipeline schedule with a limit: {', '.join(LIMITED)}.")
    memory_limit: Annotated[Bytes, Field(gt=0)] | None = Field(
        None, description="Memory of a device in all; what states and temporaries leave of it is for activations."
    )
    activation_limit: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = Field(
        None, description="Room for activations, in those of one microbatch on the rank times layout.pp: 1 is 1F1B's."
    )

    @model_validator(mode="after")
    def _has_one_limit_at_most(self) -> LimitedSchedule:
        if self.name not in LIMITED:
            raise ValueError(f"name is {self.name!r}, which takes no limit; {' or '.join(LIMITED)} does")
        if self.memory_limit is not None and self.activation_limit is not None:
            raise ValueError("activation_limit is given beside memory_limit, and one of the two is enough")
        return self


ScheduleChoice = str | LimitedSchedule | PipelineSchedule
"""A name of `SCHEDULES`; a name with its limit; an order of actions, which may come from a table."""


def name_of(schedule: ScheduleChoice) -> str:
    """Returns the name of a schedule: in `SCHEDULES`, or of its table."""
    return schedule if isinstance(schedule, str) else schedule.name


def shown(schedule: ScheduleChoice) -> str | dict[str, Any]:
    """Returns a schedule as a report writes it: its name, or with a limit a mapping."""
    return schedule.model_dump(exclude_none=True) if isinstance(schedule, LimitedSchedule) else name_of(schedule)


def choice_violations(schedule: ScheduleChoice, pp: int, vpp: int, microbatches: int) -> tuple[Violation, ...]:
    """Returns why a schedule cannot run with this layout and number of microbatches; empty when it can."""
    if isinstance(schedule, PipelineSchedule):
        return table_violations(schedule, pp=pp, vpp=vpp, microbatches=microbatches)
    return schedule_violations(name_of(schedule), pp, vpp, microbatches)


def ends_meet(schedule: ScheduleChoice, vpp: int) -> bool:
    """Returns whether one pipeline rank holds the first and the last stage of the model (V placement)."""
    if isinstance(schedule, PipelineSchedule):
        first, last = schedule.ends
        return first == last
    name = name_of(schedule)
    return vpp > 1 if name in LIMITED else SCHEDULES[name].ends_meet


def joins_passes(schedule: ScheduleChoice) -> bool:
    """Returns whether some passes of a schedule run overlapped (DualPipe)."""
    if isinstance(schedule, PipelineSchedule):
        return schedule.joins_passes
    return SCHEDULES[name_of(schedule)].joins_passes
