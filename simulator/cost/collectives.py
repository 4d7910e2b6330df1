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


@dataclass(frozen=True, slots=True, kw_only=True)
class Protocol:
    """A way in which a library moves the chunks of a collective: less latency against less bandwidth."""

    base_s: float
    """Time of any collective before its first step."""
    inner_step_s: float
    """Time of a step beyond the tier's own latency, in the innermost tier."""
    network_step_s: float
    """The same in the tiers outside."""
    bandwidth_fraction: float
    """Share of the tier's bandwidth."""


PLAIN = Protocol(base_s=0.0, inner_step_s=0.0, network_step_s=0.0, bandwidth_fraction=1.0)
NCCL_PROTOCOLS = (
    Protocol(base_s=6.6e-6, inner_step_s=0.0, network_step_s=0.0, bandwidth_fraction=0.5),
    Protocol(base_s=14.0e-6, inner_step_s=1.3e-6, network_step_s=1.3e-6, bandwidth_fraction=0.92),
    Protocol(base_s=8.4e-6, inner_step_s=2.8e-6, network_step_s=11.3e-6, bandwidth_fraction=1.0),
)
"""LL, LL128 and Simple: base latencies, and steps of 0.6, 1.9, 3.4 us over NVLink and 2.7, 4.0, 14.0 us over a network
as what they add to the first of them, which the tier's latency stands for (NCCL src/graph/tuning.cc; E4.8)."""
PROTOCOLS: dict[str, tuple[Protocol, ...]] = {"nvidia": NCCL_PROTOCOLS, "amd": NCCL_PROTOCOLS}
"""By vendor; RCCL is NCCL for AMD. Others: the tier's latency and bandwidth as they are."""


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

    Of the library's protocols, and for an all-reduce of ring and double binary tree, the one that is predicted fastest
    is taken, as NCCL does (E4.2, E4.3, E4.8). What a protocol lacks in bandwidth counts as latency. All-to-all sends to
    all peers at once: one step for each tier it crosses.
    """
    if shape.size <= 1 or payload_bytes <= 0:
        return None
    protocols = PROTOCOLS.get(cluster.accelerator.vendor, (PLAIN,))
    ports = ports_of(cluster)
    found = [
        _priced(collective, payload_bytes, shape, cluster, ports, protocol, is_tree=is_tree)
        for protocol in protocols
        for is_tree in (
            (False, True) if collective is Collective.ALL_REDUCE and _is_switched(shape, cluster) else (False,)
        )
    ]
    return min(found, key=lambda traffic: time_alone_s(traffic, ports))


def _is_switched(shape: GroupShape, cluster: Cluster) -> bool:
    """Whether a tree can run: only switches join every rank to every other."""
    return all(
        tier.kind is TierKind.SWITCH or part.members == 1 for tier, part in zip(cluster.tiers, shape.tiers, strict=True)
    )


def _priced(
    collective: Collective,
    payload_bytes: int,
    shape: GroupShape,
    cluster: Cluster,
    ports: tuple[Port, ...],
    protocol: Protocol,
    *,
    is_tree: bool,
) -> Traffic:
    passes = 2 if collective is Collective.ALL_REDUCE else 1
    sent: list[int] = []
    latency_s = protocol.base_s
    inner = 1
    for tier, part in zip(cluster.tiers, shape.tiers, strict=True):
        members = part.members
        step_s = tier.latency_s + (protocol.network_step_s if tier.index else protocol.inner_step_s)
        if collective is Collective.ALL_TO_ALL:
            sent.append(_share(payload_bytes, inner * (members - 1), shape.size))
            latency_s += step_s * (part.steps if tier.kind is TierKind.TORUS else members > 1)
        else:
            sent.append(passes * _share(payload_bytes, members - 1, members * inner))
            latency_s += passes * step_s * (ceil(log2(members)) if is_tree else part.steps)
        inner *= members
    demands = _demands(collective, sent, shape, cluster)
    if is_tree:
        # The busiest rank of a double tree sends 2·S, not 2·(n - 1)/n·S (E4.3).
        scale = shape.size / (shape.size - 1)
        sent = [ceil(count * scale) for count in sent]
        demands = tuple((port, ceil(count * scale)) for port, count in demands)
    slowest_s = _busiest_s(demands, ports)
    return Traffic(
        collective=collective,
        payload_bytes=payload_bytes,
        sent_bytes=sum(sent),
        tier_bytes=tuple(sent),
        latency_s=latency_s + slowest_s * (1 / protocol.bandwidth_fraction - 1),
        demands=demands,
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


def price_ring(chunk_bytes: int, num_steps: int, shape: GroupShape, cluster: Cluster) -> Traffic | None:
    """Returns bytes, latency and port use of chunks passed on around a ring, as ring attention does (E4.10).

    In each step every rank sends one chunk to its neighbour and waits for all: a rank whose neighbour lies in another
    domain needs its port for the whole chunk, so the outermost tier sets the pace. On average only 1 / (ranks of the
    group in a domain) of the chunks leave a domain.

    Args:
        chunk_bytes: what a rank passes on in one step.
        num_steps: steps in a row.
        shape: the group.
        cluster: its tiers.
    """
    if shape.size <= 1 or chunk_bytes <= 0:
        return None
    sent = chunk_bytes * num_steps
    used = [tier.index for tier, part in zip(cluster.tiers, shape.tiers, strict=True) if part.members > 1]
    tier_bytes = [0] * len(cluster.tiers)
    demands: dict[int, int] = {}
    left, latency_s = sent, 0.0
    inner = 1
    for tier, part in zip(cluster.tiers, shape.tiers, strict=True):
        inner *= part.members
        if tier.index in used:
            leaving = 0 if tier.index == used[-1] else sent // inner
            tier_bytes[tier.index], left = left - leaving, leaving
            latency_s = max(latency_s, tier.latency_s)
            alone = tier.kind is TierKind.MESH
            lanes = (
                tuple(Lane(dim=lane.dim, share=float(tier.size - 1)) for lane in part.lanes) if alone else part.lanes
            )
            for port, moved in _on_lanes(tier, lanes, sent, cluster):
                demands[port] = max(demands.get(port, 0), moved)
    return Traffic(
        collective=Collective.SEND,
        payload_bytes=chunk_bytes,
        sent_bytes=sent,
        tier_bytes=tuple(tier_bytes),
        latency_s=num_steps * latency_s,
        demands=tuple(sorted(demands.items())),
    )


def time_alone_s(traffic: Traffic, ports: tuple[Port, ...]) -> float:
    """Returns the seconds of a collective that shares nothing: latency and the busiest port."""
    return traffic.latency_s + _busiest_s(traffic.demands, ports)


def _busiest_s(demands: tuple[tuple[int, int], ...], ports: tuple[Port, ...]) -> float:
    """Seconds that the busiest port needs for its bytes."""
    return max((count / ports[port].bytes_per_s for port, count in demands), default=0.0)


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
