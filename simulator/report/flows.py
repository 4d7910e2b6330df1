"""Who talks to whom: bytes from each place of the pipeline to each, by axis."""

from __future__ import annotations

from collections import defaultdict

from simulator.errors import SimulatorFault
from simulator.lowering.builder import BoundaryEnd, Message, Pair, Party
from simulator.lowering.step import LoweredStep
from simulator.parallel.mesh import Group
from simulator.report.books import entries_of
from simulator.report.links import AXES
from simulator.report.network_result import Flow
from simulator.schedule import PipelineSchedule

ALL = -1
"""In place of a pipeline rank: all of them."""


def flows_of(step: LoweredStep, schedule: PipelineSchedule) -> tuple[Flow, ...]:
    """Returns the bytes from pipeline rank to pipeline rank, by axis; they add up to all bytes sent.

    Args:
        step: the exchanges of each routine.
        schedule: says which stages lie on which pipeline rank.
    """
    totals: dict[tuple[int, int, int], int] = defaultdict(int)
    for entry in entries_of(step):
        exchange = entry.exchange
        if exchange.is_counted:
            to = receiver_of(exchange.party, entry.pipeline_rank, schedule)
            key = (AXES.index(exchange.axis), entry.pipeline_rank, ALL if to is None else to)
            totals[key] += exchange.traffic.sent_bytes * entry.times
    return tuple(
        Flow(
            axis=AXES[axis],
            from_pipeline_rank=source,
            to_pipeline_rank=None if target == ALL else target,
            total_bytes=count,
        )
        for (axis, source, target), count in sorted(totals.items())
        if count
    )


def receiver_of(party: Party | None, rank: int, schedule: PipelineSchedule) -> int | None:
    """Returns the pipeline rank that a rank sends to; None for collectives of all ranks.

    Args:
        party: whom it meets.
        rank: its pipeline rank.
        schedule: says which stages lie on which pipeline rank.

    Raises:
        SimulatorFault: there is no such party, or none beyond that end of the pipeline.
    """
    match party:
        case Group.WORLD:
            return None
        case Group():
            return rank
        case BoundaryEnd():
            stage = schedule.stages_of(rank)[party.chunk]
            onward = party.message is Message.ACTIVATION
            other = schedule.next(stage) if onward else schedule.previous(stage)
        case Pair.TIED_TABLE:
            ends = schedule.ends
            return ends[1] if rank == ends[0] else ends[0]
        case Pair.MIRROR:
            other = (schedule.stages_of(rank)[0] + schedule.chain) % schedule.num_stages
        case None:
            raise SimulatorFault("an exchange of a step does not say whom it meets")
    if other is None:
        raise SimulatorFault(f"pipeline rank {rank} sends to a stage that does not exist")
    return schedule.stage_to_rank[other]
