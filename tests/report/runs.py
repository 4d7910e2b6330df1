"""Small simulated steps that the tests of pictures, tables and traces share."""

from __future__ import annotations

from functools import cache

import numpy as np

from simulator.config.scenario import Scenario
from simulator.parallel.layout import Layout
from simulator.parallel.training import Overlap, Training
from simulator.report.pipeline_actions import PipelineActions, actions_of_schedule
from simulator.report.simulated import Simulated
from simulator.schedule import PipelineSchedule, build_schedule, walk
from simulator.simulate import run_steps
from tests.system.jobs import profile, tiny_model


@cache
def simulated(
    pp: int = 4,
    vpp: int = 1,
    microbatches: int = 8,
    *,
    schedule: str = "",
    dp: int = 1,
    fold: bool = True,
    sends_beside: bool = True,
) -> Simulated:
    """A tiny decoder on a few devices, with the spans of every class."""
    scenario = Scenario(
        name="tiny",
        model=tiny_model(layers=2 * pp * vpp),
        cluster=profile("h100-superpod"),
        devices=pp * dp,
        layout=Layout(pp=pp, vpp=vpp, dp=dp),
        schedule=schedule,
        training=Training(
            sequence_length=256, global_batch=microbatches * dp, micro_batch=1, overlap=Overlap(pp=sends_beside)
        ),
    )
    return run_steps(scenario, record_spans=lambda step: range(len(step.program.classes)), fold=fold)


def unit_actions(name: str, *, pp: int, vpp: int = 1, microbatches: int) -> PipelineActions:
    """A schedule in which every action takes one unit of time."""
    schedule = build_schedule(name, pp=pp, vpp=vpp, microbatches=microbatches)
    rounds = walk(schedule)
    return actions_of_schedule(schedule, [each - 1.0 for each in rounds], [each.astype(float) for each in rounds])


def paired_schedule() -> PipelineSchedule:
    """A rank with two stages, one of each direction, that runs a forward and a backward joined: F0.0 F1.0&B0.0 B1.0."""
    actions = np.array([[0, 0, 0, 0], [0, 1, 0, 1], [1, 0, 0, 0], [1, 1, 0, 0]], dtype=np.int32)
    return PipelineSchedule(
        name="paired", pp=1, vpp=2, microbatches=2, stage_to_rank=(0, 0), ranks=(actions,), directions=2
    )
