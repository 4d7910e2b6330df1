"""The folded network: pure arithmetic on tiers, for any number of devices.

A domain of a tier is a run of `size` consecutive devices, so which tier joins two devices is a comparison of whole
quotients. All functions of pairs take single devices or numpy arrays of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import inf

import numpy as np
from numpy.typing import ArrayLike, NDArray

from simulator.cluster.cluster import Cluster
from simulator.cluster.tier import FIBRE_S_PER_KM, Level, Tier
from simulator.cluster.tier_spec import TierKind
from simulator.cluster.torus import torus_hops


def tier_of_pair(cluster: Cluster, a: ArrayLike, b: ArrayLike) -> NDArray[np.int64]:
    """Returns the index of the innermost tier whose domain holds both devices (0 for a device and itself).

    For a group of ranks within a run of devices, the tier of its first and last device is the tier of the group.

    Args:
        cluster: The cluster.
        a: Device number or numbers, from 0.
        b: Device number or numbers; broadcasts with `a`.
    """
    first, second = np.asarray(a, dtype=np.int64), np.asarray(b, dtype=np.int64)
    index = np.zeros(np.broadcast_shapes(first.shape, second.shape), dtype=np.int64)
    for tier in cluster.tiers[:-1]:
        index += first // tier.size != second // tier.size
    return index


def tiers_under_port(tiers: Sequence[Tier], tier: Tier) -> tuple[Tier, ...]:
    """Returns the tiers directly inside `tier` whose port it shares: its traffic goes through their switches."""
    under: list[Tier] = []
    for inner in reversed(tiers[: tier.index]):
        if inner.port != tier.port:
            break
        under.append(inner)
    return tuple(reversed(under))


def port_levels(tiers: Sequence[Tier], tier: Tier) -> tuple[tuple[Tier, Level], ...]:
    """Returns the layers of switches that traffic of a tier may pass, from the device outwards, each with its tier."""
    return tuple((part, level) for part in (*tiers_under_port(tiers, tier), tier) for level in part.levels)


def rails_of(tiers: Sequence[Tier], tier: Tier) -> int:
    """Returns the rails of the port of a tier; 1: none."""
    return max(part.rails for part in (*tiers_under_port(tiers, tier), tier))


def level_of_pair(cluster: Cluster, tier: Tier, a: ArrayLike, b: ArrayLike) -> NDArray[np.int64]:
    """Returns which of the `port_levels` of a switched tier joins two devices.

    A layer that serves one rail each joins devices of the same rail only. The number of layers means that no layer of
    this port joins them: they meet over `links`, or, of different rails, not at all (see `relay_hops`).
    """
    first, second = np.asarray(a, dtype=np.int64), np.asarray(b, dtype=np.int64)
    levels = port_levels(cluster.tiers, tier)
    same_rail = (first - second) % rails_of(cluster.tiers, tier) == 0
    found = np.full(np.broadcast_shapes(first.shape, second.shape), len(levels), dtype=np.int64)
    for at in range(len(levels) - 1, -1, -1):
        level = levels[at][1]
        joins = first // level.size == second // level.size
        found = np.where(joins & (same_rail | (not level.per_rail)), at, found)
    return found


def needs_relay(cluster: Cluster, a: ArrayLike, b: ArrayLike) -> NDArray[np.bool_]:
    """Returns whether two devices are on rails that never meet, so that traffic passes another device (PXN)."""
    joined = tier_of_pair(cluster, a, b)
    found = np.zeros(joined.shape, dtype=np.bool_)
    for tier in cluster.tiers:
        if tier.levels and tier.levels[-1].per_rail:
            levels = port_levels(cluster.tiers, tier)
            found |= (joined == tier.index) & (level_of_pair(cluster, tier, a, b) == len(levels))
    return found


def hops(cluster: Cluster, a: ArrayLike, b: ArrayLike) -> NDArray[np.int64]:
    """Returns the links on a shortest path between two devices in the network of the tier that joins them.

    Switch: up to the layer that joins them and down again, 2 (layer + 1). Links between domains: up, over, down. Mesh:
    1. Torus: the distance on the grid. Devices on rails that never meet: as `relay_hops`.
    """
    first, second = np.asarray(a, dtype=np.int64), np.asarray(b, dtype=np.int64)
    joined = tier_of_pair(cluster, first, second)
    count = np.zeros(joined.shape, dtype=np.int64)
    for tier in cluster.tiers:
        if tier.kind is TierKind.TORUS:
            in_tier = torus_hops(first % tier.size, second % tier.size, tier.dims, tier.wrap)
        elif tier.kind is TierKind.MESH:
            in_tier = np.ones(joined.shape, dtype=np.int64)
        elif tier.links is not None:
            in_tier = np.full(joined.shape, 2 * max(1, len(port_levels(cluster.tiers, tier))) + 1, dtype=np.int64)
        else:
            in_tier = 2 * (level_of_pair(cluster, tier, first, second) + 1)
        count = np.where(joined == tier.index, in_tier, count)
    relayed = needs_relay(cluster, first, second)
    if relayed.any():
        count[relayed] = relay_hops(cluster, first, second)[relayed]
    return np.where(first == second, 0, count)


def relay_device(cluster: Cluster, a: ArrayLike, b: ArrayLike) -> NDArray[np.int64]:
    """Returns the device of a's node that is on b's rail; a itself where the network that joins them has no rails.

    Source: NCCL 2.12, PXN: a peer of the node forwards over its NIC, so that traffic stays on one rail.
    """
    first, second = np.asarray(a, dtype=np.int64), np.asarray(b, dtype=np.int64)
    rails = np.asarray([rails_of(cluster.tiers, tier) for tier in cluster.tiers])[tier_of_pair(cluster, first, second)]
    relay: NDArray[np.int64] = np.where(rails > 1, first - first % rails + second % rails, first)
    return relay


def relay_hops(cluster: Cluster, a: ArrayLike, b: ArrayLike) -> NDArray[np.int64]:
    """Returns the links of a way that first goes to the device of a's node on b's rail, then along that rail (PXN)."""
    relay = relay_device(cluster, a, b)
    return hops(cluster, a, relay) + hops(cluster, relay, b)


def pair_latency_s(cluster: Cluster, a: ArrayLike, b: ArrayLike) -> NDArray[np.float64]:
    """Returns the time of the first byte between two devices, cables of links included (5 us a kilometre)."""
    first, second = np.asarray(a, dtype=np.int64), np.asarray(b, dtype=np.int64)
    joined = tier_of_pair(cluster, first, second)
    found = np.zeros(joined.shape, dtype=np.float64)
    for tier in cluster.tiers:
        if tier.kind is TierKind.TORUS:
            in_tier = tier.latency_s * torus_hops(first % tier.size, second % tier.size, tier.dims, tier.wrap)
        elif tier.links is not None:
            in_tier = _over_links(cluster, tier, first, second)[1]
        elif tier.kind is TierKind.SWITCH:
            in_tier = np.asarray([*_level_latencies(cluster, tier), inf])[level_of_pair(cluster, tier, first, second)]
        else:
            in_tier = np.full(joined.shape, tier.latency_s)
        found = np.where(joined == tier.index, in_tier, found)
    relayed = needs_relay(cluster, first, second)
    if relayed.any():
        relay = relay_device(cluster, first, second)
        found[relayed] = (pair_latency_s(cluster, first, relay) + pair_latency_s(cluster, relay, second))[relayed]
    return np.where(first == second, 0.0, found)


def _level_latencies(cluster: Cluster, tier: Tier) -> list[float]:
    """Latency of each of the port's layers; a way through more layers is never shorter."""
    found: list[float] = []
    for _, level in port_levels(cluster.tiers, tier):
        found.append(max(level.latency_s, found[-1] if found else 0.0))
    return found


def _over_links(
    cluster: Cluster, tier: Tier, a: NDArray[np.int64], b: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Bandwidth of the links between the domains of two devices, and latency of the whole way."""
    if tier.links is None:
        return np.full(np.broadcast_shapes(a.shape, b.shape), inf), np.zeros(np.broadcast_shapes(a.shape, b.shape))
    links, inner = tier.links, cluster.tiers[tier.index - 1].size
    base_s = tier.latency_s - FIBRE_S_PER_KM * links.longest_km
    if not links.pairs:
        shape = np.broadcast_shapes(a.shape, b.shape)
        return np.full(shape, links.bandwidth_bytes_per_s), np.full(shape, tier.latency_s)
    count = links.num_domains
    table = np.array([[links.between(x, y) if x != y else (inf, 0.0) for y in range(count)] for x in range(count)])
    at = table[a % tier.size // inner, b % tier.size // inner]
    return at[..., 0], base_s + FIBRE_S_PER_KM * at[..., 1]


def pair_bandwidth_bytes_per_s(tier: Tier) -> float:
    """Returns the nominal bandwidth, one direction, between two devices of one domain that are alone on the network.

    Mesh: one of its size - 1 links. Torus: one link (between neighbours). Switch: the port of a device.
    """
    if tier.kind is TierKind.MESH and tier.size > 1:
        return tier.bandwidth_bytes_per_s / (tier.size - 1)
    return tier.bandwidth_bytes_per_s


def bandwidth_of_pair(cluster: Cluster, a: ArrayLike, b: ArrayLike) -> NDArray[np.float64]:
    """Returns the nominal bandwidth, one direction, between two devices that are alone on the network.

    That of the port, or of the narrowest uplink of a switch or domain on the way if that is less. On a torus one link:
    messages go along one axis after the other. inf for a device and itself.
    """
    first, second = np.asarray(a, dtype=np.int64), np.asarray(b, dtype=np.int64)
    joined = tier_of_pair(cluster, first, second)
    found = np.full(joined.shape, inf)
    for tier in cluster.tiers:
        in_tier = np.full(joined.shape, pair_bandwidth_bytes_per_s(tier))
        if tier.kind is TierKind.SWITCH:
            reached = np.asarray(_path_bandwidths(cluster, tier))
            level = level_of_pair(cluster, tier, first, second)
            in_tier = reached[np.minimum(level, len(reached) - 1)]
            if tier.links is not None:
                in_tier = np.minimum(in_tier, _over_links(cluster, tier, first, second)[0])
        found = np.where(joined == tier.index, in_tier, found)
    return np.where(first == second, inf, found)


def _path_bandwidths(cluster: Cluster, tier: Tier) -> list[float]:
    """Bandwidth of one device up to each of the port's layers; a last entry for ways over links.

    Below a layer that serves one rail each, a device reaches only the uplinks of its own rail's switches.
    """
    found: list[float] = []
    narrowest, below, rails = inf, 1, 1
    for part, level in port_levels(cluster.tiers, tier):
        uplink = below * part.bandwidth_bytes_per_s / part.oversubscription / rails
        narrowest = min(narrowest, uplink, part.bandwidth_bytes_per_s)
        found.append(narrowest)
        below, rails = level.size, rails_of(cluster.tiers, tier) if level.per_rail else 1
    if tier.links is not None:
        found.append(min(narrowest, tier.bandwidth_bytes_per_s))
    return found
