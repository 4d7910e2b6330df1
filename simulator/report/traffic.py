"""The books of the network: bytes by axis and collective, by tier, sent and received."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from simulator.cost.collectives import Port, time_alone_s
from simulator.engine import Timeline
from simulator.engine.program import PICOSECONDS_PER_SECOND
from simulator.lowering.builder import CATEGORIES, Category, Direction
from simulator.lowering.resources import NUM_DIRECTIONS
from simulator.lowering.step import LoweredStep
from simulator.parallel.mesh import DeviceMesh
from simulator.report.result import AxisTraffic, Communication, TierTraffic

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
    step: LoweredStep, mesh: DeviceMesh, ports: tuple[Port, ...], timeline: Timeline, slowest: int
) -> Communication:
    """Returns what the network carries in a step.

    Args:
        step: programs and the exchanges of each routine.
        mesh: the ranks and their tiers.
        ports: ports of a device.
        timeline: what the engine found.
        slowest: class whose times are reported.
    """
    accounts: dict[tuple[str, str], _Account] = defaultdict(_Account)
    tier_bytes = [0] * len(mesh.cluster.tiers)
    received = 0
    # All classes of a pipeline rank make the same calls.
    ranks: Counter[int] = Counter()
    calls_of: dict[int, npt.NDArray[np.int32]] = {}
    for rank, rank_class in zip(step.pipeline_ranks, step.program.classes, strict=True):
        ranks[rank] += rank_class.count
        calls_of[rank] = rank_class.calls
    for rank, count in ranks.items():
        times_called = np.bincount(calls_of[rank][:, 0], minlength=len(step.program.routines)).tolist()
        for routine, calls in enumerate(times_called):
            for exchange in step.exchanges[routine] if calls else ():
                sent = exchange.traffic.sent_bytes * calls * count
                if exchange.direction is not Direction.SEND:
                    received += sent
                if exchange.direction is Direction.RECEIVE:
                    continue
                account = accounts[exchange.axis, exchange.label]
                account.calls += exchange.calls * calls * count
                account.payload += exchange.traffic.payload_bytes * calls * count
                account.sent += sent
                if rank not in account.ranks_seen:
                    account.ranks_seen.add(rank)
                    account.ranks += count
                if rank == step.pipeline_ranks[slowest]:
                    account.alone_s_on_slowest += time_alone_s(exchange.traffic, ports) * calls
                for tier, sent_in_tier in enumerate(exchange.traffic.tier_bytes):
                    tier_bytes[tier] += sent_in_tier * calls * count
    num_ranks = ranks.total()
    return Communication(
        by_axis=tuple(_by_axis(accounts, timeline, slowest, num_ranks)),
        by_tier=tuple(_by_tier(tier_bytes, step, mesh, ports, timeline, num_ranks)),
        sent_bytes_total=sum(account.sent for account in accounts.values()),
        received_bytes_total=received,
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
    order = ("tp", "cp", "ep", "pp", "dp", "embedding")
    return order.index(key[0]), key[1]


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
