"""The network as an explicit graph, for small clusters: devices, switches and directed links.

The folded form in `tiers` must say the same; the tests compare the two.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import networkx as nx

from simulator.cluster.cluster import Cluster
from simulator.cluster.degraded import device_shares, link_shares
from simulator.cluster.equipment import switches_of
from simulator.cluster.network_tiers import network_graph
from simulator.cluster.routes import Network
from simulator.cluster.tier import FIBRE_S_PER_KM, Level, Links, Tier
from simulator.cluster.tier_spec import TierKind
from simulator.cluster.tiers import pair_bandwidth_bytes_per_s, port_levels, rails_of, tiers_under_port
from simulator.cluster.torus import coordinates
from simulator.errors import SimulatorFault

MAX_DEVICES = 4096
"""Largest cluster drawn link by link; larger ones are for the folded form."""


def explicit_graph(cluster: Cluster, *, max_devices: int = MAX_DEVICES) -> Network:
    """Returns every device, switch and link of a cluster, each direction of a link by itself.

    Nodes: device numbers, and (tier, layer, block, number) for switches, with `kind`. Links: index of the `tier`,
    `bandwidth_bytes_per_s` and `latency_s`. A device is linked to all switches of its block in the first layer (of its
    rail, where there are rails). Between layers each switch of a block has an equal share of the block's uplinks: to
    the switches of its own plane (`S_upper / S_lower` of them), where layers fit evenly, else to all. Faults of the
    cluster are drawn: lost links are left out, degraded ones narrower.

    Args:
        cluster: The cluster.
        max_devices: Refuse larger clusters.

    Raises:
        SimulatorFault: The cluster has more than `max_devices` devices.
    """
    if cluster.num_devices > max_devices:
        raise SimulatorFault(f"explicit graph of {cluster.num_devices} devices asked for; at most {max_devices}")
    if cluster.network is not None:
        return network_graph(cluster.network, cluster.num_devices)
    drawing = _Drawing(cluster=cluster)
    drawing.graph.add_nodes_from(range(cluster.num_devices), kind="device")
    for tier in cluster.tiers:
        if tier.kind is TierKind.SWITCH and tier.links is None:
            drawing.add_layers(tier)
        for start in range(0, cluster.num_devices, tier.size):
            devices = range(start, min(start + tier.size, cluster.num_devices))
            if tier.kind is TierKind.MESH:
                drawing.add_mesh(tier, devices)
            elif tier.kind is TierKind.TORUS:
                drawing.add_torus(tier, devices)
            elif tier.links is not None:
                drawing.add_links(tier, tier.links, devices)
    _degrade(drawing.graph, cluster)
    return drawing.graph


@dataclass(slots=True, kw_only=True)
class _Drawing:
    """The graph as far as it is drawn."""

    cluster: Cluster
    graph: Network = field(default_factory=nx.DiGraph)

    def add_layers(self, tier: Tier) -> None:
        stack = port_levels(self.cluster.tiers, tier)
        first = len(stack) - len(tier.levels)
        for at, (_, level) in enumerate(stack[first:], start=first):
            below = stack[at - 1] if at else None
            reached = [
                max(other.latency_s for _, other in stack[: number + 1]) for number in (at - 1, at) if number >= 0
            ]
            latency_s = (reached[-1] - (reached[0] if at else 0.0)) / 2
            for block, start in enumerate(range(0, self.cluster.num_devices, level.size)):
                devices = range(start, min(start + level.size, self.cluster.num_devices))
                switches = self._switches(tier, level, block)
                self.graph.add_nodes_from(switches, kind="switch")
                if below is None:
                    self._attach(tier, level, devices, switches, latency_s)
                else:
                    self._join(tier, level, devices, switches, below, latency_s)

    def _switches(self, tier: Tier, level: Level, block: int) -> list[Any]:
        rails = rails_of(self.cluster.tiers, tier) if level.per_rail else 1
        count = switches_of(self.cluster, tier, level) or rails
        return [(tier.name, level.name, block, number) for number in range(count)]

    def _attach(self, tier: Tier, level: Level, devices: range, switches: list[Any], latency_s: float) -> None:
        rails = tier.rails if level.per_rail else 1
        for device in devices:
            own = _of_rail(switches, device % rails, rails)
            for switch in own:
                self.link(
                    tier, device, switch, tier.bandwidth_bytes_per_s / tier.oversubscription / len(own), latency_s
                )

    def _join(
        self, tier: Tier, level: Level, devices: range, switches: list[Any], below: tuple[Tier, Level], latency_s: float
    ) -> None:
        """Links the switches of the layer below, block by block, to those of this layer."""
        inner_tier, inner = below
        rails = rails_of(self.cluster.tiers, tier)
        parts = rails if inner.per_rail else 1
        for start in range(devices.start, devices.stop, inner.size):
            under = range(start, min(start + inner.size, devices.stop))
            lower = self._switches(inner_tier, inner, start // inner.size)
            for part in range(parts):
                own = _of_rail(lower, part, parts)
                count = sum(device % parts == part for device in under)
                share = count * tier.bandwidth_bytes_per_s / tier.oversubscription / len(own)
                upper = _of_rail(switches, part, rails) if level.per_rail else switches
                planes = len(own) if len(upper) % len(own) == 0 and level.per_rail == inner.per_rail else 1
                for number, switch in enumerate(own):
                    targets = _of_rail(upper, number % planes, planes)
                    for target in targets:
                        self.link(tier, switch, target, share / len(targets), latency_s)

    def add_mesh(self, tier: Tier, devices: range) -> None:
        for a in devices:
            for b in range(a + 1, devices.stop):
                self.link(tier, a, b, pair_bandwidth_bytes_per_s(tier), tier.latency_s)

    def add_torus(self, tier: Tier, devices: range) -> None:
        places = [tuple(place) for place in coordinates(range(tier.size), tier.dims).tolist()]
        device_at = {place: devices.start + number for number, place in enumerate(places)}
        for place in places:
            for axis, (length, wraps) in enumerate(zip(tier.dims, tier.wrap, strict=True)):
                if place[axis] + 1 < length or (wraps and length > 2):
                    beyond = (*place[:axis], (place[axis] + 1) % length, *place[axis + 1 :])
                    self.link(tier, device_at[place], device_at[beyond], tier.bandwidth_bytes_per_s, tier.latency_s)

    def add_links(self, tier: Tier, links: Links, devices: range) -> None:
        """Joins the outermost switches of every two domains one by one; without such, a border switch for each."""
        inner = self.cluster.tiers[tier.index - 1]
        base_s = tier.latency_s - FIBRE_S_PER_KM * links.longest_km
        ends: list[list[Any]] = []
        reached_s = 0.0
        for number, start in enumerate(range(devices.start, devices.stop, inner.size)):
            stack = port_levels(self.cluster.tiers, tier)
            if tiers_under_port(self.cluster.tiers, tier):
                ends.append(self._switches(*stack[-1], start // stack[-1][1].size))
                reached_s = max(level.latency_s for _, level in stack)
            else:
                border = (tier.name, "border", devices.start // tier.size, number)
                self.graph.add_node(border, kind="switch")
                ends.append([border])
                for device in range(start, min(start + inner.size, devices.stop)):
                    self.link(tier, device, border, tier.bandwidth_bytes_per_s, 0.0)
        for a in range(len(ends)):
            for b in range(a + 1, len(ends)):
                bytes_per_s, distance_km = links.between(a, b)
                latency_s = max(base_s - reached_s, 0.0) + FIBRE_S_PER_KM * distance_km
                for x, y in zip(ends[a], ends[b], strict=True):
                    self.link(tier, x, y, bytes_per_s / len(ends[a]), latency_s)

    def link(self, tier: Tier, a: Any, b: Any, bandwidth_bytes_per_s: float, latency_s: float) -> None:
        for source, target in ((a, b), (b, a)):
            self.graph.add_edge(
                source, target, tier=tier.index, bandwidth_bytes_per_s=bandwidth_bytes_per_s, latency_s=latency_s
            )


def _of_rail(switches: list[Any], rail: int, rails: int) -> list[Any]:
    """The switches of one rail, or of one plane: an equal run of them."""
    each = len(switches) // rails
    return switches[rail * each : (rail + 1) * each]


def _degrade(graph: Network, cluster: Cluster) -> None:
    for tier_index, device, share in device_shares(cluster):
        port = cluster.tiers[tier_index].port
        for a, b in [*graph.out_edges(device), *graph.in_edges(device)]:
            if cluster.tiers[graph.edges[a, b]["tier"]].port == port:
                _narrow(graph, a, b, share)
    for a, b, share in link_shares(cluster):
        _narrow(graph, a, b, share)
        _narrow(graph, b, a, share)


def _narrow(graph: Network, a: Any, b: Any, share: float) -> None:
    if share == 0:
        graph.remove_edge(a, b)
    else:
        graph.edges[a, b]["bandwidth_bytes_per_s"] *= share
