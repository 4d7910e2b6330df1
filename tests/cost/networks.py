"""Small networks for the tests of collectives: full rate, no oversubscription."""

from __future__ import annotations

from math import prod
from typing import Any

from simulator.cluster import Cluster, build_cluster
from simulator.parallel.groups import GroupShape, shape_of
from tests.cluster.machines import spec, tier


def fast_tier(
    name: str, size: int, *, bytes_per_s: float = 1e9, latency_s: float = 1e-6, **more: Any
) -> dict[str, Any]:
    """A tier whose nominal bandwidth is reached."""
    figures = {"bandwidth": f"{bytes_per_s / 1e9:.9g} GB/s", "latency": f"{latency_s * 1e9:.9g} ns", "efficiency": "1"}
    return tier(name, more.pop("kind", "switch"), size, **figures, **more)


def machine_of(*tiers: dict[str, Any]) -> Cluster:
    """The cluster of these tiers."""
    return build_cluster(spec(*tiers))


def torus(*dims: int) -> Cluster:
    """A torus closed on all axes."""
    lengths = [str(length) for length in dims]
    wrap = ["true"] * len(dims)
    return machine_of(fast_tier("ici", prod(dims), kind="torus", dims=lengths, wrap=wrap))


def whole(cluster: Cluster) -> GroupShape:
    """All devices as one group."""
    domains = tuple(tier.size for tier in cluster.tiers)
    slices = tuple(tier.dims for tier in cluster.tiers)
    return shape_of(((cluster.num_devices, 1),), cluster, domains, slices)
