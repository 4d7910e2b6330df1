"""Kinds of classes: those that run the same calls on the same hardware share all tables of the compiled engine."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from simulator.engine.call_lists import CallList
from simulator.engine.events import EventPlaces, event_room
from simulator.engine.meetings import Bindings, Meetings
from simulator.engine.program import Program
from simulator.engine.segments import RoutineUse, Variant

IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Kind:
    """Classes that differ only in which resources and communicators their slots stand for, and in their pace."""

    calls: npt.NDArray[np.int32]
    """As in `RankClass.calls`."""
    classes: IntArray
    """Their numbers, ascending."""
    variants: dict[int, Variant]
    """Routine to variant."""
    kept_events: int
    """Entries of the events of a class that are not in rows."""


def kinds_of(
    program: Program,
    *,
    lists: Sequence[CallList],
    uses: Sequence[RoutineUse],
    bound: Bindings,
    meetings: Meetings,
    span_classes: Collection[int],
) -> list[Kind]:
    """Return the kinds of classes of a program.

    Args:
        program: The program.
        lists: Its calls.
        uses: What each routine brings to the network.
        bound: What the slots of the classes stand for.
        meetings: From `find_meetings`.
        span_classes: Classes for which the times of all segments are kept.
    """
    capacity = np.array([resource.bytes_per_s for resource in program.resources], dtype=np.float64)
    participants = np.array([each.participants for each in program.communicators], dtype=np.int64)
    is_logged = np.zeros(len(program.classes), dtype=np.bool_)
    is_logged[list(span_classes)] = True
    kinds = []
    for each in lists:
        routines = each.routines
        slots = sorted({slot for number in routines for _, _, slot in uses[number].demands})
        group_slots = sorted({slot for number in routines for slot, _ in uses[number].communicators})
        resources = _bound(bound.resources, bound.resource_begin, each.classes, slots)
        groups = _bound(bound.communicators, bound.communicator_begin, each.classes, group_slots)
        room = event_room(program, routines)
        # Slots of one resource count as the first of them.
        same = np.argmax(resources[:, :, None] == resources[:, None, :], axis=2) if slots else resources
        speed, contended, lone = capacity[resources], meetings.is_contended[resources], participants[groups] == 1
        sharers = _bound(bound.sharers, bound.resource_begin, each.classes, slots)
        rows: dict[bytes, list[int]] = {}
        columns = np.concatenate([same, speed, contended, sharers, lone, is_logged[each.classes][:, None]], axis=1)
        for row, content in enumerate(columns):
            rows.setdefault(content.tobytes(), []).append(row)
        for alike in rows.values():
            row = alike[0]
            hardware = {
                slot: (
                    slot,
                    slots[same[row, at]],
                    float(speed[row, at]),
                    bool(contended[row, at]),
                    int(sharers[row, at]),
                )
                for at, slot in enumerate(slots)
            }
            alone = frozenset(slot for at, slot in enumerate(group_slots) if lone[row, at])
            logged = bool(is_logged[each.classes[row]])
            variants = {
                routine: _variant(routine, uses[routine], room.places[routine], hardware, alone, is_logged=logged)
                for routine in routines
            }
            kinds.append(Kind(calls=each.calls, classes=each.classes[alike], variants=variants, kept_events=room.size))
    return kinds


def _bound(
    table: npt.NDArray[np.int32], begin: IntArray, classes: IntArray, slots: Sequence[int]
) -> npt.NDArray[np.int32]:
    """Return `[class, slot]`: what some slots of some classes stand for."""
    found: npt.NDArray[np.int32] = table[begin[classes][:, None] + np.array(slots, dtype=np.int64)]
    return found


def _variant(
    routine: int,
    use: RoutineUse,
    events: EventPlaces,
    hardware: dict[int, tuple[int, int, float, bool, int]],
    alone: frozenset[int],
    *,
    is_logged: bool,
) -> Variant:
    """Return the variant of a routine.

    Args:
        routine: Its number.
        use: What it brings to the network.
        events: Where its events are kept.
        hardware: For each resource slot of the class what `Variant.resources` says of it.
        alone: Communicator slots of the class with one participant.
        is_logged: Whether all times are kept.
    """
    slots = {slot for _, _, slot in use.demands}
    slots |= {hardware[slot][1] for slot in slots}
    return Variant(
        routine=routine,
        events=events,
        resources=tuple(hardware[slot] for slot in sorted(slots)),
        lone_communicators=tuple(sorted(alone & {slot for slot, _ in use.communicators})),
        is_logged=is_logged,
    )
