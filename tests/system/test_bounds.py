"""A step takes at least every lower bound and at most all its tasks in a row, by evaluators that know no engine."""

from __future__ import annotations

import math
from collections import defaultdict, deque
from collections.abc import Iterator, Sequence

from hypothesis import given, settings

from simulator.config.scenario import Scenario
from simulator.engine import Program, Task
from simulator.engine.program import PICOSECONDS_PER_SECOND
from simulator.simulate import run_steps
from tests.system.jobs import scenarios

often = settings(max_examples=40, deadline=None, derandomize=True)
COMPUTE = 0


@often
@given(scenario=scenarios())
def test_a_step_takes_at_least_its_busiest_compute_stream(scenario: Scenario) -> None:
    simulated = run_steps(scenario)
    program = simulated.step.program
    busiest = max(
        sum(task.duration_ps for _, task in _tasks(program, number) if task.stream == COMPUTE and not task.demands)
        for number in range(len(program.classes))
    )
    assert 0 < busiest <= simulated.timeline.makespan_ps


@often
@given(scenario=scenarios())
def test_a_step_takes_at_least_the_bytes_of_its_busiest_resource_over_its_capacity(scenario: Scenario) -> None:
    simulated = run_steps(scenario)
    program, timeline = simulated.step.program, simulated.timeline
    carried = [0] * len(program.resources)
    for number, rank_class in enumerate(program.classes):
        for _, task in _tasks(program, number):
            for demand in task.demands:
                sharers = rank_class.sharers[demand.resource] if rank_class.sharers else 1
                carried[rank_class.resources[demand.resource]] += sharers * demand.bytes
    assert carried == timeline.resource_bytes.tolist()
    for resource, count in enumerate(carried):
        needed_ps = count / program.resources[resource].bytes_per_s * PICOSECONDS_PER_SECOND
        # Rates are floating-point numbers: a link may seem to carry 1e-9 more than it can.
        assert needed_ps <= timeline.resource_busy_ps[resource] * (1 + 1e-9) + 1
        assert timeline.resource_busy_ps[resource] <= timeline.makespan_ps


@often
@given(scenario=scenarios())
def test_a_step_takes_at_least_its_longest_path_and_at_most_all_tasks_in_a_row(scenario: Scenario) -> None:
    simulated = run_steps(scenario)
    longest_ps, in_a_row_ps = longest_path_and_sum_ps(simulated.step.program)
    makespan_ps = simulated.timeline.makespan_ps
    assert longest_ps <= makespan_ps
    # A rate that changes rounds an end up by less than a picosecond and a part in 1e9.
    assert makespan_ps <= in_a_row_ps * (1 + 1e-9) + simulated.timeline.events


def longest_path_and_sum_ps(program: Program) -> tuple[int, int]:
    """The longest chain of tasks that wait for each other, each as long as it is alone; and all tasks in a row.

    A node is a task, or all tasks of one meeting; it waits for the nodes before it on its streams and for those that
    record its events.
    """
    nodes: dict[object, list[tuple[int, Task]]] = defaultdict(list)
    waits_for: dict[object, set[object]] = defaultdict(set)
    recorded_by: dict[tuple[int, int, int], object] = {}
    waits: list[tuple[object, tuple[int, int, int]]] = []
    for number, rank_class in enumerate(program.classes):
        before: dict[int, object] = {}
        met: dict[int, int] = defaultdict(int)
        for place, (index, task) in enumerate(_tasks(program, number)):
            node: object = ("task", number, place)
            if task.communicator is not None:
                communicator = rank_class.communicators[task.communicator]
                node = ("meeting", communicator, met[communicator])
                met[communicator] += 1
            nodes[node].append((number, task))
            if task.stream in before:
                waits_for[node].add(before[task.stream])
            before[task.stream] = node
            waits += [(node, _event(program, number, slot, index)) for slot in task.waits]
            if task.records is not None:
                recorded_by[_event(program, number, task.records, index)] = node
    for node, event in waits:
        waits_for[node].add(recorded_by[event])
    followers: dict[object, list[object]] = defaultdict(list)
    for node, others in waits_for.items():
        for other in others:
            followers[other].append(node)
    missing = {node: len(waits_for[node]) for node in nodes}
    ready = deque(node for node, count in missing.items() if count == 0)
    begin: dict[object, int] = defaultdict(int)
    longest, in_a_row, done = 0, 0, 0
    while ready:
        node = ready.popleft()
        done += 1
        alone = _alone_ps(program, nodes[node])
        in_a_row += alone
        longest = max(longest, begin[node] + alone)
        for follower in followers[node]:
            begin[follower] = max(begin[follower], begin[node] + alone)
            missing[follower] -= 1
            if missing[follower] == 0:
                ready.append(follower)
    assert done == len(nodes)
    return longest, in_a_row


def _tasks(program: Program, number: int) -> Iterator[tuple[int, Task]]:
    """(index of the call, task) of a class, in the order of enqueueing."""
    for routine, index in program.classes[number].calls.tolist():
        for task in program.routines[routine].tasks:
            yield index, task


def _event(program: Program, number: int, slot: int, index: int) -> tuple[int, int, int]:
    return number, slot, 0 if program.events[slot].shared_over_calls else index


def _alone_ps(program: Program, members: Sequence[tuple[int, Task]]) -> int:
    """Latency, and the bytes of the resource that needs longest for them."""
    carried: dict[int, int] = defaultdict(int)
    for number, task in members:
        for demand in task.demands:
            carried[program.classes[number].resources[demand.resource]] += demand.bytes
    seconds = max((count / program.resources[resource].bytes_per_s for resource, count in carried.items()), default=0)
    latency_ps = max(task.duration_ps for _, task in members)
    return latency_ps + (max(1, math.ceil(seconds * PICOSECONDS_PER_SECOND)) if any(carried.values()) else 0)
