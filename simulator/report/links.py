"""What each kind of link carries: bytes by axis, collective and link, how full the fullest link of each kind is."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from operator import mul

import numpy as np
import numpy.typing as npt

from simulator.cluster import Cluster, TierKind
from simulator.cluster.tiers import tiers_under_port
from simulator.cost.collectives import Port, Traffic
from simulator.cost.pricing import StageCosts
from simulator.engine import Program, Timeline
from simulator.engine.program import PICOSECONDS_PER_SECOND
from simulator.lowering.resources import NUM_DIRECTIONS, WAYS, slots_of
from simulator.lowering.step import LoweredStep
from simulator.parallel.mesh import DeviceMesh
from simulator.report.books import entries_of
from simulator.report.network_result import LinkUse, Volume

AXES = ("tp", "cp", "ep", "pp", "dp", "embedding")
"""In the order of rows."""
HOST = "host"
"""What stands for a tier at links of the host."""


def link_name(cluster: Cluster, port: Port) -> str:
    """Returns the kind of link that the traffic of a port's tier crosses last on its way out."""
    tier = cluster.tiers[port.tier]
    if tier.kind is TierKind.TORUS:
        return f"{tier.name} axis {port.dim}"
    if tier.kind is TierKind.MESH:
        return f"{tier.name} links"
    return f"{tier.name} uplink" if tiers_under_port(cluster.tiers, tier) else f"{tier.port} port"


def volumes_of(step: LoweredStep, cluster: Cluster, ports: tuple[Port, ...]) -> tuple[Volume, ...]:
    """Returns the bytes of a step by axis, collective, tier and kind of link; they add up to all bytes sent.

    Args:
        step: the exchanges of each routine.
        cluster: its tiers.
        ports: ports of a device.
    """
    totals: dict[tuple[int, str, int], int] = defaultdict(int)
    num_ranks = sum(rank_class.count for rank_class in step.program.classes)
    for entry in entries_of(step):
        exchange = entry.exchange
        if exchange.is_counted:
            for port, count in sent_by_port(exchange.traffic, ports).items():
                totals[AXES.index(exchange.axis), exchange.label, port] += count * entry.times
    return tuple(
        Volume(
            axis=AXES[axis],
            collective=label,
            tier=cluster.tiers[ports[port].tier].name,
            link=link_name(cluster, ports[port]),
            total_bytes=count,
            bytes_per_rank_mean=count / num_ranks,
        )
        for (axis, label, port), count in sorted(totals.items())
        if count
    )


def sent_by_port(traffic: Traffic, ports: tuple[Port, ...]) -> dict[int, int]:
    """Returns the bytes that a rank sends by the last port that they leave it through; those of a torus by its axes.

    Args:
        traffic: a collective.
        ports: ports of a device.
    """
    found: dict[int, int] = {}
    for tier, sent in enumerate(traffic.tier_bytes):
        lanes = [(port, busy) for port, busy in traffic.demands if ports[port].tier == tier and busy]
        lanes = lanes or [(next(number for number, port in enumerate(ports) if port.tier == tier), 1)]
        left, whole = sent, sum(busy for _, busy in lanes)
        for port, busy in lanes:
            part = left * busy // whole
            found[port], left, whole = part, left - part, whole - busy
    return found


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LinkSlots:
    """The resources of all classes that are links of one kind, in one direction."""

    link: str
    """Kind of link."""
    tier: str
    """Name of its tier, or `host`."""
    direction: str
    """out or in; empty for a link of the host."""
    slot: int
    """Resource slot of the classes."""
    resources: npt.NDArray[np.int64]
    """The resources behind the slot, each once."""
    classes: tuple[int, ...]
    """For each of them, the first class that uses it."""
    weights: npt.NDArray[np.int64]
    """For each of them, how many such links it stands for."""


def links_of(program: Program, mesh: DeviceMesh, costs: StageCosts) -> list[LinkSlots]:
    """Returns the links of a program: ports of devices, uplinks of domains where ranks share them, and of the host.

    Args:
        program: rank classes with their resources.
        mesh: the ranks and their tiers.
        costs: ports of a device and links of a host.
    """
    slots = slots_of(costs, mesh)
    found = []
    for number, port in enumerate(costs.ports):
        tier = mesh.cluster.tiers[port.tier].name
        for way, direction in enumerate(WAYS):
            slot = slots.uplinks.get(number, NUM_DIRECTIONS * number) + way
            found.append(_link(program, slot, link_name(mesh.cluster, port), tier, direction))
    return found + [_link(program, slot, str(resource), HOST, "") for resource, slot in slots.host.items()]


def _link(program: Program, slot: int, link: str, tier: str, direction: str) -> LinkSlots:
    bound = np.array([rank_class.resources[slot] for rank_class in program.classes], dtype=np.int64)
    resources, classes = np.unique(bound, return_index=True)
    owners = [program.classes[number] for number in classes.tolist()]
    return LinkSlots(
        link=link,
        tier=tier,
        direction=direction,
        slot=slot,
        resources=resources,
        classes=tuple(classes.tolist()),
        weights=np.array([owner.count // (owner.sharers[slot] if owner.sharers else 1) for owner in owners]),
    )


def link_uses_of(step: LoweredStep, mesh: DeviceMesh, costs: StageCosts, timeline: Timeline) -> tuple[LinkUse, ...]:
    """Returns for each kind of link how full the fullest one is.

    Args:
        step: the program with its resources.
        mesh: the ranks and their tiers.
        costs: ports of a device and links of a host.
        timeline: what the engine found.
    """
    time_s = max(1, timeline.makespan_ps) / PICOSECONDS_PER_SECOND
    rows: dict[tuple[str, str], LinkUse] = {}
    for link in links_of(step.program, mesh, costs):
        moved = timeline.resource_bytes[link.resources]
        if not moved.any():
            continue
        capacity = np.array([step.program.resources[resource].bytes_per_s for resource in link.resources.tolist()])
        use = moved / capacity / time_s
        fullest = int(use.argmax())
        row = LinkUse(
            link=link.link,
            tier=link.tier,
            carried_bytes=sum(map(mul, moved.tolist(), link.weights.tolist())),
            class_=step.program.classes[link.classes[fullest]].name,
            direction=link.direction,
            capacity_bytes_per_s=float(capacity[fullest]),
            use_fraction=float(use[fullest]),
            busy_fraction=int(timeline.resource_busy_ps[link.resources[fullest]]) / max(1, timeline.makespan_ps),
        )
        other = rows.get((link.tier, link.link))
        if other is None or row.use_fraction > other.use_fraction:
            rows[link.tier, link.link] = row
    return tuple(rows.values())


def busiest_of(links: tuple[LinkUse, ...]) -> LinkUse | None:
    """Returns the link that is used most, the outermost of equal ones; None if nothing moves."""
    return max(reversed(links), key=lambda link: link.use_fraction, default=None)
