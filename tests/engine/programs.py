"""Small programs for tests, and what it means that two timelines are equal."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest

from simulator.engine import (
    Communicator,
    Demand,
    EventSlot,
    Program,
    RankClass,
    Resource,
    Routine,
    Task,
    Timeline,
    counter_track,
    run,
)
from simulator.engine.reference import run_reference

BUBBLE, WORK, TALK, COPY = range(4)
COMPUTE, NETWORK, HOST = range(3)

Engine = Callable[[Program], Timeline]


def run_with_spans(program: Program) -> Timeline:
    """Run the compiled engine with all spans, as the reference engine does."""
    return run(program, record_spans=True)


both_engines = pytest.mark.parametrize("engine", [run_reference, run_with_spans], ids=["reference", "compiled"])


def work(duration_ps: int, **more: object) -> Task:
    return Task(**{"name": "work", "stream": COMPUTE, "category": WORK, "duration_ps": duration_ps, **more})  # type: ignore[arg-type]


def talk(duration_ps: int, **more: object) -> Task:
    return work(duration_ps, **{"name": "talk", "stream": NETWORK, "category": TALK, **more})


def moves(size: int, link: int = 0) -> tuple[Demand, ...]:
    return (Demand(resource=link, bytes=size),)


def program_of(
    *classes: Sequence[Task],
    links: Sequence[float] = (),
    communicators: Sequence[int] = (),
    events: int = 6,
    indices: int = 1,
    initial: tuple[int, ...] = (0, 0),
) -> Program:
    """Return a program in which each class calls one routine once for each index.

    Resource and communicator slots of every class are the program's resources and communicators.

    Args:
        classes: Tasks of each class.
        links: Bytes per second of each resource.
        communicators: Participants of each communicator.
        events: Number of event slots; the last is shared over calls.
        indices: How often each class calls its routine.
        initial: Level of the two counters before the first task.

    Returns:
        The program.
    """
    return Program(
        streams=("compute", "network", "host"),
        categories=("bubble", "work", "talk", "copy"),
        counters=("parameters", "activations"),
        events=tuple(EventSlot(name=f"event {slot}", shared_over_calls=slot == events - 1) for slot in range(events)),
        num_indices=indices,
        routines=tuple(Routine(name="step", tasks=tuple(tasks)) for tasks in classes),
        classes=tuple(
            RankClass(
                name=f"rank {number}",
                count=1,
                calls=np.array([(number, index) for index in range(indices)], dtype=np.int32),
                resources=tuple(range(len(links))),
                communicators=tuple(range(len(communicators))),
                initial=initial,
            )
            for number in range(len(classes))
        ),
        resources=tuple(Resource(name=f"link {n}", bytes_per_s=speed) for n, speed in enumerate(links)),
        communicators=tuple(Communicator(name=f"group {n}", participants=size) for n, size in enumerate(communicators)),
    )


def times(timeline: Timeline, class_index: int = 0) -> list[tuple[int, int]]:
    """Return begin and end of a class's tasks in the order (stream, sequence)."""
    assert timeline.spans is not None
    spans = timeline.spans[timeline.spans["class"] == class_index]
    return list(zip(spans["begin_ps"].tolist(), spans["end_ps"].tolist(), strict=True))


def assert_same(one: Timeline, other: Timeline) -> None:
    """Check that two timelines agree in every integer."""
    assert one.makespan_ps == other.makespan_ps
    assert one.events == other.events
    for name in ("end_ps", "time_ps", "busy_ps", "resource_bytes", "resource_busy_ps"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name), err_msg=name)
    assert one.counter_peaks == other.counter_peaks
    for class_index in range(len(one.end_ps)):
        for left, right in zip(counter_track(one, class_index), counter_track(other, class_index), strict=True):
            np.testing.assert_array_equal(left, right)
    if one.spans is not None and other.spans is not None:
        np.testing.assert_array_equal(one.spans, other.spans)
