"""Who meets whom: folded, one class stands for all ranks of a pipeline rank; single, every rank is its own class."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from simulator.errors import SimulatorFault
from simulator.lowering.builder import BoundaryEnd, Message, Pair, Party
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
    meets: Callable[[Party], bool]
    """Whether a party meets other classes."""
    first_ranks: tuple[int, ...]
    """A rank of each class; its only one if classes are single ranks."""
    folded: bool
    """Whether a class stands for all ranks of its pipeline rank."""

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
                if self.folded:
                    return f"{party} / {stream}", len(self.pipeline_ranks)
                digits = self.mesh.digits[party]
                return f"{party} / {stream} / {_base(self.first_ranks[number], digits)}", count_of(digits)
            case Pair():
                rank, last = self.pipeline_ranks[number], schedule.pp - 1
                nearer = 0 if party is Pair.TIED_TABLE else min(rank, last - rank)
                return f"{party} {nearer} / {stream} / {self._others(number)}", 2
            case BoundaryEnd():
                stage = schedule.stages_of(self.pipeline_ranks[number])[party.chunk]
                # Activations come in at the boundary before the stage and go out after it, gradients the other way.
                before = party.incoming == (party.message is Message.ACTIVATION)
                boundary = stage - 1 if before else stage
                other = schedule.previous(stage) if before else schedule.next(stage)
                if other is None or schedule.stage_to_rank[other] == self.pipeline_ranks[number]:
                    return f"no {party.message} of {party} of {self.names[number]}", 1
                return f"{party.message} of boundary {boundary} / {self._others(number)}", 2

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
    return Membership(
        mesh=mesh,
        pipeline_ranks=tuple(range(pp)),
        counts=(int(degrees.devices) // pp,) * pp,
        names=tuple(f"pipeline rank {rank}" for rank in range(pp)),
        meets=lambda party: not isinstance(party, Group) or (party is Group.WORLD and pp > 1),
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
        meets=lambda party: not isinstance(party, Group) or count_of(mesh.digits[party]) > 1,
        first_ranks=tuple(range(count)),
        folded=False,
    )


def _base(rank: int, digits: Digits) -> int:
    """The first rank of the group that a rank belongs to."""
    return rank - sum(rank // stride % count * stride for count, stride in digits)
