"""Where the events of a class are kept, and which waits need them.

Most events live and die inside one call: one stream of the class records them, another waits for them. They get a row
of entries that the call has only while it is under way (`simulator.engine.tables`). So a class needs room for the
calls that are under way at once, not for all its calls.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from simulator.engine.program import Program, Task
from simulator.engine.tables import OWN_CALL

COMPUTE_STREAM = 0
ROW_HEAD = 1
"""A row begins with the number of streams that have yet to leave the call."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EventPlaces:
    """Where the events of a routine are kept, for the classes that call the same routines."""

    places: tuple[tuple[int, tuple[int, int, bool]], ...]
    """For each slot that is kept: offset and stride of its events (stride `OWN_CALL`: in the row of the call, else
    behind the first event of the class), and whether the compute stream waits for them."""
    row_size: int
    """Entries of the row of a call; 0 if it needs none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EventRoom:
    """Where the events of a class are kept."""

    places: dict[int, EventPlaces]
    """For each routine."""
    size: int
    """Entries of the events of the class that are not in rows."""


def needed_waits(program: Program, tasks: Sequence[Task]) -> list[tuple[int, ...]]:
    """Return for each task of a routine the slots that it has to wait for.

    What an earlier task of the same call has recorded on the same stream is there anyway, at the latest when the
    stream is free.
    """
    recorded: list[set[int]] = [set() for _ in program.streams]
    needed = []
    for task in tasks:
        needed.append(tuple(slot for slot in task.waits if slot not in recorded[task.stream]))
        if task.records is not None and not program.events[task.records].shared_over_calls:
            recorded[task.stream].add(task.records)
    return needed


def event_room(program: Program, routines: Sequence[int]) -> EventRoom:
    """Return where the events of a class are kept.

    An event is in the row of its call if every routine that waits for its slot records it, too: as it is recorded
    once, nobody else does. Of the others each index has a row of its own for good, and the shared ones follow.

    Args:
        program: The program.
        routines: Those that the class calls.
    """
    waits_of: dict[int, set[int]] = {}
    records_of: dict[int, set[int]] = {}
    accounted: set[int] = set()
    for routine in routines:
        tasks = program.routines[routine].tasks
        waits = needed_waits(program, tasks)
        waits_of[routine] = {slot for slots in waits for slot in slots}
        records_of[routine] = {task.records for task in tasks if task.records is not None}
        accounted.update(
            slot for task, slots in zip(tasks, waits, strict=True) if task.stream == COMPUTE_STREAM for slot in slots
        )
    shared = {slot for slot, event in enumerate(program.events) if event.shared_over_calls}
    waited_for = {slot for slots in waits_of.values() for slot in slots}
    for_good = (waited_for & shared).union(*(waits_of[routine] - records_of[routine] for routine in routines))
    by_index, row = _one_behind_another(sorted(for_good - shared), accounted, begin=0)
    behind, size = _one_behind_another(sorted(for_good & shared), accounted, begin=row * program.num_indices)
    kept = {slot: (offset, row, slot in accounted) for slot, offset in by_index.items()}
    kept.update((slot, (offset, 0, slot in accounted)) for slot, offset in behind.items())
    places = {}
    for routine in routines:
        own, row_size = _one_behind_another(sorted(waits_of[routine] - for_good), accounted, begin=ROW_HEAD)
        mine = {slot: (offset, OWN_CALL, slot in accounted) for slot, offset in own.items()}
        mine.update((slot, kept[slot]) for slot in for_good & (waits_of[routine] | records_of[routine]))
        places[routine] = EventPlaces(places=tuple(sorted(mine.items())), row_size=row_size if own else 0)
    return EventRoom(places=places, size=size)


def _one_behind_another(slots: Sequence[int], accounted: set[int], *, begin: int) -> tuple[dict[int, int], int]:
    """Return the offset of each slot, and the end; an event that is accounted takes two entries."""
    offsets = {}
    for slot in slots:
        offsets[slot] = begin
        begin += 1 + (slot in accounted)
    return offsets, begin
