"""Deadlock as a diagnosis: which rank class stands at which task, and whom it waits for.

Blocked streams wait for each other: for the stream that would record an event, or for those that have not come to a
meeting. Following that leads to a **cause**, a stream that waits for what will never be, or back to where it began: a
**circle**. The text names the causes, or the shortest circle if there are none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import numpy.typing as npt

from simulator.engine.call_lists import call_lists
from simulator.engine.program import Program, Task
from simulator.errors import SimulatorError

MAX_LINES = 10
MAX_NAMES = 4
MAX_ABSENT = 8
"""Of those who have not come to a meeting, so many are followed; each leads to a cause or into a circle."""
MAX_LOOKS = 1_000_000
"""After that many looks at who waits for whom, the shortest circle found so far will do."""

Stream = tuple[int, int]
"""(class, stream)."""


class DeadlockError(SimulatorError):
    """No task can begin any more although some have not run; the text says who waits for whom."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockedStream:
    """A stream that has not finished its tasks."""

    class_index: int
    """Its class."""
    call: int
    """Position in `RankClass.calls` of the call it stands in."""
    task: int
    """Position in the routine of the task it cannot begin."""
    missing_event: int | None
    """First event slot of the task's waits that is not recorded; None if it stands in a meeting."""


def deadlock_error(program: Program, blocked: Sequence[BlockedStream]) -> DeadlockError:
    """Return the error that explains why nothing goes on: its causes, or else the shortest circle.

    Args:
        program: The program that was run.
        blocked: All blocked streams in the order (class, stream).
    """
    known = _Blocked(program=program, streams={_stream_of(program, each): each for each in blocked})
    num_classes = len({each.class_index for each in blocked})
    causes = {
        number: (number, stream) for number, stream in reversed(known.streams) if known.is_cause((number, stream))
    }
    told = [causes[number] for number in sorted(causes)]
    why = ""
    if not told:
        told = _shortest_circle(known.streams, known.awaited)
        why = ", for they wait for each other in a circle" if len(told) > 1 else ""
    lines = [f"deadlock: {num_classes} of {len(program.classes)} rank classes cannot go on{why}"]
    lines += [f"  {known.describe(stream)}" for stream in told[:MAX_LINES]]
    num_told = len({number for number, _ in told[:MAX_LINES]})
    if len(told) > MAX_LINES and not causes:
        lines.append(f"  and so on: {len(told) - MAX_LINES} more, back to {program.classes[told[0][0]].name}")
    elif num_classes > num_told:
        more = num_classes - num_told
        lines.append(f"  and {more} more rank class{'es wait' if more > 1 else ' waits'}")
    return DeadlockError("\n".join(lines))


def _stream_of(program: Program, blocked: BlockedStream) -> Stream:
    return blocked.class_index, _task(program, blocked).stream


def _task(program: Program, blocked: BlockedStream) -> Task:
    routine = int(program.classes[blocked.class_index].calls[blocked.call, 0])
    return program.routines[routine].tasks[blocked.task]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Recorder:
    """The task that would record an event."""

    call: str
    """Routine and index."""
    task: Task


@dataclass(kw_only=True)
class _Blocked:
    """All blocked streams, and who waits for whom."""

    program: Program
    streams: dict[Stream, BlockedStream]
    _recorders: dict[tuple[int, int, int], _Recorder | None] = field(default_factory=dict)

    @cached_property
    def users(self) -> dict[int, list[Stream]]:
        """For each communicator: the streams that use it."""
        users: dict[int, list[Stream]] = {}
        for each in call_lists(self.program):
            tasks = [task for number in each.routines for task in self.program.routines[number].tasks]
            slots = {(task.communicator, task.stream) for task in tasks if task.communicator is not None}
            for number in each.classes.tolist():
                for slot, stream in slots:
                    users.setdefault(self.program.classes[number].communicators[slot], []).append((number, stream))
        return users

    @cached_property
    def absent(self) -> dict[int, list[Stream]]:
        """For each communicator in which somebody stands: the streams that use it and have not come."""
        standing = {stream: self.communicator(stream) for stream in self.streams}
        return {
            communicator: [user for user in sorted(self.users[communicator]) if standing.get(user) != communicator]
            for communicator in set(standing.values()) - {None}
            if communicator is not None
        }

    def communicator(self, stream: Stream) -> int | None:
        """Return the communicator in which a stream stands, or None if it waits for an event."""
        blocked = self.streams[stream]
        slot = _task(self.program, blocked).communicator
        if blocked.missing_event is not None or slot is None:
            return None
        return self.program.classes[blocked.class_index].communicators[slot]

    def recorder(self, stream: Stream) -> _Recorder | None:
        """Return the task that would record the event that a stream waits for; None if there is none."""
        blocked = self.streams[stream]
        slot, calls = blocked.missing_event, self.program.classes[blocked.class_index].calls
        if slot is None:
            return None
        index = int(calls[blocked.call, 1])
        key = id(calls), slot, index
        if key not in self._recorders:
            self._recorders[key] = self._find_recorder(calls, slot, index)
        return self._recorders[key]

    def _find_recorder(self, calls: npt.NDArray[np.int32], slot: int, index: int) -> _Recorder | None:
        shared = self.program.events[slot].shared_over_calls
        chosen = calls if shared else calls[calls[:, 1] == index]
        for number, index_of_call in chosen.tolist():
            routine = self.program.routines[number]
            for task in routine.tasks:
                if task.records == slot:
                    return _Recorder(call=f"{routine.name} {index_of_call}", task=task)
        return None

    def awaited(self, stream: Stream) -> list[Stream]:
        """Return the blocked streams that a blocked stream waits for, or some of them if they are many."""
        communicator = self.communicator(stream)
        if communicator is not None:
            return [other for other in self.absent[communicator] if other in self.streams][:MAX_ABSENT]
        recorder = self.recorder(stream)
        return [] if recorder is None else [(stream[0], recorder.task.stream)]

    def is_cause(self, stream: Stream) -> bool:
        """Return whether a stream waits for what will never be: an event without a task, a class that is done."""
        communicator = self.communicator(stream)
        if communicator is None:
            return self.recorder(stream) is None
        has_all = len(self.users[communicator]) == self.program.communicators[communicator].participants
        return not has_all or any(other not in self.streams for other in self.absent[communicator])

    def describe(self, stream: Stream) -> str:
        """Return the line that says where a stream stands and for whom it waits."""
        blocked = self.streams[stream]
        rank_class, task = self.program.classes[blocked.class_index], _task(self.program, blocked)
        routine, index = rank_class.calls[blocked.call].tolist()
        place = f"{rank_class.name}: {self.program.routines[routine].name} {index}, task `{task.name}`, waits"
        communicator = self.communicator(stream)
        if communicator is not None:
            group = self.program.communicators[communicator].name
            return f"{place} in communicator `{group}` for {self._who(communicator)}"
        event = self.program.events[blocked.missing_event or 0]
        which = f"{place} for event `{event.name}`" + ("" if event.shared_over_calls else f" {index}")
        recorder = self.recorder(stream)
        if recorder is None:
            return f"{which}, which nothing records"
        if recorder.task.stream == stream[1]:
            return f"{which}, which the same stream records only later: {recorder.call}, task `{recorder.task.name}`"
        return f"{which} of task `{recorder.task.name}` of {recorder.call}"

    def _who(self, communicator: int) -> str:
        """Return the names of those who have not come to a meeting; first those who never will."""
        absent = sorted(self.absent[communicator], key=lambda other: other in self.streams)
        names = [
            self.program.classes[other[0]].name + ("" if other in self.streams else " (has finished)")
            for other in absent[:MAX_NAMES]
        ]
        if len(absent) > MAX_NAMES:
            names.append(f"{len(absent) - MAX_NAMES} more")
        users, group = len(self.users[communicator]), self.program.communicators[communicator]
        if users < group.participants:
            names.append(f"{group.participants - users} of its {group.participants} participants, which do not exist")
        return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def _shortest_circle(streams: Iterable[Stream], awaited: Callable[[Stream], list[Stream]]) -> list[Stream]:
    """Return the streams of the shortest circle, the lowest first; each waits for the next and the last for the first.

    Args:
        streams: All blocked streams, of which each waits for at least one other.
        awaited: Whom a stream waits for.
    """
    shortest: list[Stream] = []
    looks = 0
    for start in streams:
        if shortest and (looks > MAX_LOOKS or len(shortest) == 1):
            break
        come_from: dict[Stream, Stream] = {}
        frontier, length, found = [start], 1, False
        while frontier and not found and (not shortest or length < len(shortest)):
            following = []
            for stream in frontier:
                for other in awaited(stream):
                    looks += 1
                    if other not in come_from:
                        come_from[other] = stream
                        following.append(other)
            found = start in come_from
            frontier, length = following, length + 1
        if found:
            shortest = [start]
            while come_from[shortest[0]] != start:
                shortest.insert(0, come_from[shortest[0]])
            # The start stands last here: whoever waits for it comes before it.
    first = shortest.index(min(shortest))
    return shortest[first:] + shortest[:first]
