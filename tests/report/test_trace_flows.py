"""Arrows and actions of a trace, and the form of the whole file."""

import json
from collections import defaultdict
from dataclasses import replace
from fractions import Fraction
from io import StringIO
from typing import Any

import numpy as np
import pytest

from simulator.report.simulated import Simulated
from simulator.report.trace import Trace, write_trace
from simulator.report.trace_pipeline import traced_pipeline
from tests.report.runs import simulated

MICROSECOND_PS = 1_000_000
Event = dict[str, Any]
KEYS = {
    "M": {"name", "ph", "pid", "args"},
    "C": {"name", "ph", "pid", "ts", "args"},
    "X": {"name", "cat", "ph", "pid", "tid", "ts", "dur", "args"},
    "s": {"name", "cat", "ph", "id", "pid", "tid", "ts"},
    "f": {"name", "cat", "ph", "bp", "id", "pid", "tid", "ts"},
}
"""What the format asks for, by phase; M may have a tid, X of an action a cname."""
SHAPES = [
    *((4, 1, 8, "", True), (2, 2, 4, "", True), (4, 1, 8, "", False), (1, 1, 2, "", True)),
    *((4, 1, 8, "zb-h1", True), (4, 1, 8, "dualpipe", True)),
]


def trace_of(step: Simulated, classes: tuple[int, ...] | None = None) -> Trace:
    names = tuple(each.name for each in step.step.program.classes)
    pipeline = traced_pipeline(step.step, step.schedule)
    return Trace(
        program=step.step.program, timeline=step.timeline, class_names=names, classes=classes, pipeline=pipeline
    )


def written(trace: Trace) -> str:
    file = StringIO()
    write_trace(trace, file)
    return file.getvalue()


def events(text: str) -> list[Event]:
    data = json.loads(text, parse_float=lambda number: Fraction(number) * MICROSECOND_PS)
    found: list[Event] = data["traceEvents"]
    return found


@pytest.fixture(params=SHAPES, ids=str)
def step(request: pytest.FixtureRequest) -> Simulated:
    pp, vpp, microbatches, schedule, beside = request.param
    return simulated(pp, vpp, microbatches, schedule=schedule, sends_beside=beside)


def test_every_event_has_the_keys_of_its_phase(step: Simulated) -> None:
    for event in events(written(trace_of(step))):
        assert KEYS[event["ph"]] <= set(event) <= KEYS[event["ph"]] | {"tid", "cname"}
        assert event["pid"] > 0
        assert event.get("tid", 1) > 0
        assert event.get("bp", "e") == "e"


def test_every_arrow_has_its_two_ends_within_tasks_and_in_order(step: Simulated) -> None:
    ends: defaultdict[int, dict[str, Event]] = defaultdict(dict)
    owner: Event = {}
    for event in events(written(trace_of(step))):
        if event["ph"] == "X":
            owner = event
        elif event["ph"] in ("s", "f"):
            # A viewer binds it to the task that it read last on that thread.
            assert (event["pid"], event["tid"]) == (owner["pid"], owner["tid"])
            assert owner["ts"] <= event["ts"] <= owner["ts"] + owner["dur"]
            assert event["ph"] not in ends[event["id"]]
            ends[event["id"]][event["ph"]] = event
    assert sorted(ends) == list(range(1, len(ends) + 1))
    for pair in ends.values():
        assert set(pair) == {"s", "f"}
        assert pair["s"]["name"] == pair["f"]["name"]
        assert pair["s"]["ts"] <= pair["f"]["ts"]


def test_every_message_between_ranks_has_an_arrow_from_its_sender_to_its_receiver(step: Simulated) -> None:
    found = events(written(trace_of(step)))
    sources = [event["pid"] - 1 for event in found if event["ph"] == "s" and event["name"] == "message"]
    assert tuple(sources.count(rank) for rank in range(step.schedule.pp)) == step.schedule.messages_sent()
    ways = defaultdict(set)
    for event in found:
        if event.get("name") == "message":
            ways[event["id"]].add((event["ph"], event["pid"]))
    neighbours = {(rank, (rank + way) % step.schedule.pp) for rank in range(step.schedule.pp) for way in (1, -1)}
    for way in ways.values():
        ranks = {phase: pid - 1 for phase, pid in way}
        assert (ranks["s"], ranks["f"]) in neighbours


def test_messages_to_classes_that_are_not_in_the_file_have_no_arrow() -> None:
    step = simulated()
    found = events(written(trace_of(step, classes=(0, 1))))
    sources = [event["pid"] for event in found if event["ph"] == "s" and event["name"] == "message"]
    assert {event["pid"] for event in found} == {1, 2}
    assert (sources.count(1), sources.count(2)) == (8, 8)


def test_an_arrow_leads_to_each_task_that_stood_still_for_an_event() -> None:
    step = simulated()
    found = events(written(trace_of(step)))
    tasks = [task for routine in step.step.program.routines for task in routine.tasks]
    meetings = {task.name for task in tasks if task.communicator is not None}
    waiting = {(event["pid"], event["tid"], event["ts"]) for event in found if event["ph"] == "f"}
    free: dict[int, Fraction] = defaultdict(Fraction)
    gaps = 0
    for event in found:
        if event["ph"] == "X" and event["tid"] == 1:
            stood_still = event["ts"] > free[event["pid"]]
            if stood_still and event["name"] not in meetings:
                assert (event["pid"], 1, event["ts"] + event["dur"] // 2) in waiting
                gaps += 1
            free[event["pid"]] = event["ts"] + event["dur"]
    assert gaps > 10


def test_the_way_of_a_microbatch_can_be_followed_from_rank_to_rank() -> None:
    step = simulated()
    links = defaultdict(set)
    owner: tuple[Any, ...] = ()
    ids: defaultdict[int, dict[str, tuple[Any, ...]]] = defaultdict(dict)
    for event in events(written(trace_of(step))):
        if event["ph"] == "X":
            owner = (event["pid"], event["tid"], event["args"].get("routine"), event["args"].get("index"))
        elif event["ph"] in ("s", "f"):
            ids[event["id"]][event["ph"]] = owner
    for pair in ids.values():
        links[pair["s"]].add(pair["f"])
    ways = [(1, 1, "forward", 3), (4, 1, "backward", 3)]  # it turns round on the last rank
    reached = set(ways)
    while ways:
        for following in links[ways.pop()] - reached:
            reached.add(following)
            ways.append(following)
    assert {(rank, 1, "forward", 3) for rank in (1, 2, 3, 4)} <= reached
    assert {(rank, 1, "backward", 3) for rank in (1, 2, 3)} <= reached


def test_actions_are_a_track_of_their_own_above_the_streams(step: Simulated) -> None:
    found = events(written(trace_of(step)))
    track = len(step.step.program.streams) + 1
    names = {
        (event["pid"], event["args"]["name"])
        for event in found
        if event.get("tid") == track and event["ph"] == "M" and event["name"] == "thread_name"
    }
    assert names == {(rank + 1, "actions") for rank in range(step.schedule.pp)}
    order = [
        event["args"]["sort_index"] for event in found if event["name"] == "thread_sort_index" and event["tid"] == track
    ]
    assert set(order) == {-1}
    for rank in range(step.schedule.pp):
        mine = [event for event in found if event["ph"] == "X" and (event["pid"], event["tid"]) == (rank + 1, track)]
        names = [event["name"] for event in mine]
        assert names == expected_names(step, rank)


def expected_names(step: Simulated, rank: int) -> list[str]:
    words = {"F": "forward", "B": "backward", "I": "backward of inputs", "W": "backward of weights"}
    schedule, names, joined = step.schedule, [], False
    for action in schedule.actions(rank):
        # The second direction counts on from the first.
        microbatch = action.microbatch + action.stage // schedule.chain * schedule.microbatches_per_direction
        name = f"{words[action.kind]} {microbatch}"
        if joined:
            names[-1] += f" + {name}"
        else:
            names.append(name)
        joined = action.joined
    return names


def test_the_same_input_gives_the_same_bytes() -> None:
    step = simulated()
    assert written(trace_of(step)) == written(trace_of(step))
    assert step.timeline.spans is not None
    copied = replace(step.timeline, spans=np.array(step.timeline.spans))
    assert written(replace(trace_of(step), timeline=copied)) == written(trace_of(step))
