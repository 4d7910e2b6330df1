"""Arrows of a trace: from the sender of a pipeline message to its receiver, and from what was waited for to the waiter.

Three kinds of waits get an arrow: of a send on the pass that made the message, of a pass on a message that it
receives, and of the compute stream on any other stream where it stood still for it. So the way of a microbatch through
the pipeline can be followed from box to box, and each gap of the compute stream says what it waited for.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from simulator.engine.program import Program, Task

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


class _Run(NamedTuple):
    """A span with its task; there are as many as spans, and a tuple is made four times as fast as a dataclass."""

    row: int
    task: Task
    place: tuple[int, int]
    """Routine and position of the task."""
    on_compute: bool
    call_index: int
    end_ps: int


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
    # The k-th message on a communicator is the k-th of its sender and of its receiver.
    sent: defaultdict[int, list[int]] = defaultdict(list)
    received: defaultdict[int, list[int]] = defaultdict(list)
    waits: list[Flow] = []
    for number in np.unique(spans["class"]).tolist():
        runs = _runs(program, spans, np.flatnonzero(spans["class"] == number))
        communicators = program.classes[number].communicators
        for run in runs:
            if run.task.communicator is not None and (run.place in sends or run.place in receives):
                (sent if run.place in sends else received)[communicators[run.task.communicator]].append(run.row)
        waits += _waits(program, runs, sends=sends, receives=receives)
    messages = [
        Flow(name=MESSAGE, source=source, target=target)
        for communicator in sorted(sent)
        for source, target in zip(sent[communicator], received[communicator], strict=False)
    ]
    return messages + waits


def _runs(program: Program, spans: npt.NDArray[np.void], rows: npt.NDArray[np.int64]) -> list[_Run]:
    columns = (spans[name][rows].tolist() for name in ("routine", "task", "stream", "index", "end_ps"))
    return [
        _Run(row, program.routines[routine].tasks[at], (routine, at), stream == _COMPUTE, index, end_ps)
        for row, routine, at, stream, index, end_ps in zip(rows.tolist(), *columns, strict=True)
    ]


def _waits(
    program: Program,
    runs: Sequence[_Run],
    *,
    sends: frozenset[tuple[int, int]],
    receives: frozenset[tuple[int, int]],
) -> list[Flow]:
    """Returns the waits of one class that get an arrow."""
    recorded = {
        (run.task.records, _event_index(program, run.task.records, run.call_index)): run
        for run in runs
        if run.task.records is not None
    }
    flows: list[Flow] = []
    free_ps = 0
    for run in runs:
        is_send = run.place in sends
        if run.task.waits and (run.on_compute or is_send):
            events = [recorded[slot, _event_index(program, slot, run.call_index)] for slot in run.task.waits]
            chosen = {event.row for event in events if event.place in receives}
            latest = max(events, key=lambda event: (event.end_ps, event.row))
            if is_send or latest.end_ps > free_ps:
                chosen.add(latest.row)
            flows += [Flow(name=WAIT, source=source, target=run.row) for source in sorted(chosen)]
        if run.on_compute:
            free_ps = run.end_ps
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
