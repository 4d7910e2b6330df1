"""Who meets whom: folded, one class stands for all ranks of a pipeline rank; single, every rank is its own class."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from simulator.errors import SimulatorFault
from simulator.lowering.routines import EMBEDDING_COMMUNICATOR
from simulator.parallel.groups import Digits, count_of
from simulator.parallel.layout import Axis
from simulator.parallel.mesh import DeviceMesh, Group
from simulator.schedule import PipelineSchedule

MAX_SINGLE_RANKS = 4096
"""More ranks than this are not simulated one by one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Membership:
    """The rank classes of a program and the communicators that they belong to."""

    mesh: DeviceMesh
    """The ranks and their groups."""
    pipeline_ranks: tuple[int, ...]
    """Pipeline rank of each class."""
    counts: tuple[int, ...]
    """Ranks of each class."""
    names: tuple[str, ...]
    """Name of each class."""
    meets: Callable[[str], bool]
    """Whether the tasks of a communicator meet other classes."""
    first_ranks: tuple[int, ...]
    """A rank of each class; its only one if classes are single ranks."""
    folded: bool
    """Whether a class stands for all ranks of its pipeline rank."""

    def communicator(self, slot: str, number: int, schedule: PipelineSchedule) -> tuple[object, int]:
        """Returns the communicator behind a slot of a class: its name and how many classes meet in it.

        Args:
            slot: `<communicator> / <stream>`, as the routines number them.
            number: which class.
            schedule: says which stages lie on which pipeline rank.
        """
        name, stream = slot.split(" / ")
        if name == EMBEDDING_COMMUNICATOR:
            return (slot, self._others(number)), 2
        if name in set(Group):
            return self._group(Group(name), stream, number)
        return self._boundary(name, number, schedule)

    def _group(self, group: Group, stream: str, number: int) -> tuple[object, int]:
        if self.folded:
            return f"{group} / {stream}", len(self.pipeline_ranks)
        digits = self.mesh.digits[group]
        return (group, stream, _base(self.first_ranks[number], digits)), count_of(digits)

    def _boundary(self, name: str, number: int, schedule: PipelineSchedule) -> tuple[object, int]:
        what, way, chunk = name.split(" ", 1)[0], name.split(" ", 1)[1].rsplit(" ", 1)[0], int(name.rsplit(" ", 1)[1])
        rank = self.pipeline_ranks[number]
        stages = schedule.stages_of(rank)
        if chunk >= len(stages):
            raise SimulatorFault(f"pipeline rank {rank} has no chunk {chunk}")
        stage = stages[chunk]
        into = way == "into"
        downstream = what == "activation"
        # The boundary before the stage for activations that come in and gradients that go out, else the one after.
        boundary = stage - 1 if into == downstream else stage
        return (f"{what} of boundary {boundary}", self._others(number)), 2

    def _others(self, number: int) -> int:
        """A rank's coordinates without the pipeline's: which pipeline it belongs to."""
        if self.folded:
            return 0
        stride = self.mesh.stride(Axis.PIPELINE)
        return self.first_ranks[number] - self.pipeline_ranks[number] * stride


def folded_members(mesh: DeviceMesh) -> Membership:
    """Returns one class for each pipeline rank."""
    degrees = mesh.degrees
    pp = int(degrees.pp)
    meeting_groups = {Group.WORLD} if pp > 1 else set()
    return Membership(
        mesh=mesh,
        pipeline_ranks=tuple(range(pp)),
        counts=(int(degrees.devices) // pp,) * pp,
        names=tuple(f"pipeline rank {rank}" for rank in range(pp)),
        meets=lambda name: name not in set(Group) or name in meeting_groups,
        first_ranks=tuple(rank * mesh.stride(Axis.PIPELINE) for rank in range(pp)),
        folded=True,
    )


def single_members(mesh: DeviceMesh) -> Membership:
    """Returns one class for each rank.

    Raises:
        SimulatorFault: there are too many ranks to do that by accident.
    """
    count = int(mesh.degrees.devices)
    if count > MAX_SINGLE_RANKS:
        raise SimulatorFault(f"{count} ranks are too many to simulate one by one")
    stride, pp = mesh.stride(Axis.PIPELINE), int(mesh.degrees.pp)
    return Membership(
        mesh=mesh,
        pipeline_ranks=tuple(rank // stride % pp for rank in range(count)),
        counts=(1,) * count,
        names=tuple(f"rank {rank}" for rank in range(count)),
        meets=lambda name: name not in set(Group) or count_of(mesh.digits[Group(name)]) > 1,
        first_ranks=tuple(range(count)),
        folded=False,
    )


def _base(rank: int, digits: Digits) -> int:
    """The first rank of the group that a rank belongs to."""
    return rank - sum(rank // stride % count * stride for count, stride in digits)
