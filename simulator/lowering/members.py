"""Who meets whom: the rank classes of a program, and the communicators that they share.

Ranks that a simulation cannot tell apart are one class (`simulator.lowering.colours`). With all ranks alike that is
one class for each pipeline rank, known without looking at any rank; a straggler splits only what must be split; where
every rank is different, each is its own class.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from simulator.errors import SimulatorFault
from simulator.lowering.builder import BoundaryEnd, Message, Pair, Party
from simulator.lowering.colours import Colours, group_sums, hashed, numbered, refined
from simulator.lowering.uplinks import Domains, coloured_domains, folded_domains, single_domains, uplink_tiers
from simulator.parallel.groups import Digits, Ranks, count_of, first_of_group, ranks_of_group
from simulator.parallel.layout import Axis
from simulator.parallel.mesh import DeviceMesh, Group
from simulator.schedule import PipelineSchedule

MAX_SINGLE_RANKS = 1 << 17
"""More ranks than this are not simulated one by one."""
MAX_NAMED = 3
"""Ranges of ranks that the name of a class lists."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Meetings:
    """The groups of one kind, as the classes see them."""

    number: Colours
    """`[class]`: which group a class belongs to; equal for all classes that meet in it."""
    participants: Colours
    """`[class]`: how many classes meet in that group."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Membership:
    """The rank classes of a program and the communicators that they belong to."""

    pipeline_ranks: tuple[int, ...]
    """Pipeline rank of each class."""
    counts: tuple[int, ...]
    """Ranks of each class."""
    names: tuple[str, ...]
    """Name of each class."""
    first_ranks: tuple[int, ...]
    """The lowest rank of each class."""
    groups: dict[Group, Meetings]
    """For each kind of device group, who meets in it; kinds in which no two classes meet are left out."""
    pipelines: Colours
    """`[class]`: which pipeline a class belongs to; those alike are one."""
    domains: Mapping[int, Domains] = field(default_factory=dict)
    """For each tier whose uplinks ranks share, who lies in which domain below them."""
    bandwidth: Mapping[tuple[int, int], npt.NDArray[np.float64]] = field(default_factory=dict)
    """For each (tier, torus axis) with slow links, `[class]`: share of bandwidth that is left of a class's ports."""

    def bandwidth_share(self, number: int, tier: int, dim: int) -> float:
        """Returns the share of its bandwidth into a tier, along one of its axes, that a class has."""
        return float(self.bandwidth[tier, dim][number]) if (tier, dim) in self.bandwidth else 1.0

    @property
    def meets(self) -> Callable[[Party], bool]:
        """Whether a party meets other classes."""
        return lambda party: not isinstance(party, Group) or party in self.groups

    def communicator(self, party: Party, stream: str, number: int, schedule: PipelineSchedule) -> tuple[str, int]:
        """Returns the communicator behind a slot of a class: its name and how many classes meet in it.

        Args:
            party: whom the tasks of the slot meet.
            stream: on which stream.
            number: which class.
            schedule: says which stages lie on which pipeline rank.
        """
        match party:
            case Group():
                meetings = self.groups[party]
                return f"{party} / {stream} / {meetings.number[number]}", int(meetings.participants[number])
            case Pair():
                rank, last = self.pipeline_ranks[number], schedule.pp - 1
                nearer = 0 if party is Pair.TIED_TABLE else min(rank, last - rank)
                return f"{party} {nearer} / {stream} / {self.pipelines[number]}", 2
            case BoundaryEnd():
                stage = schedule.stages_of(self.pipeline_ranks[number])[party.chunk]
                # Activations come in at the boundary before the stage and go out after it, gradients the other way.
                before = party.incoming == (party.message is Message.ACTIVATION)
                boundary = stage - 1 if before else stage
                other = schedule.previous(stage) if before else schedule.next(stage)
                if other is None or schedule.stage_to_rank[other] == self.pipeline_ranks[number]:
                    return f"no {party.message} of {party} of {self.names[number]}", 1
                return f"{party.message} of boundary {boundary} / {self.pipelines[number]}", 2


def folded_members(mesh: DeviceMesh) -> Membership:
    """Returns one class for each pipeline rank: all its ranks are alike."""
    degrees = mesh.degrees
    pp = int(degrees.pp)
    world = Meetings(number=np.zeros(pp, dtype=np.int64), participants=np.full(pp, pp, dtype=np.int64))
    return Membership(
        pipeline_ranks=tuple(range(pp)),
        counts=(int(degrees.devices) // pp,) * pp,
        names=tuple(f"pipeline rank {rank}" for rank in range(pp)),
        first_ranks=tuple(rank * mesh.stride(Axis.PIPELINE) for rank in range(pp)),
        groups={Group.WORLD: world} if pp > 1 else {},
        pipelines=np.zeros(pp, dtype=np.int64),
        domains=folded_domains(mesh),
    )


def single_members(mesh: DeviceMesh) -> Membership:
    """Returns one class for each rank.

    Raises:
        SimulatorFault: there are too many ranks to do that by accident.
    """
    count = int(mesh.degrees.devices)
    if count > MAX_SINGLE_RANKS:
        raise SimulatorFault(f"{count} ranks are too many to simulate one by one")
    ranks = np.arange(count, dtype=np.int64)
    return Membership(
        pipeline_ranks=tuple(pipeline_rank_of(ranks, mesh).tolist()),
        counts=(1,) * count,
        names=tuple(f"rank {rank}" for rank in range(count)),
        first_ranks=tuple(range(count)),
        groups={
            group: Meetings(number=first_of_group(ranks, digits), participants=np.full(count, count_of(digits)))
            for group, digits in mesh.digits.items()
            if count_of(digits) > 1
        },
        pipelines=first_of_group(ranks, _pipeline_digits(mesh)),
        domains=single_domains(mesh, ranks),
    )


def coloured_members(
    mesh: DeviceMesh, colours: Colours, marked: Mapping[str, npt.NDArray[np.bool_]] | None = None
) -> Membership:
    """Returns the coarsest classes that keep all colours apart and whose ranks a simulation cannot tell apart.

    Args:
        mesh: the ranks and their groups.
        colours: `[ranks]`: a colour for each rank; ranks of different pipeline ranks have different ones.
        marked: by word (`straggler`), `[ranks]`: whom the names of classes call so.
    """
    kinds = {group: digits for group, digits in mesh.digits.items() if count_of(digits) > 1}
    pipeline = _pipeline_digits(mesh)
    # All ranks are in the group of the whole world, which tells nobody apart.
    class_of = refined(
        colours,
        [pipeline, *(digits for group, digits in kinds.items() if group is not Group.WORLD)],
        [mesh.domains[tier - 1] for tier in uplink_tiers(mesh)],
    )
    _, first = np.unique(class_of, return_index=True)
    order = np.lexsort((first, pipeline_rank_of(first, mesh)))
    first = first[order]
    place = np.empty(len(order), dtype=np.int64)
    place[order] = np.arange(len(order))
    class_of = place[class_of]
    ranks_of = np.split(np.argsort(class_of, kind="stable"), np.cumsum(np.bincount(class_of))[:-1])
    pipeline_ranks = pipeline_rank_of(first, mesh)
    meetings = {group: _meetings(class_of, first, digits) for group, digits in kinds.items()}
    return Membership(
        pipeline_ranks=tuple(pipeline_ranks.tolist()),
        counts=tuple(len(ranks) for ranks in ranks_of),
        names=_names(pipeline_ranks, ranks_of, marked or {}),
        first_ranks=tuple(first.tolist()),
        groups={group: found for group, found in meetings.items() if (found.participants > 1).any()},
        pipelines=_meetings(class_of, first, pipeline).number,
        domains=coloured_domains(mesh, class_of, first),
    )


def pipeline_rank_of(ranks: Ranks, mesh: DeviceMesh) -> Ranks:
    """Returns the pipeline rank of each rank."""
    return ranks // mesh.stride(Axis.PIPELINE) % int(mesh.degrees.pp)


def _pipeline_digits(mesh: DeviceMesh) -> Digits:
    return ((int(mesh.degrees.pp), mesh.stride(Axis.PIPELINE)),)


def _meetings(class_of: Colours, first: Colours, digits: Digits) -> Meetings:
    """Returns who meets in the groups with these digits.

    Args:
        class_of: `[ranks]`: class of each rank.
        first: `[class]`: its lowest rank.
        digits: the groups.
    """
    sums = group_sums(hashed(class_of.astype(np.uint64), salt=0), digits)[first]
    number = numbered(sums)
    _, example = np.unique(number, return_index=True)
    present = np.sort(class_of[ranks_of_group(first[example], digits)], axis=1)
    distinct = 1 + (np.diff(present, axis=1) != 0).sum(axis=1)
    return Meetings(number=number, participants=distinct[number])


def _names(
    pipeline_ranks: Colours, ranks_of: Sequence[Ranks], marked: Mapping[str, npt.NDArray[np.bool_]]
) -> tuple[str, ...]:
    """Returns a name for each class: its pipeline rank, and which ranks of it."""
    sizes = np.bincount(pipeline_ranks, weights=[len(ranks) for ranks in ranks_of])
    names = []
    for pipeline_rank, ranks in zip(pipeline_ranks.tolist(), ranks_of, strict=True):
        name = f"pipeline rank {pipeline_rank}"
        word = next((word for word, holds in marked.items() if holds[ranks[0]]), "")
        if len(ranks) < sizes[pipeline_rank]:
            if not word and 2 * len(ranks) > sizes[pipeline_rank]:
                name += ", the other ranks"
            else:
                name += f", {word} {_listed(ranks)}" if word else f", {_listed(ranks)}"
        names.append(name)
    return tuple(names)


def _listed(ranks: Ranks) -> str:
    """Returns some ranks in words: `rank 17`, `ranks 16-23, 40 and 12 more`."""
    if len(ranks) == 1:
        return f"rank {ranks[0]}"
    ends = np.flatnonzero(np.diff(ranks) != 1)
    begins, ends = ranks[np.append(0, ends + 1)], ranks[np.append(ends, len(ranks) - 1)]
    shown = [
        f"{begin}-{end}" if end > begin else f"{begin}"
        for begin, end in zip(begins[:MAX_NAMED].tolist(), ends[:MAX_NAMED].tolist(), strict=True)
    ]
    left = len(ranks) - int((ends - begins + 1)[:MAX_NAMED].sum())
    return f"ranks {', '.join(shown)}" + (f" and {left} more" if left else "")
