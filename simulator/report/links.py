"""What each kind of link carries: bytes by axis, collective and link, how full the fullest link of each kind is."""

from __future__ import annotations

from collections import defaultdict

import numpy as np

from simulator.cluster import Cluster, TierKind
from simulator.cluster.tiers import tiers_under_port
from simulator.cost.collectives import Port, Traffic
from simulator.engine import Timeline
from simulator.engine.program import PICOSECONDS_PER_SECOND
from simulator.lowering.resources import NUM_DIRECTIONS
from simulator.lowering.step import LoweredStep
from simulator.lowering.uplinks import shared_uplinks
from simulator.parallel.mesh import DeviceMesh
from simulator.report.books import entries_of
from simulator.report.network_result import LinkUse, Volume

AXES = ("tp", "cp", "ep", "pp", "dp", "embedding")
"""In the order of rows."""
HOST = "host"
"""What stands for a tier at links of the host."""
_WAYS = ("out", "in")


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


def link_uses_of(
    step: LoweredStep, mesh: DeviceMesh, ports: tuple[Port, ...], timeline: Timeline
) -> tuple[LinkUse, ...]:
    """Returns for each kind of link how full it is on the rank class that uses its own most.

    Of an oversubscribed tier it is the uplinks of a domain, which all ranks in it share.

    Args:
        step: the program with its resources.
        mesh: its tiers, and what ranks share of them.
        ports: ports of a device.
        timeline: what the engine found.
    """
    classes, resources = step.program.classes, step.program.resources
    slots = np.array([rank_class.resources for rank_class in classes], dtype=np.int64)
    counts = np.array([rank_class.count for rank_class in classes], dtype=object)
    carried = timeline.resource_bytes[slots]
    capacity = np.array([resource.bytes_per_s for resource in resources])[slots]
    time_s = max(1, timeline.makespan_ps) / PICOSECONDS_PER_SECOND
    use = carried / capacity / time_s
    rows = []
    shared = [link.port for link in shared_uplinks(mesh, ports)]
    of_ports, of_network = NUM_DIRECTIONS * len(ports), NUM_DIRECTIONS * (len(ports) + len(shared))
    for first in (*range(0, of_ports, NUM_DIRECTIONS), *range(of_network, slots.shape[1])):
        port, on_network = first // NUM_DIRECTIONS, first < of_network
        own = np.arange(first, first + (NUM_DIRECTIONS if on_network else 1))
        columns = own + NUM_DIRECTIONS * (len(ports) + shared.index(port) - port) if port in shared else own
        if not carried[:, own].any():
            continue
        number, way = divmod(int(use[:, columns].argmax()), len(columns))
        slot = slots[number, columns[way]]
        rows.append(
            LinkUse(
                link=link_name(mesh.cluster, ports[port]) if on_network else resources[slot].name.rpartition(" / ")[2],
                tier=mesh.cluster.tiers[ports[port].tier].name if on_network else HOST,
                carried_bytes=max(int((carried[:, column].astype(object) * counts).sum()) for column in own),
                class_=classes[number].name,
                direction=_WAYS[way] if on_network else "",
                capacity_bytes_per_s=float(capacity[number, columns[way]]),
                use_fraction=float(use[number, columns[way]]),
                busy_fraction=int(timeline.resource_busy_ps[slot]) / max(1, timeline.makespan_ps),
            )
        )
    return tuple(rows)


def busiest_of(links: tuple[LinkUse, ...]) -> LinkUse | None:
    """Returns the link that is used most, the outermost of equal ones; None if nothing moves."""
    return max(reversed(links), key=lambda link: link.use_fraction, default=None)
