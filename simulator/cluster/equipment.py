"""How many switches and links a network is built of.

A layer of k-port switches that does not block has half of its ports down and half up, the outermost all down:

    two levels:     k^2/2 endpoints, 3k/2 switches
    three levels:   k^3/4 endpoints, 5k^2/4 switches

Source: Al-Fares et al. 2008; equations.md E4.18; the counts of the DGX SuperPOD reference architecture.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

from simulator.cluster.cluster import Cluster
from simulator.cluster.tier import Level, Tier
from simulator.cluster.tier_spec import TierKind
from simulator.cluster.tiers import port_levels, rails_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """One layer of switches of the whole cluster."""

    tier: str
    """Name of the tier."""
    name: str
    """Name of the layer."""
    num_blocks: int
    """Blocks of consecutive devices that it joins."""
    switches_per_block: int | None
    """None: unknown."""
    num_links: float
    """Links down from this layer, in units of a device's port."""
    uplink_bytes_per_s: float
    """Bandwidth from one block of the layer below (a device) into this one, one direction."""

    @property
    def num_switches(self) -> int | None:
        """Of the whole cluster; None: unknown."""
        return None if self.switches_per_block is None else self.switches_per_block * self.num_blocks


def layers(cluster: Cluster) -> tuple[Layer, ...]:
    """Returns every layer of switches, from inside out."""
    found: list[Layer] = []
    for tier in cluster.tiers:
        stack = port_levels(cluster.tiers, tier)
        for level in tier.levels:
            at = next(number for number, (_, other) in enumerate(stack) if other is level)
            below = stack[at - 1][1].size if at else 1
            found.append(
                Layer(
                    tier=tier.name,
                    name=level.name,
                    num_blocks=ceil(cluster.num_devices / level.size),
                    switches_per_block=switches_of(cluster, tier, level),
                    num_links=cluster.num_devices / tier.oversubscription,
                    uplink_bytes_per_s=below * tier.bandwidth_bytes_per_s / tier.oversubscription,
                )
            )
    return tuple(found)


def switches_of(cluster: Cluster, tier: Tier, level: Level) -> int | None:
    """Returns the switches of one block of a layer: as written, else as many as their ports ask for; None: unknown."""
    if level.switches is not None or level.radix is None:
        return level.switches
    rails = rails_of(cluster.tiers, tier) if level.per_rail else 1
    ports_down = level.size / tier.oversubscription / rails
    return rails * ceil(ports_down / _down_ports(cluster, tier, level))


def _down_ports(cluster: Cluster, tier: Tier, level: Level) -> int:
    """Ports of one switch that lead down; those up hold what the next layer's oversubscription leaves."""
    radix = level.radix or 1
    outermost = [other for other in cluster.tiers if other.port == tier.port][-1]
    stack = port_levels(cluster.tiers, outermost)
    outward = [part for part, other in stack[[other for _, other in stack].index(level) + 1 :]]
    if not outward:
        return radix if outermost.links is None else radix // 2
    ratio = outward[0].oversubscription / tier.oversubscription
    return int(radix * ratio / (1 + ratio))


def direct_links(cluster: Cluster, tier: Tier) -> int:
    """Returns the links between devices (torus, mesh) or the pairs of joined domains (links) of the whole cluster."""
    domains = ceil(cluster.num_devices / tier.size)
    if tier.kind is TierKind.TORUS:
        lines = zip(tier.dims, tier.wrap, strict=True)
        per_torus = sum(tier.size // length * _line_links(length, wraps) for length, wraps in lines)
        return domains * per_torus
    if tier.kind is TierKind.MESH:
        return domains * tier.size * (tier.size - 1) // 2
    if tier.links is not None:
        return domains * tier.links.num_domains * (tier.links.num_domains - 1) // 2
    return 0


def _line_links(length: int, wraps: bool) -> int:
    return length if wraps and length > 2 else length - 1


def fat_tree(ports: int, num_levels: int) -> tuple[int, int]:
    """Returns endpoints and switches of the largest non-blocking fat tree of k-port switches (E4.18).

    For L levels: endpoints 2·(k/2)^L, switches (2L - 1)·(k/2)^(L-1).
    """
    half = ports // 2
    return 2 * half**num_levels, (2 * num_levels - 1) * half ** (num_levels - 1)
