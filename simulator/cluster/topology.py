"""The network as an explicit graph, for small clusters: devices, switches and links.

The folded form in `tiers` must say the same; the tests compare the two.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import networkx as nx

from simulator.cluster.cluster import Cluster, Tier
from simulator.cluster.spec import TierKind
from simulator.cluster.tiers import pair_bandwidth_bytes_per_s, tiers_under_port
from simulator.cluster.torus import coordinates
from simulator.errors import SimulatorFault

Network: TypeAlias = "nx.Graph[Any]"
"""Nodes: device numbers, and (tier name, domain) for switches. Edges: `tier` and `bandwidth_bytes_per_s`, one way."""

MAX_DEVICES = 4096
"""Largest cluster drawn link by link; larger ones are for the folded form."""


def explicit_graph(cluster: Cluster, *, max_devices: int = MAX_DEVICES) -> Network:
    """Returns every device, switch and link of a cluster.

    A switched domain is one node with a link to the port of each device; where the tier shares its port with the tier
    inside, the links go from the inner switches, with the bandwidth of all their devices over the oversubscription.

    Args:
        cluster: The cluster.
        max_devices: Refuse larger clusters.

    Raises:
        SimulatorFault: The cluster has more than `max_devices` devices.
    """
    if cluster.num_devices > max_devices:
        raise SimulatorFault(f"explicit graph of {cluster.num_devices} devices asked for; at most {max_devices}")
    graph: Network = nx.Graph()
    graph.add_nodes_from(range(cluster.num_devices), kind="device")
    for tier in cluster.tiers:
        for start in range(0, cluster.num_devices, tier.size):
            devices = range(start, min(start + tier.size, cluster.num_devices))
            if tier.kind is TierKind.SWITCH:
                _add_switch(graph, cluster, tier, devices)
            elif tier.kind is TierKind.MESH:
                _add_mesh(graph, tier, devices)
            else:
                _add_torus(graph, tier, devices)
    return graph


def _add_switch(graph: Network, cluster: Cluster, tier: Tier, devices: range) -> None:
    switch = (tier.name, devices.start // tier.size)
    graph.add_node(switch, kind="switch")
    under = tiers_under_port(cluster.tiers, tier)
    inner_size = under[-1].size if under else 1
    for start in range(devices.start, devices.stop, inner_size):
        below = (under[-1].name, start // inner_size) if under else start
        count = min(inner_size, devices.stop - start)
        _link(graph, tier, below, switch, count * tier.bandwidth_bytes_per_s / tier.oversubscription)


def _add_mesh(graph: Network, tier: Tier, devices: range) -> None:
    for a in devices:
        for b in range(a + 1, devices.stop):
            _link(graph, tier, a, b, pair_bandwidth_bytes_per_s(tier))


def _add_torus(graph: Network, tier: Tier, devices: range) -> None:
    places = [tuple(place) for place in coordinates(range(tier.size), tier.dims).tolist()]
    device_at = {place: devices.start + number for number, place in enumerate(places)}
    for place in places:
        for axis, (length, wraps) in enumerate(zip(tier.dims, tier.wrap, strict=True)):
            if place[axis] + 1 < length or (wraps and length > 2):
                beyond = (*place[:axis], (place[axis] + 1) % length, *place[axis + 1 :])
                _link(graph, tier, device_at[place], device_at[beyond], tier.bandwidth_bytes_per_s)


def _link(graph: Network, tier: Tier, a: object, b: object, bandwidth_bytes_per_s: float) -> None:
    graph.add_edge(a, b, tier=tier.index, bandwidth_bytes_per_s=bandwidth_bytes_per_s)
