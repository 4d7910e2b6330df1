"""An outside opinion on a schedule: SimPy runs it, one process a rank and one store a message.

Shares no code with the engine or with `time_schedule`. Stage times are of one microbatch through one *virtual stage*.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import simpy

from simulator.schedule import Action, ActionKind, PipelineSchedule

StageTimes = float | Sequence[float]
"""Seconds of every virtual stage, or one value for each."""
Message = tuple[str, int, int]
"""What it carries, and the stage and microbatch that it is for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PipelineRun:
    """When each rank of a simulated pipeline worked."""

    begins_s: tuple[tuple[float, ...], ...]
    """Per rank, when each of its actions began."""
    ends_s: tuple[tuple[float, ...], ...]
    """Per rank, when each of its actions ended."""
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
    schedule: PipelineSchedule,
    forward_s: StageTimes,
    backward_s: StageTimes,
    hop_s: float = 0.0,
    *,
    weight_s: StageTimes = 0.0,
    pair_s: float | None = None,
) -> PipelineRun:
    """Runs a schedule; weight_s is the part of backward_s that is of weights, pair_s the time of a joined pair.

    A message to another rank arrives hop_s after the action ends; the sender is not held up and messages never wait
    for each other. Between stages of one rank there is no hop.
    """
    environment = simpy.Environment()
    inbox: dict[Message, simpy.Store] = defaultdict(lambda: simpy.Store(environment))
    chain = schedule.num_stages // schedule.directions
    whole, weight = _per_stage(backward_s, schedule.num_stages), _per_stage(weight_s, schedule.num_stages)
    seconds: dict[ActionKind, Callable[[int], float]] = {
        ActionKind.FORWARD: _per_stage(forward_s, schedule.num_stages),
        ActionKind.BACKWARD: whole,
        ActionKind.BACKWARD_INPUT: lambda stage: whole(stage) - weight(stage),
        ActionKind.BACKWARD_WEIGHT: weight,
    }
    begins: list[list[float]] = [[] for _ in range(schedule.pp)]
    ends: list[list[float]] = [[] for _ in range(schedule.pp)]
    busy, sends = [0.0] * schedule.pp, [0] * schedule.pp

    def deliver(message: Message, delay_s: float) -> Generator[Any, Any, None]:
        yield environment.timeout(delay_s)
        yield inbox[message].put("arrived")

    def work(rank: int) -> Generator[Any, Any, None]:
        for group in _groups(schedule, rank):
            for action in group:
                for message in _needs(action, chain):
                    yield inbox[message].get()
            begins[rank] += [environment.now] * len(group)
            duration_s = sum(seconds[action.kind](action.stage) for action in group)
            if len(group) == 2 and pair_s is not None:
                duration_s = pair_s
            yield environment.timeout(duration_s)
            ends[rank] += [environment.now] * len(group)
            busy[rank] += duration_s
            for action in group:
                for message in _makes(action, chain):
                    remote = schedule.stage_to_rank[message[1]] != rank
                    sends[rank] += remote
                    environment.process(deliver(message, hop_s if remote else 0.0))

    for rank in range(schedule.pp):
        environment.process(work(rank))
    environment.run()
    finished = sum(len(times) for times in ends)
    if finished != schedule.num_actions:
        raise AssertionError(f"deadlock: {finished} of {schedule.num_actions} actions ran")
    makespan_s = max(times[-1] for times in ends)
    return PipelineRun(
        begins_s=tuple(map(tuple, begins)),
        ends_s=tuple(map(tuple, ends)),
        makespan_s=makespan_s,
        span_s=tuple(last[-1] - first[0] for first, last in zip(begins, ends, strict=True)),
        idle_s=tuple(makespan_s - seconds_busy for seconds_busy in busy),
        sends=tuple(sends),
    )


def _groups(schedule: PipelineSchedule, rank: int) -> Iterator[list[Action]]:
    """Actions of a rank, joined ones together."""
    group: list[Action] = []
    for action in schedule.actions(rank):
        group.append(action)
        if not action.joined:
            yield group
            group = []


def _needs(action: Action, chain: int) -> list[Message]:
    """Messages that an action waits for; chain is the number of stages of a direction."""
    stage, microbatch = action.stage, action.microbatch
    if action.kind is ActionKind.FORWARD:
        return [("activation", stage, microbatch)] if stage % chain > 0 else []
    if action.kind is ActionKind.BACKWARD_WEIGHT:
        return [("gradient of outputs", stage, microbatch)]
    kept = [("kept", stage, microbatch)]
    return kept + ([("gradient", stage, microbatch)] if stage % chain < chain - 1 else [])


def _makes(action: Action, chain: int) -> list[Message]:
    """Messages that an action sends, to its own stage or to a neighbour of the same direction."""
    stage, microbatch = action.stage, action.microbatch
    if action.kind is ActionKind.FORWARD:
        sent = [("activation", stage + 1, microbatch)] if stage % chain < chain - 1 else []
        return [("kept", stage, microbatch), *sent]
    if action.kind is ActionKind.BACKWARD_WEIGHT:
        return []
    sent = [("gradient", stage - 1, microbatch)] if stage % chain > 0 else []
    own = [("gradient of outputs", stage, microbatch)] if action.kind is ActionKind.BACKWARD_INPUT else []
    return own + sent


def _per_stage(times: StageTimes, num_stages: int) -> Callable[[int], float]:
    if isinstance(times, Sequence):
        if len(times) != num_stages:
            raise AssertionError(f"{len(times)} stage times for {num_stages} stages")
        return lambda stage: float(times[stage])
    return lambda stage: float(times)
