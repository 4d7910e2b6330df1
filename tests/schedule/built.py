"""Built-in schedules of many sizes, for the tests of schedules."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from hypothesis import strategies as st

from simulator.schedule import SCHEDULES, PipelineSchedule, StageProfile, build_schedule, schedule_violations

COMBINATORIC = tuple(name for name, kind in SCHEDULES.items() if not kind.needs_profile)
"""Schedules whose order depends on sizes alone."""
CHUNKS = {"interleaved-1f1b": 2, "looped-bfs": 2, "interleaved-zb": 2, "zb-v": 2, "dualpipe-v": 2}
"""Smallest number of model chunks of the schedules that have several."""
SEVERAL = ("interleaved-1f1b", "looped-bfs", "interleaved-zb")
"""Schedules of any number of chunks from two on."""


def scheduled(inputs: dict[str, Any]) -> PipelineSchedule:
    """The schedule of a worked value."""
    return build_schedule(
        inputs["schedule"],
        pp=inputs.get("pp", len(inputs.get("forward_s", [])) if isinstance(inputs.get("forward_s"), list) else 0),
        vpp=inputs.get("vpp", 1),
        microbatches=inputs["microbatches"],
    )


@st.composite
def schedules(draw: st.DrawFn, names: Sequence[str] = COMBINATORIC, max_pp: int = 7) -> PipelineSchedule:
    """Any schedule that the rules allow, of any size up to a few ranks."""
    name = draw(st.sampled_from(names))
    pp, microbatches = draw(st.integers(1, max_pp)), draw(st.integers(1, 4 * max_pp))
    vpp = draw(st.integers(2, 4)) if name in SEVERAL else CHUNKS.get(name, 1)
    if name == "dualpipe":
        pp, microbatches = pp + pp % 2, microbatches + microbatches % 2
    if name.startswith("dualpipe"):
        microbatches = max(microbatches, 2 * pp)
    if name in SEVERAL:
        pp = max(pp, 2)
    assert schedule_violations(name, pp, vpp, microbatches) == ()
    return build_schedule(name, pp=pp, vpp=vpp, microbatches=microbatches)


def profile_of(
    schedule: PipelineSchedule,
    *,
    forward: float | Sequence[float],
    backward_input: float | Sequence[float],
    backward_weight: float | Sequence[float],
    hop: float = 0.0,
) -> StageProfile:
    """A profile with these times for every virtual stage, or one for each, and no memory."""
    ones = np.ones(schedule.num_stages)
    return StageProfile(
        forward=ones * forward,
        backward_input=ones * backward_input,
        backward_weight=ones * backward_weight,
        hop=hop,
        activation=ones,
        freed_by_input=0 * ones,
        limit=np.full(schedule.pp, np.inf),
    )
