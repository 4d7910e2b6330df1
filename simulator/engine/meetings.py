"""Who takes part in which communicator, and on which resources transfers can meet; for all classes at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import chain, pairwise

import numpy as np
import numpy.typing as npt

from simulator.engine.call_lists import CallList
from simulator.engine.program import Program
from simulator.engine.segments import RoutineUse

IntArray = npt.NDArray[np.int64]
NOTHING: IntArray = np.zeros(0, dtype=np.int64)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Bindings:
    """What the slots of all classes stand for."""

    resource_begin: IntArray
    """`[class + 1]`: where the slots of a class begin in `resources`."""
    resources: npt.NDArray[np.int32]
    sharers: npt.NDArray[np.int32]
    """As `resources`: ranks of the class that use one such resource side by side."""
    communicator_begin: IntArray
    """`[class + 1]`: where the slots of a class begin in `communicators`."""
    communicators: npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Meetings:
    """Who takes part in what, over all classes."""

    members_begin: IntArray
    """`[communicator + 1]`: where the members of each begin in `members`."""
    members: IntArray
    """The streams that use each communicator, ascending."""
    owner: IntArray
    """`[communicator]`: its first member, or -1."""
    is_contended: npt.NDArray[np.bool_]
    """`[resource]`: whether two transfers could use it at the same time."""
    num_users: IntArray
    """`[resource]`: by how many owners transfers may be brought to it."""


def offsets(lengths: Sequence[int] | IntArray) -> IntArray:
    """Return where each of several things of some lengths begins if they stand one behind another, and the end."""
    return np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(np.asarray(lengths, dtype=np.int64))])


def bindings_of(program: Program) -> Bindings:
    """Return what the slots of all classes stand for."""
    classes = program.classes
    return Bindings(
        resource_begin=offsets([len(each.resources) for each in classes]),
        resources=np.fromiter(chain.from_iterable(each.resources for each in classes), dtype=np.int32),
        sharers=np.fromiter(
            chain.from_iterable(each.sharers or (1,) * len(each.resources) for each in classes), dtype=np.int32
        ),
        communicator_begin=offsets([len(each.communicators) for each in classes]),
        communicators=np.fromiter(chain.from_iterable(each.communicators for each in classes), dtype=np.int32),
    )


def find_meetings(
    program: Program, *, lists: Sequence[CallList], uses: Sequence[RoutineUse], bound: Bindings
) -> Meetings:
    """Return the streams of each communicator and the resources on which transfers could meet.

    A stream runs one task at a time, and a meeting holds all its streams. So the uses of a resource cannot overlap if
    one stream takes part in each of them.

    Args:
        program: The program.
        lists: Its calls.
        uses: What each routine brings to the network.
        bound: What the slots of the classes stand for.
    """
    num_streams = len(program.streams)
    groups: list[npt.NDArray[np.integer]] = [NOTHING]
    resources: list[npt.NDArray[np.integer]] = [NOTHING]
    vias: list[npt.NDArray[np.integer]] = [NOTHING]
    streams, own_streams = [NOTHING], [NOTHING]
    for each in lists:
        first_stream = each.classes * num_streams
        slots, resource_slots = bound.communicator_begin[each.classes], bound.resource_begin[each.classes]
        for slot, stream in {pair for number in each.routines for pair in uses[number].communicators}:
            groups.append(bound.communicators[slots + slot])
            streams.append(first_stream + stream)
        for stream, via, resource in {demand for number in each.routines for demand in uses[number].demands}:
            resources.append(bound.resources[resource_slots + resource])
            vias.append(np.full(len(each.classes), -1) if via is None else bound.communicators[slots + via])
            own_streams.append(first_stream + stream)
    group, member = np.concatenate(groups), np.concatenate(streams)
    order = np.lexsort((member, group))
    members_begin = offsets(np.bincount(group, minlength=len(program.communicators)))
    members = member[order]
    owner = np.full(len(program.communicators), -1, dtype=np.int64)
    has_members = np.diff(members_begin) > 0
    owner[has_members] = members[members_begin[:-1][has_members]]
    contended, num_users = _contention(
        np.concatenate(resources),
        np.concatenate(vias),
        np.concatenate(own_streams),
        members_begin=members_begin,
        members=members,
        owner=owner,
        num_resources=len(program.resources),
    )
    return Meetings(
        members_begin=members_begin, members=members, owner=owner, is_contended=contended, num_users=num_users
    )


def _contention(
    resource: npt.NDArray[np.integer],
    via: npt.NDArray[np.integer],
    stream: IntArray,
    *,
    members_begin: IntArray,
    members: IntArray,
    owner: IntArray,
    num_resources: int,
) -> tuple[npt.NDArray[np.bool_], IntArray]:
    """Return for each resource whether uses of it can overlap, and how many owners use it.

    Args:
        resource: Of each use.
        via: Communicator of each use, or -1.
        stream: That brings the demand of each use, a member of the communicator.
        members_begin: As in `Meetings`.
        members: As in `Meetings`.
        owner: As in `Meetings`.
        num_resources: Of the program.
    """
    owners = np.where(via < 0, stream, owner[via] if len(owner) else -1)
    pairs = np.unique(np.stack([resource, owners]), axis=1)
    num_users = np.bincount(pairs[0], minlength=num_resources)
    contended = np.zeros(num_resources, dtype=np.bool_)
    order = np.argsort(resource, kind="stable")
    resource, via, stream = resource[order], via[order], stream[order]
    begins = np.flatnonzero(np.diff(resource, prepend=-1))
    if not len(begins):
        return contended, num_users
    one_stream = np.minimum.reduceat(stream, begins) == np.maximum.reduceat(stream, begins)
    one_meeting = np.minimum.reduceat(via, begins) == np.maximum.reduceat(via, begins)
    one_meeting &= via[begins] >= 0

    @cache
    def taking_part(meeting: int) -> frozenset[int]:
        return frozenset(members[members_begin[meeting] : members_begin[meeting + 1]].tolist())

    ends = [*begins.tolist(), len(resource)]
    for use, (begin, end) in enumerate(pairwise(ends)):
        if one_stream[use] or one_meeting[use]:
            continue
        meetings = via[begin:end].tolist()
        groups = {taking_part(meeting) for meeting in meetings if meeting >= 0}
        groups |= {frozenset((alone,)) for alone in stream[begin:end][via[begin:end] < 0].tolist()}
        contended[resource[begin]] = not frozenset.intersection(*sorted(groups, key=len))
    return contended, num_users
