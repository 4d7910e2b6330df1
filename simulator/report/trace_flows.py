"""Arrows of a trace: from the sender of a pipeline message to its receiver, and from what was waited for to the waiter.

Three kinds of waits get an arrow: of a send on the pass that made the message, of a pass on a message that it
receives, and of the compute stream on any other stream where it stood still for it. So the way of a microbatch through
the pipeline can be followed from box to box, and each gap of the compute stream says what it waited for.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from simulator.engine.program import Program, RankClass, Task

MESSAGE, WAIT = "message", "wait"
"""Names of the arrows."""
_COMPUTE = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Flow:
    """An arrow between two spans."""

    name: str
    """`MESSAGE` or `WAIT`."""
    source: int
    """Row of the span that it comes from."""
    target: int
    """Row of the span that it goes to."""


@dataclass(slots=True)
class _Meetings:
    """The spans of messages by communicator, in their order: ends of one message have the same place."""

    sent: defaultdict[int, list[int]] = field(default_factory=lambda: defaultdict(list))
    received: defaultdict[int, list[int]] = field(default_factory=lambda: defaultdict(list))


def find_flows(
    program: Program,
    spans: npt.NDArray[np.void],
    *,
    sends: frozenset[tuple[int, int]],
    receives: frozenset[tuple[int, int]],
) -> list[Flow]:
    """Returns the arrows between spans, in an order that depends on nothing but the input.

    Args:
        program: what ran.
        spans: executions of tasks (`SPAN_DTYPE`), those of one stream in their order.
        sends: (routine, task) of the tasks that send a message of the pipeline.
        receives: of those that receive one.
    """
    meetings = _Meetings()
    waits: list[Flow] = []
    for number in np.unique(spans["class"]).tolist():
        rows = np.flatnonzero(spans["class"] == number)
        _add_messages(meetings, program, spans, rows, sends=sends, receives=receives)
        waits += _waits(program, spans, rows, sends=sends, receives=receives)
    messages = [
        Flow(name=MESSAGE, source=source, target=target)
        for communicator in sorted(meetings.sent)
        for source, target in zip(meetings.sent[communicator], meetings.received[communicator], strict=False)
    ]
    return messages + waits


def _add_messages(
    meetings: _Meetings,
    program: Program,
    spans: npt.NDArray[np.void],
    rows: npt.NDArray[np.int64],
    *,
    sends: frozenset[tuple[int, int]],
    receives: frozenset[tuple[int, int]],
) -> None:
    for row, rank_class, task, place in _tasks(program, spans, rows):
        if task.communicator is not None and (place in sends or place in receives):
            ends = meetings.sent if place in sends else meetings.received
            ends[rank_class.communicators[task.communicator]].append(row)


def _tasks(
    program: Program, spans: npt.NDArray[np.void], rows: npt.NDArray[np.int64]
) -> Iterator[tuple[int, RankClass, Task, tuple[int, int]]]:
    columns = (spans[name][rows].tolist() for name in ("class", "routine", "task"))
    for row, number, routine, position in zip(rows.tolist(), *columns, strict=True):
        yield row, program.classes[number], program.routines[routine].tasks[position], (routine, position)


def _waits(
    program: Program,
    spans: npt.NDArray[np.void],
    rows: npt.NDArray[np.int64],
    *,
    sends: frozenset[tuple[int, int]],
    receives: frozenset[tuple[int, int]],
) -> list[Flow]:
    """Returns the waits of one class that get an arrow."""
    index = spans["index"]
    recorded = {
        (task.records, _event_index(program, task.records, int(index[row]))): (row, place)
        for row, _, task, place in _tasks(program, spans, rows)
        if task.records is not None
    }
    flows: list[Flow] = []
    free_ps = 0
    for row, _, task, place in _tasks(program, spans, rows):
        on_compute = int(spans["stream"][row]) == _COMPUTE
        if task.waits and (on_compute or place in sends):
            events = {recorded[slot, _event_index(program, slot, int(index[row]))] for slot in task.waits}
            chosen = {event for event in events if event[1] in receives}
            latest = max(events, key=lambda event: (int(spans["end_ps"][event[0]]), event[0]))
            if place in sends or int(spans["end_ps"][latest[0]]) > free_ps:
                chosen.add(latest)
            flows += [Flow(name=WAIT, source=source, target=row) for source, _ in sorted(chosen)]
        if on_compute:
            free_ps = int(spans["end_ps"][row])
    return flows


def _event_index(program: Program, slot: int, index: int) -> int:
    return 0 if program.events[slot].shared_over_calls else index


def by_row(flows: Sequence[Flow]) -> dict[int, list[tuple[int, bool]]]:
    """Returns for each span the arrows that end at it: their numbers, and whether it is the source."""
    found: defaultdict[int, list[tuple[int, bool]]] = defaultdict(list)
    for number, flow in enumerate(flows):
        found[flow.source].append((number, True))
        found[flow.target].append((number, False))
    return found
