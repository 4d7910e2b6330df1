"""Kinds of classes: those that run the same calls on the same hardware share all tables of the compiled engine."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from simulator.engine.call_lists import CallList
from simulator.engine.events import EventRoom, event_room
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
    kinds = []
    for each in lists:
        routines = each.routines
        slots = sorted({slot for number in routines for _, _, slot in uses[number].demands})
        group_slots = sorted({slot for number in routines for slot, _ in uses[number].communicators})
        resources = bound.resources[bound.resource_begin[each.classes][:, None] + np.array(slots, dtype=np.int64)]
        groups = bound.communicators[
            bound.communicator_begin[each.classes][:, None] + np.array(group_slots, dtype=np.int64)
        ]
        first = np.argmax(resources[:, :, None] == resources[:, None, :], axis=2) if slots else resources
        hardware = np.concatenate(
            [
                first,
                capacity[resources],
                meetings.is_contended[resources],
                participants[groups] == 1,
                np.isin(each.classes, list(span_classes))[:, None],
            ],
            axis=1,
        )
        places = event_room(program, routines)
        rows: dict[bytes, list[int]] = {}
        for row, number in enumerate(each.classes.tolist()):
            rows.setdefault(hardware[row].tobytes(), []).append(row)
        for alike in rows.values():
            of_slot = {
                slot: (
                    slot,
                    slots[first[alike[0], at]],
                    float(capacity[resource]),
                    bool(meetings.is_contended[resource]),
                )
                for at, (slot, resource) in enumerate(zip(slots, resources[alike[0]].tolist(), strict=True))
            }
            lone = {
                slot
                for slot, group in zip(group_slots, groups[alike[0]].tolist(), strict=True)
                if participants[group] == 1
            }
            kinds.append(
                Kind(
                    calls=each.calls,
                    classes=each.classes[alike],
                    variants=_variants(routines, uses, places, of_slot, lone, bool(hardware[alike[0], -1])),
                    kept_events=places.size,
                )
            )
    return kinds


def _variants(
    routines: Sequence[int],
    uses: Sequence[RoutineUse],
    room: EventRoom,
    hardware: dict[int, tuple[int, int, float, bool]],
    lone: set[int],
    is_logged: bool,
) -> dict[int, Variant]:
    """Return the variant of each routine.

    Args:
        routines: Those that the classes call.
        uses: What each routine brings to the network.
        room: Where events are kept.
        hardware: For each resource slot what `Variant.resources` says of it.
        lone: Communicator slots with one participant.
        is_logged: Whether all times are kept.
    """
    variants = {}
    for routine in routines:
        use = uses[routine]
        mine = {slot for _, _, slot in use.demands}
        mine |= {hardware[slot][1] for slot in mine}  # what it is first known by
        variants[routine] = Variant(
            routine=routine,
            events=room.places[routine],
            resources=tuple(hardware[slot] for slot in sorted(mine)),
            lone_communicators=tuple(sorted(lone & {slot for slot, _ in use.communicators})),
            is_logged=is_logged,
        )
    return variants
