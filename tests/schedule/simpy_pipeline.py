"""An outside opinion on a schedule: SimPy runs it, one process a rank and one store a message.

Shares no code with the engine. Stage times are of one microbatch through one *virtual stage*.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any

import simpy

from simulator.schedule import ActionKind, PipelineSchedule

StageTimes = float | Sequence[float]
"""Seconds of every virtual stage, or one value for each."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PipelineRun:
    """When each rank of a simulated pipeline worked."""

    makespan_s: float
    """Start of the first action to end of the last one."""
    span_s: tuple[float, ...]
    """Per rank, start of its first action to end of its last one."""
    idle_s: tuple[float, ...]
    """Per rank, makespan less its busy time."""
    sends: tuple[int, ...]
    """Per rank, messages sent to other ranks."""


def simpy_makespan(
    schedule: PipelineSchedule, forward_s: StageTimes, backward_s: StageTimes, hop_s: float = 0.0
) -> float:
    """Seconds from the first start to the last end; see `simpy_run`."""
    return simpy_run(schedule, forward_s, backward_s, hop_s).makespan_s


def simpy_run(
    schedule: PipelineSchedule, forward_s: StageTimes, backward_s: StageTimes, hop_s: float = 0.0
) -> PipelineRun:
    """Runs a schedule of whole backwards.

    A message to another rank arrives hop_s after the action ends; the sender is not held up and messages never wait
    for each other. Between stages of one rank there is no hop.
    """
    environment = simpy.Environment()
    inbox: dict[tuple[ActionKind, int, int], simpy.Store] = defaultdict(lambda: simpy.Store(environment))
    seconds = {
        ActionKind.FORWARD: _per_stage(forward_s, schedule.num_stages),
        ActionKind.BACKWARD: _per_stage(backward_s, schedule.num_stages),
    }
    starts = [float("inf")] * schedule.pp
    ends, busy = [0.0] * schedule.pp, [0.0] * schedule.pp
    sends, finished = [0] * schedule.pp, [0] * schedule.pp

    def deliver(key: tuple[ActionKind, int, int], delay_s: float) -> Generator[Any, Any, None]:
        yield environment.timeout(delay_s)
        yield inbox[key].put("arrived")

    def work(rank: int) -> Generator[Any, Any, None]:
        for action in schedule.actions(rank):
            receives, target = _edges(action.kind, action.stage, schedule.num_stages)
            for kind in receives:
                yield inbox[kind, action.stage, action.microbatch].get()
            starts[rank] = min(starts[rank], environment.now)
            duration_s = seconds[action.kind](action.stage)
            yield environment.timeout(duration_s)
            ends[rank] = environment.now
            busy[rank] += duration_s
            finished[rank] += 1
            if action.kind is ActionKind.FORWARD:  # what it kept for its own backward
                yield inbox[ActionKind.BACKWARD_WEIGHT, action.stage, action.microbatch].put("kept")
            if target is not None:
                remote = schedule.stage_to_rank[target] != rank
                sends[rank] += remote
                environment.process(deliver((action.kind, target, action.microbatch), hop_s if remote else 0.0))

    for rank in range(schedule.pp):
        environment.process(work(rank))
    environment.run()
    if sum(finished) != schedule.num_actions:
        raise AssertionError(f"deadlock: {sum(finished)} of {schedule.num_actions} actions ran")
    makespan_s = max(ends)
    return PipelineRun(
        makespan_s=makespan_s,
        span_s=tuple(end - start for start, end in zip(starts, ends, strict=True)),
        idle_s=tuple(makespan_s - seconds_busy for seconds_busy in busy),
        sends=tuple(sends),
    )


def _edges(kind: ActionKind, stage: int, num_stages: int) -> tuple[list[ActionKind], int | None]:
    """Kinds of messages an action waits for, and the stage that its result goes to."""
    if kind is ActionKind.FORWARD:
        return [ActionKind.FORWARD] if stage > 0 else [], stage + 1 if stage + 1 < num_stages else None
    kept = [ActionKind.BACKWARD_WEIGHT]
    return kept + ([ActionKind.BACKWARD] if stage + 1 < num_stages else []), stage - 1 if stage > 0 else None


def _per_stage(times: StageTimes, num_stages: int) -> Callable[[int], float]:
    if isinstance(times, Sequence):
        if len(times) != num_stages:
            raise AssertionError(f"{len(times)} stage times for {num_stages} stages")
        return lambda stage: float(times[stage])
    return lambda stage: float(times)
