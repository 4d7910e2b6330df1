import json
from collections import defaultdict
from dataclasses import replace
from fractions import Fraction
from io import StringIO
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.engine.program import CounterChange, EventSlot, Program, RankClass, Routine, Task
from simulator.engine.reference import run_reference
from simulator.engine.timeline import Timeline
from simulator.errors import SimulatorFault
from simulator.report.trace import Trace, TraceCoverage, choose_classes, write_trace

MICROSECOND_PS = 1_000_000
TASKS_PER_MICROBATCH = 3


def program(num_classes: int = 2, *, num_microbatches: int = 2) -> Program:
    """A forward of two tasks on stream 0 and a copy on stream 1 that waits for the first."""
    forward = Routine(
        name="forward",
        tasks=(
            Task(
                name='attention "forward"',
                stream=0,
                category=1,
                duration_ps=3 * MICROSECOND_PS + 7,
                records=0,
                at_start=(CounterChange(counter=0, delta=100),),
            ),
            Task(
                name="copy",
                stream=1,
                category=2,
                duration_ps=5 * MICROSECOND_PS,
                waits=(0,),
                at_start=(CounterChange(counter=1, delta=30),),
                at_end=(CounterChange(counter=1, delta=-30), CounterChange(counter=0, delta=-100)),
            ),
            Task(name="norm", stream=0, category=1, duration_ps=1),
        ),
    )
    calls = np.array([[0, index] for index in range(num_microbatches)], dtype=np.int32)
    return Program(
        streams=("compute", "copies"),
        categories=("bubble", "compute", "offload"),
        counters=("activations", "temporary"),
        events=(EventSlot(name="computed"),),
        num_indices=num_microbatches,
        routines=(forward,),
        classes=tuple(
            RankClass(name=f"class {at}", count=at + 1, calls=calls, initial=(1000, 0)) for at in range(num_classes)
        ),
        metadata={"scenario": "tiny", "another": "text"},
    )


def run(program: Program) -> Timeline:
    return run_reference(program)


def written(program: Program, timeline: Timeline, **options: int) -> tuple[str, TraceCoverage]:
    file = StringIO()
    names = tuple(f"pipeline rank {at}" for at in range(len(program.classes)))
    coverage = write_trace(Trace(program=program, timeline=timeline, class_names=names), file, **options)
    return file.getvalue(), coverage


def exact(text: str) -> dict[str, Any]:
    """Parses the trace with exact times in picoseconds."""
    data: dict[str, Any] = json.loads(text, parse_float=lambda number: Fraction(number) * MICROSECOND_PS)
    return data


def events(text: str, phase: str) -> list[dict[str, Any]]:
    return [event for event in exact(text)["traceEvents"] if event["ph"] == phase]


def test_every_task_is_an_event_with_its_exact_times() -> None:
    small = program()
    timeline = run(small)
    text, coverage = written(small, timeline)
    assert timeline.spans is not None
    spans = timeline.spans[timeline.spans["class"] == 1]
    found = {
        (event["tid"] - 1, event["ts"], event["ts"] + event["dur"]) for event in events(text, "X") if event["pid"] == 2
    }
    assert found == {(int(s["stream"]), int(s["begin_ps"]), int(s["end_ps"])) for s in spans}
    assert coverage == TraceCoverage(written_spans=12, total_spans=12, left_out=())


def test_an_event_names_its_task_routine_category_and_microbatch() -> None:
    small = program()
    event = [event for event in events(written(small, run(small))[0], "X") if event["name"].startswith("att")][1]
    assert event == {
        "name": 'attention "forward"',
        "cat": "compute",
        "ph": "X",
        "args": {"routine": "forward", "index": 1},
        "pid": 1,
        "tid": 1,
        "ts": 3 * MICROSECOND_PS + 8,
        "dur": 3 * MICROSECOND_PS + 7,
    }


@given(num_classes=st.integers(1, 3), num_microbatches=st.integers(1, 5))
def test_events_of_a_thread_follow_one_another(num_classes: int, num_microbatches: int) -> None:
    small = program(num_classes, num_microbatches=num_microbatches)
    threads = defaultdict(list)
    for event in events(written(small, run(small))[0], "X"):
        threads[event["pid"], event["tid"]].append(event)
    assert len(threads) == 2 * num_classes
    for thread in threads.values():
        for before, after in pairwise(thread):
            assert before["ts"] + before["dur"] <= after["ts"]


def test_classes_are_processes_and_streams_are_threads() -> None:
    small = program()
    names = [event for event in events(written(small, run(small))[0], "M") if event["name"].endswith("_name")]
    assert [(event["pid"], event.get("tid"), event["args"]["name"]) for event in names] == [
        (1, None, "pipeline rank 0 (x1)"),
        (1, 1, "compute"),
        (1, 2, "copies"),
        (2, None, "pipeline rank 1 (x2)"),
        (2, 1, "compute"),
        (2, 2, "copies"),
    ]


def test_memory_is_one_counter_with_all_categories_and_never_negative() -> None:
    small = program()
    counters = events(written(small, run(small))[0], "C")
    first = [event for event in counters if event["pid"] == 1]
    assert {event["name"] for event in counters} == {"memory"}
    assert [(event["ts"], event["args"]["activations"], event["args"]["temporary"]) for event in first] == [
        (0, 1100, 0),
        (3 * MICROSECOND_PS + 7, 1100, 30),
        (3 * MICROSECOND_PS + 8, 1200, 30),
        (8 * MICROSECOND_PS + 7, 1100, 30),
        (13 * MICROSECOND_PS + 7, 1000, 0),
    ]
    assert all(level >= 0 for event in counters for level in event["args"].values())


def test_counter_times_rise_within_a_process() -> None:
    small = program(2, num_microbatches=7)
    times = defaultdict(list)
    for event in events(written(small, run(small))[0], "C"):
        times[event["pid"]].append(event["ts"])
    assert all(before < after for track in times.values() for before, after in pairwise(track))


def test_the_same_input_gives_the_same_bytes() -> None:
    assert written(program(), run(program())) == written(program(), run(program()))


def test_the_order_in_which_spans_were_recorded_does_not_matter() -> None:
    small = program(3, num_microbatches=4)
    timeline = run(small)
    assert timeline.spans is not None
    shuffled = np.random.default_rng(1).permutation(timeline.spans)
    assert written(small, replace(timeline, spans=shuffled)) == written(small, timeline)


def test_the_file_describes_itself() -> None:
    small = program()
    data = exact(written(small, run(small))[0])
    assert data["otherData"] == {
        "program.another": "text",
        "program.scenario": "tiny",
        "generator": "shardsim",
        "makespan_us": "13.000007",
        "rank_classes": 2,
        "rank_classes_left_out": [],
        "spans": 12,
        "spans_written": 12,
    }


def test_beyond_the_budget_whole_classes_are_left_out_and_named() -> None:
    small = program(9)
    per_class = 2 * TASKS_PER_MICROBATCH
    text, coverage = written(small, run(small), max_spans=5 * per_class + 1)
    assert {event["pid"] for event in events(text, "X")} == {1, 3, 5, 7, 9}
    assert {event["pid"] for event in events(text, "C")} == {1, 3, 5, 7, 9}
    left_out = tuple(f"pipeline rank {at}" for at in (1, 3, 5, 7))
    assert coverage == TraceCoverage(written_spans=5 * per_class, total_spans=9 * per_class, left_out=left_out)
    assert exact(text)["otherData"]["rank_classes_left_out"] == list(left_out)


@given(st.lists(st.integers(0, 20), max_size=40), st.integers(0, 200))
def test_chosen_classes_stay_within_the_budget(sizes: list[int], max_spans: int) -> None:
    kept = choose_classes(sizes, max_spans=max_spans)
    assert kept <= set(range(len(sizes)))
    if sum(sizes) <= max_spans:
        assert len(kept) == len(sizes)
    else:
        assert 0 in kept
        assert len(kept) == 1 or sum(sizes[at] for at in kept) <= max_spans
        assert len(kept) < 2 or len(sizes) - 1 in kept


@pytest.mark.parametrize("count", [2, 3, 64, 1000])
def test_one_class_over_the_budget_costs_one_class(count: int) -> None:
    assert len(choose_classes([1] * count, max_spans=count - 1)) == count - 1


def test_a_timeline_without_spans_is_refused() -> None:
    small = program()
    with pytest.raises(SimulatorFault, match="record_spans"):
        written(small, replace(run(small), spans=None))


def test_names_must_match_the_classes() -> None:
    small = program()
    with pytest.raises(SimulatorFault, match="1 class names for 2 rank classes"):
        write_trace(Trace(program=small, timeline=run(small), class_names=("a",)), StringIO())
