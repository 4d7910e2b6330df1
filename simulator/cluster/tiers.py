"""The folded network: pure arithmetic on tiers, for any number of devices.

A domain of a tier is a run of `size` consecutive devices, so which tier joins two devices is a comparison of whole
quotients. All functions take single devices or numpy arrays of them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from simulator.cluster.cluster import Cluster, Tier
from simulator.cluster.spec import TierKind
from simulator.cluster.torus import links_across, torus_hops


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


def hops(cluster: Cluster, a: ArrayLike, b: ArrayLike) -> NDArray[np.int64]:
    """Returns the links on a shortest path between two devices in the tier that joins them.

    Switch: device, switch, device: 2, and 2 more for each tier inside that shares its port. Mesh: 1. Torus: the
    distance on the grid.
    """
    first, second = np.asarray(a, dtype=np.int64), np.asarray(b, dtype=np.int64)
    joined = tier_of_pair(cluster, first, second)
    count = np.zeros(joined.shape, dtype=np.int64)
    for tier in cluster.tiers:
        if tier.kind is TierKind.TORUS:
            in_tier = torus_hops(first % tier.size, second % tier.size, tier.dims, tier.wrap)
        elif tier.kind is TierKind.MESH:
            in_tier = np.ones(joined.shape, dtype=np.int64)
        else:
            in_tier = np.full(joined.shape, 2 * (1 + len(tiers_under_port(cluster.tiers, tier))), dtype=np.int64)
        count = np.where(joined == tier.index, in_tier, count)
    return np.where(first == second, 0, count)


def tiers_under_port(tiers: Sequence[Tier], tier: Tier) -> tuple[Tier, ...]:
    """Returns the tiers directly inside `tier` whose port it shares: its traffic goes through their switches."""
    under: list[Tier] = []
    for inner in reversed(tiers[: tier.index]):
        if inner.port != tier.port:
            break
        under.append(inner)
    return tuple(reversed(under))


def pair_bandwidth_bytes_per_s(tier: Tier) -> float:
    """Returns the nominal bandwidth, one direction, between two devices of one domain that are alone on the network.

    Mesh: one of its size - 1 links. Torus: one link (between neighbours). Switch: the port of a device.
    """
    if tier.kind is TierKind.MESH and tier.size > 1:
        return tier.bandwidth_bytes_per_s / (tier.size - 1)
    return tier.bandwidth_bytes_per_s


def bisection_bytes_per_s(tier: Tier) -> float:
    """Returns the nominal bandwidth, one direction, from one half of a full domain of this tier to the other.

    Switch: size / 2 ports over the oversubscription. Mesh: size^2 / 4 links. Torus: the links across the axis with
    the fewest, twice where it is a ring. The halves are made of whole inner domains, as far as their number allows.

    Source: Dally and Towles, Principles and Practices of Interconnection Networks, 2004, section 3.3.
    """
    half, other = tier.size // 2, tier.size - tier.size // 2
    if tier.kind is TierKind.TORUS:
        return links_across(tier.dims, tier.wrap) * tier.bandwidth_bytes_per_s
    if tier.kind is TierKind.MESH:
        return half * other * pair_bandwidth_bytes_per_s(tier)
    return half * tier.bandwidth_bytes_per_s / tier.oversubscription
