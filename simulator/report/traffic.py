"""The books of the network: bytes by axis and collective, by tier, sent and received."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field

import numpy as np

from simulator.cost.collectives import Port, time_alone_s
from simulator.cost.pricing import StageCosts
from simulator.engine import Timeline
from simulator.engine.program import PICOSECONDS_PER_SECOND
from simulator.lowering.builder import CATEGORIES, Category, Direction
from simulator.lowering.resources import NUM_DIRECTIONS
from simulator.lowering.step import LoweredStep
from simulator.parallel.mesh import DeviceMesh
from simulator.report.books import entries_of
from simulator.report.flows import flows_of
from simulator.report.links import AXES, busiest_of, link_uses_of, volumes_of
from simulator.report.network_result import BetterOrder
from simulator.report.places import places_of
from simulator.report.result import AxisTraffic, Communication, TierTraffic
from simulator.schedule import PipelineSchedule

_CATEGORY_OF_AXIS = {
    "tp": Category.TENSOR,
    "cp": Category.CONTEXT,
    "ep": Category.EXPERT,
    "pp": Category.PIPELINE,
    "dp": Category.DATA,
}


@dataclass(slots=True)
class _Account:
    """Sums over the ranks that take part."""

    calls: int = 0
    payload: int = 0
    sent: int = 0
    ranks: int = 0
    alone_s_on_slowest: float = 0.0
    ranks_seen: set[int] = field(default_factory=set)


def communication_of(
    step: LoweredStep,
    schedule: PipelineSchedule,
    *,
    mesh: DeviceMesh,
    costs: StageCosts,
    timeline: Timeline,
    slowest: int,
    better_order: BetterOrder | None = None,
) -> Communication:
    """Returns what the network carries in a step.

    Args:
        step: programs and the exchanges of each routine.
        schedule: order of actions on every pipeline rank.
        mesh: the ranks and their tiers.
        costs: ports of a device and links of a host.
        timeline: what the engine found.
        slowest: class whose times are reported.
        better_order: another order of the axes that is faster, if one was found.
    """
    ports = costs.ports
    accounts: dict[tuple[str, str], _Account] = defaultdict(_Account)
    tier_bytes = [0] * len(mesh.cluster.tiers)
    received = 0
    for entry in entries_of(step):
        exchange, times = entry.exchange, entry.times
        sent = exchange.traffic.sent_bytes * times
        if exchange.direction is not Direction.SEND:
            received += sent
        if not exchange.is_counted:
            continue
        account = accounts[exchange.axis, exchange.label]
        account.calls += exchange.calls * times
        account.payload += exchange.traffic.payload_bytes * times
        account.sent += sent
        if entry.pipeline_rank not in account.ranks_seen:
            account.ranks_seen.add(entry.pipeline_rank)
            account.ranks += entry.num_ranks
        if entry.pipeline_rank == step.pipeline_ranks[slowest]:
            account.alone_s_on_slowest += time_alone_s(exchange.traffic, ports) * entry.calls
        for tier, sent_in_tier in enumerate(exchange.traffic.tier_bytes):
            tier_bytes[tier] += sent_in_tier * times
    num_ranks = sum(rank_class.count for rank_class in step.program.classes)
    links = link_uses_of(step, mesh, costs, timeline)
    return Communication(
        by_axis=tuple(_by_axis(accounts, timeline, slowest, num_ranks)),
        by_tier=tuple(_by_tier(tier_bytes, step, mesh, ports, timeline, num_ranks)),
        sent_bytes_total=sum(account.sent for account in accounts.values()),
        received_bytes_total=received,
        volumes=volumes_of(step, mesh.cluster, ports),
        links=links,
        busiest_link=busiest_of(links),
        matrix=flows_of(step, schedule),
        placement=places_of(mesh),
        better_order=better_order,
    )


def _by_axis(
    accounts: dict[tuple[str, str], _Account], timeline: Timeline, slowest: int, num_ranks: int
) -> list[AxisTraffic]:
    total_alone: dict[str, float] = defaultdict(float)
    for (axis, _), account in accounts.items():
        total_alone[axis] += account.alone_s_on_slowest
    rows = []
    for (axis, label), account in sorted(accounts.items(), key=lambda item: _row_order(item[0])):
        share = account.alone_s_on_slowest / total_alone[axis] if total_alone[axis] else 0.0
        time_s = exposed_s = account.alone_s_on_slowest
        if axis in _CATEGORY_OF_AXIS:
            category = CATEGORIES.index(_CATEGORY_OF_AXIS[axis])
            time_s = int(timeline.busy_ps[slowest, category]) / PICOSECONDS_PER_SECOND * share
            exposed_s = int(timeline.time_ps[slowest, category]) / PICOSECONDS_PER_SECOND * share
        rows.append(
            AxisTraffic(
                axis=axis,
                collective=label,
                calls_per_rank=account.calls / account.ranks,
                payload_bytes=account.payload / account.calls,
                sent_bytes_per_rank=account.sent / num_ranks,
                total_sent_bytes=account.sent,
                time_s=time_s,
                exposed_s=exposed_s,
            )
        )
    return rows


def _row_order(key: tuple[str, str]) -> tuple[int, str]:
    return AXES.index(key[0]), key[1]


def _by_tier(
    tier_bytes: list[int],
    step: LoweredStep,
    mesh: DeviceMesh,
    ports: tuple[Port, ...],
    timeline: Timeline,
    num_ranks: int,
) -> list[TierTraffic]:
    busy = timeline.resource_busy_ps[np.array([each.resources for each in step.program.classes])]
    rows = []
    for tier in mesh.cluster.tiers:
        slots = [
            NUM_DIRECTIONS * number + direction
            for number, port in enumerate(ports)
            if port.tier == tier.index
            for direction in range(NUM_DIRECTIONS)
        ]
        capacity = sum(port.bytes_per_s for port in ports if port.tier == tier.index)
        rows.append(
            TierTraffic(
                tier=tier.name,
                total_bytes=tier_bytes[tier.index],
                bytes_per_rank_mean=tier_bytes[tier.index] / num_ranks,
                busy_fraction=int(busy[:, slots].max()) / max(1, timeline.makespan_ps),
                capacity_bytes_per_s=capacity,
            )
        )
    return rows
