"""Bytes and seconds of a collective on a device group, from how the group lies in the network.

Each collective runs tier by tier, as NCCL's multi-rail rings do: with g_k parts joined in tier k, a rank sends in
that tier, of a payload S (the gathered output, the full input of a reduce-scatter, the array of an all-reduce),

    all-gather, reduce-scatter:   (g_k - 1)/g_k · S / (g_0 · … · g_{k-1})
    all-reduce:                   twice that
    all-to-all:                   S/n · (N_k - N_{k-1}),   N_k = g_0 · … · g_k

which adds up to the optimal (n-1)/n · S, 2(n-1)/n · S and (n-1)/n · S (E4.1, E4.5). The tiers work at the same
time on different chunks, so the slowest sets the pace; latencies add up (E4.2).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from math import ceil, log2

from simulator.cluster.cluster import Cluster, Tier
from simulator.cluster.spec import TierKind
from simulator.cluster.tiers import tiers_under_port
from simulator.parallel.groups import GroupShape, Lane
from simulator.parallel.mesh import Hop


class Collective(StrEnum):
    """What a group does together."""

    ALL_REDUCE = "all-reduce"
    ALL_GATHER = "all-gather"
    REDUCE_SCATTER = "reduce-scatter"
    ALL_TO_ALL = "all-to-all"
    SEND = "send"


@dataclass(frozen=True, slots=True, kw_only=True)
class Port:
    """What all traffic of a rank over one lane of one tier shares, in one direction."""

    tier: int
    """Index of the tier."""
    dim: int
    """Torus axis; 0 for a switch or a mesh."""
    bytes_per_s: float
    """Bandwidth that large transfers reach."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Traffic:
    """One collective, as seen by one rank."""

    collective: Collective
    """Which."""
    payload_bytes: int
    """Payload S (equations section 0)."""
    sent_bytes: int
    """Bytes that the rank sends; as many are received."""
    tier_bytes: tuple[int, ...]
    """The same by tier; adds up to `sent_bytes`."""
    latency_s: float
    """Time before the last byte that no bandwidth shortens."""
    demands: tuple[tuple[int, int], ...]
    """(port, bytes): how long each port of the rank is busy, in bytes; more than sent where links are shared."""


def ports_of(cluster: Cluster) -> tuple[Port, ...]:
    """Returns the ports of a device, one direction: one for each switch or mesh tier, one for each torus axis.

    A torus axis has two links a device, so a ring uses twice the bandwidth of one link (E4.7).
    """
    ports: list[Port] = []
    for tier in cluster.tiers:
        if tier.kind is TierKind.TORUS:
            ports += [
                Port(tier=tier.index, dim=dim, bytes_per_s=2 * tier.reached_bandwidth_bytes_per_s)
                for dim in range(len(tier.dims))
            ]
        else:
            ports.append(Port(tier=tier.index, dim=0, bytes_per_s=tier.reached_bandwidth_bytes_per_s))
    return tuple(ports)


def price_collective(collective: Collective, payload_bytes: int, shape: GroupShape, cluster: Cluster) -> Traffic | None:
    """Returns bytes, latency and port use of a collective; None for a group of one, which costs nothing.

    An all-reduce takes the ring or the double binary tree, whichever is predicted faster, as NCCL does (E4.2, E4.3,
    E4.8). All-to-all sends to all peers at once: one latency for each tier it crosses.
    """
    if shape.size <= 1 or payload_bytes <= 0:
        return None
    factor = 2 if collective is Collective.ALL_REDUCE else 1
    sent: list[int] = []
    latency_s = 0.0
    tree_latency_s = 0.0
    inner = 1
    for tier, part in zip(cluster.tiers, shape.tiers, strict=True):
        members = part.members
        if collective is Collective.ALL_TO_ALL:
            sent.append(_share(payload_bytes, inner * (members - 1), shape.size))
            latency_s += tier.latency_s * (part.steps if tier.kind is TierKind.TORUS else members > 1)
        else:
            sent.append(factor * _share(payload_bytes, members - 1, members * inner))
            latency_s += factor * part.steps * tier.latency_s
            tree_latency_s += factor * ceil(log2(members)) * tier.latency_s
        inner *= members
    tree_bytes = factor * shape.size / (shape.size - 1)
    ring = _demands(collective, sent, shape, cluster)
    if collective is Collective.ALL_REDUCE and tree_latency_s < latency_s:
        ports = ports_of(cluster)
        slowest_s = max((count / ports[port].bytes_per_s for port, count in ring), default=0.0)
        if tree_latency_s + slowest_s * tree_bytes / factor < latency_s + slowest_s:
            scale = tree_bytes / factor
            ring = tuple((port, ceil(count * scale)) for port, count in ring)
            sent = [ceil(count * scale) for count in sent]
            latency_s = tree_latency_s
    return Traffic(
        collective=collective,
        payload_bytes=payload_bytes,
        sent_bytes=sum(sent),
        tier_bytes=tuple(sent),
        latency_s=latency_s,
        demands=ring,
    )


def price_send(payload_bytes: int, hop: Hop, cluster: Cluster) -> Traffic:
    """Returns bytes, latency and port use of a message to one other rank (E4.15)."""
    tier = cluster.tiers[hop.tier]
    tier_bytes = tuple(payload_bytes if other is tier else 0 for other in cluster.tiers)
    return Traffic(
        collective=Collective.SEND,
        payload_bytes=payload_bytes,
        sent_bytes=payload_bytes,
        tier_bytes=tier_bytes,
        latency_s=hop.steps * tier.latency_s,
        demands=_on_lanes(tier, hop.lanes, payload_bytes, cluster),
    )


def time_alone_s(traffic: Traffic, ports: tuple[Port, ...]) -> float:
    """Returns the seconds of a collective that shares nothing: latency and the busiest port."""
    return traffic.latency_s + max((count / ports[port].bytes_per_s for port, count in traffic.demands), default=0.0)


def _share(payload_bytes: int, numerator: int, denominator: int) -> int:
    """Bytes of a fraction of the payload, rounded up to whole bytes."""
    return -(-payload_bytes * numerator // denominator)


def _demands(
    collective: Collective, sent: list[int], shape: GroupShape, cluster: Cluster
) -> tuple[tuple[int, int], ...]:
    total: dict[int, int] = {}
    for tier, part, count in zip(cluster.tiers, shape.tiers, sent, strict=True):
        if count:
            lanes = part.exchange_lanes if collective is Collective.ALL_TO_ALL else part.lanes
            for port, moved in _on_lanes(tier, lanes, count, cluster):
                total[port] = total.get(port, 0) + moved
    return tuple(sorted(total.items()))


def _on_lanes(tier: Tier, lanes: tuple[Lane, ...], count: int, cluster: Cluster) -> tuple[tuple[int, int], ...]:
    """Bytes on each port; traffic of a spine also passes the NIC port that it shares with the tiers inside."""
    first = _first_port(tier, cluster)
    moved = {first + lane.dim: ceil(count * lane.share) for lane in lanes}
    for under in tiers_under_port(cluster.tiers, tier):
        moved[_first_port(under, cluster)] = count
    return tuple(sorted(moved.items()))


def _first_port(tier: Tier, cluster: Cluster) -> int:
    return sum(len(other.dims) or 1 for other in cluster.tiers[: tier.index])
