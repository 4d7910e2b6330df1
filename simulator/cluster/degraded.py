"""What faults leave of the ports of the devices: shares of bandwidth by device and tier.

- A degraded NIC or node: the device's port has that share in every tier that goes through it.
- A lost port, and a lost rail (its leaf switch is down): the device's traffic goes to the other ports of the domain
  inside (PXN), which all its devices then share: (n - lost)/n of each.
- A torus link at share s: a ring runs on at s, or as an open line at half its rate, whichever is faster (E4.7).
- A mesh link: it is one of size - 1 links of both its devices.

Derived: the detours are those that NCCL takes, balanced over the ports that are left.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from simulator.cluster.cluster import Cluster
from simulator.cluster.degraded_spec import Degraded
from simulator.cluster.tier import Tier
from simulator.cluster.tier_spec import TierKind
from simulator.cluster.tiers import port_levels, rails_of
from simulator.cluster.torus import coordinates, neighbours_axis


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class DegradedPort:
    """Devices whose port into a tier is slower; all others have it whole."""

    tier: int
    """Index of the tier."""
    dim: int
    """Torus axis; 0 for a switch or a mesh."""
    devices: NDArray[np.int64]
    """Numbers of the devices, ascending."""
    share: NDArray[np.float64]
    """Share of the bandwidth that is left for each of them, both directions."""


def degraded_ports(cluster: Cluster) -> tuple[DegradedPort, ...]:
    """Returns what is left of the ports of the devices that faults concern, by tier and torus axis.

    Shares of several faults of one port multiply; detours of lost ports add up.
    """
    shares: dict[tuple[int, int], dict[int, float]] = {}
    for tier, device, share in device_shares(cluster):
        _multiply(shares, (tier, 0), device, share)
    detoured = {key: _with_detours(cluster, cluster.tiers[key[0]], left) for key, left in shares.items()}
    found = dict(sorted(detoured.items()))
    for entry in cluster.degraded:
        for (tier, dim), device, share in _beside_link(cluster, entry):
            _multiply(found, (tier, dim), device, share)
    return tuple(
        DegradedPort(
            tier=tier,
            dim=dim,
            devices=np.asarray(sorted(left), dtype=np.int64),
            share=np.asarray([left[device] for device in sorted(left)]),
        )
        for (tier, dim), left in sorted(found.items())
    )


def port_shares(cluster: Cluster) -> dict[tuple[int, int], NDArray[np.float64]]:
    """Returns the share left of every device's port, [devices], by (tier, torus axis), of those that faults concern."""
    found: dict[tuple[int, int], NDArray[np.float64]] = {}
    for port in degraded_ports(cluster):
        share = np.ones(cluster.num_devices)
        share[port.devices] = port.share
        found[port.tier, port.dim] = share
    return found


def slow_devices(cluster: Cluster) -> tuple[tuple[int, float], ...]:
    """Returns (device, factor on its compute time) of every slow device that the job uses; several factors multiply."""
    found: dict[int, float] = {}
    for entry in cluster.degraded:
        if entry.slowdown is not None:
            for device in _used(cluster, entry.chosen_devices(cluster.node_size)):
                found[device] = found.get(device, 1.0) * entry.slowdown
    return tuple(sorted(found.items()))


def device_shares(cluster: Cluster) -> Iterator[tuple[int, int, float]]:
    """Yields (tier, device, share) of each fault of a device's own port, for every tier that goes through the port."""
    tiers = {tier.name: tier for tier in cluster.tiers}
    for entry in cluster.degraded:
        tier = tiers.get(entry.tier)
        if tier is None or entry.bandwidth is None or entry.link is not None:
            continue
        devices = _of_rail(cluster, tier, entry) or _used(cluster, entry.chosen_devices(cluster.node_size))
        for other in cluster.tiers:
            if other.port == tier.port:
                yield from ((other.index, device, entry.bandwidth) for device in devices)


def link_shares(cluster: Cluster) -> Iterator[tuple[int, int, float]]:
    """Yields (device, device, share) of each degraded link that the job uses."""
    used = {tier.name for tier in cluster.tiers}
    for entry in cluster.degraded:
        inside = entry.link is not None and max(entry.link) < cluster.num_devices and entry.tier in used
        if inside and entry.link is not None and entry.bandwidth is not None:
            yield (*entry.link, entry.bandwidth)


def _of_rail(cluster: Cluster, tier: Tier, entry: Degraded) -> list[int]:
    if entry.rail is None:
        return []
    size = port_levels(cluster.tiers, tier)[0][1].size
    start = 0 if entry.block is None else entry.block * size
    stop = cluster.num_devices if entry.block is None else min(start + size, cluster.num_devices)
    rails = rails_of(cluster.tiers, tier)
    return list(range(start + entry.rail, stop, rails))


def _used(cluster: Cluster, devices: tuple[int, ...]) -> list[int]:
    return [device for device in devices if device < cluster.num_devices]


def _multiply(
    shares: dict[tuple[int, int], dict[int, float]], port: tuple[int, int], device: int, share: float
) -> None:
    left = shares.setdefault(port, {})
    left[device] = left.get(device, 1.0) * share


def _with_detours(cluster: Cluster, tier: Tier, left: dict[int, float]) -> dict[int, float]:
    """Spreads the traffic of lost ports over the other ports of the domain inside."""
    inside = [other.size for other in cluster.tiers[: tier.index] if other.port != tier.port]
    size = inside[-1] if inside else 1
    found = dict(left)
    for start in sorted({device // size * size for device, share in left.items() if share == 0}):
        domain = range(start, min(start + size, cluster.num_devices))
        whole = [device for device in domain if left.get(device, 1.0) > 0]
        carried = min((left.get(device, 1.0) for device in whole), default=0.0) * len(whole) / len(domain)
        found |= dict.fromkeys(domain, carried)
    return found


def _beside_link(cluster: Cluster, entry: Degraded) -> Iterator[tuple[tuple[int, int], int, float]]:
    """Yields (tier and axis), device, share of the devices whose collectives a degraded link slows."""
    tier = next((tier for tier in cluster.tiers if tier.name == entry.tier), None)
    if tier is None or entry.link is None or entry.bandwidth is None or max(entry.link) >= cluster.num_devices:
        return
    a, b = entry.link
    if tier.kind is TierKind.MESH:
        links = tier.size - 1
        yield from (((tier.index, 0), device, (links - 1 + entry.bandwidth) / links) for device in (a, b))
        return
    start = a // tier.size * tier.size
    axis = neighbours_axis(a - start, b - start, tier.dims, tier.wrap)
    if axis is None:
        return
    places = coordinates(np.arange(tier.size), tier.dims)
    on_line = (np.delete(places, axis, axis=-1) == np.delete(places[a - start], axis)).all(axis=-1)
    share = max(entry.bandwidth, 0.5) if tier.wrap[axis] and tier.dims[axis] > 2 else entry.bandwidth
    yield from (((tier.index, axis), start + int(device), share) for device in np.flatnonzero(on_line))
