"""From any graph of nodes and links to the tiers that the rest of the program reads.

A tier joins runs of consecutive devices that reach each other equally well. Its figures are those of the worst case, so
that the folded network never promises more than the links hold: the narrowest port, the longest way, and the
oversubscription of the narrowest cut around a domain of the tier inside or through the middle.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from math import inf

import networkx as nx
import numpy as np
from numpy.typing import NDArray

from simulator.cluster.figures import BandwidthFigure, CountFigure, RatioFigure, SecondsFigure
from simulator.cluster.network_spec import NetworkSpec, joined
from simulator.cluster.routes import Network, distances_to, route
from simulator.cluster.tier_spec import TierKind, TierSpec

_SAME = 1e-9
"""Bandwidths that differ by less are the same."""


def network_graph(network: NetworkSpec, num_devices: int) -> Network:
    """Returns the graph of a network that is written link by link; parallel links are one, of their bandwidths' sum.

    Raises:
        ValueError: a link ends at a device that is not there.
    """
    graph: Network = nx.DiGraph()
    graph.add_nodes_from(range(num_devices), kind="device")
    graph.add_nodes_from(network.switches, kind="switch")
    for link in network.links:
        for a, b in joined(link):
            for end in (a, b):
                if end not in graph:
                    raise ValueError(f"link {' to '.join(link.between)}: there are devices 0 to {num_devices - 1} only")
            for source, target in ((a, b),) if link.one_way else ((a, b), (b, a)):
                before = graph.edges[source, target] if graph.has_edge(source, target) else {}
                graph.add_edge(
                    source,
                    target,
                    tier=None,
                    bandwidth_bytes_per_s=link.bandwidth.value + before.get("bandwidth_bytes_per_s", 0.0),
                    latency_s=max(link.latency.value, before.get("latency_s", 0.0)),
                )
    return graph


@dataclass(frozen=True, slots=True, kw_only=True)
class _Ways:
    """The ways between all devices, [source, target]; the diagonal says nothing."""

    bandwidth_bytes_per_s: NDArray[np.float64]
    latency_s: NDArray[np.float64]
    hops: NDArray[np.int64]
    first_links: tuple[tuple[frozenset[object], ...], ...]
    """Neighbours to which the source sends."""


def reduce_network(network: NetworkSpec, num_devices: int) -> tuple[TierSpec, ...]:
    """Returns the tiers that stand for a network.

    Args:
        network: nodes and links.
        num_devices: devices of the cluster.

    Raises:
        ValueError: two devices have no way between them, or declared domains do not nest.
    """
    if num_devices == 1:
        raise ValueError("network: a cluster of one device has no network; give it a tier")
    graph = network_graph(network, num_devices)
    ways = _ways(graph, num_devices, forwarding=network.forwarding)
    domains = _declared(network, num_devices) or _detected(ways, num_devices)
    tiers: list[TierSpec] = []
    ports: list[tuple[frozenset[object], ...]] = []
    cumulative, inner = 1.0, 1
    for name, size in domains:
        port = tuple(frozenset().union(*_joined_here(row, at, inner, size)) for at, row in enumerate(ways.first_links))
        shares = bool(ports) and ports[-1] == port
        tier = _tier(name, inner, size, graph=graph, ways=ways, network=network, port=port)
        found = tier.oversubscription.value
        before = cumulative if shares else 1.0
        cumulative = max(found, before)
        tiers.append(
            tier.model_copy(
                update={
                    "oversubscription": RatioFigure(value=cumulative / before, source=tier.source),
                    "port": tiers[-1].port or tiers[-1].name if shares else name,
                }
            )
        )
        ports.append(port)
        inner = size
    return tuple(tiers)


def _ways(graph: Network, num_devices: int, *, forwarding: bool) -> _Ways:
    shape = (num_devices, num_devices)
    bandwidth, latency, hops = np.full(shape, inf), np.zeros(shape), np.zeros(shape, dtype=np.int64)
    first: list[list[frozenset[object]]] = [[frozenset()] * num_devices for _ in range(num_devices)]
    for target in range(num_devices):
        distances = distances_to(graph, target, forwarding=forwarding)
        for source in range(num_devices):
            if source == target:
                continue
            way = route(graph, source, target, forwarding=forwarding, distances=distances)
            if way is None:
                raise ValueError(
                    f"network: no way from device {source} to device {target}"
                    + ("" if forwarding else " that passes through switches only; devices pass on traffic of others "
                       "where forwarding is true")
                )  # fmt: skip
            bandwidth[source, target] = way.bandwidth_bytes_per_s
            latency[source, target] = way.latency_s
            hops[source, target] = way.hops
            first[source][target] = frozenset(after for node, after in way.shares if node == source)
    return _Ways(
        bandwidth_bytes_per_s=bandwidth, latency_s=latency, hops=hops, first_links=tuple(tuple(row) for row in first)
    )


def _declared(network: NetworkSpec, num_devices: int) -> list[tuple[str, int]]:
    domains = list(network.domains.items())
    sizes = [1, *(size for _, size in domains)]
    for inner, outer in itertools.pairwise(sizes):
        if outer <= inner or outer % inner:
            raise ValueError(f"network: domains of {outer} devices do not hold several whole domains of {inner}")
    if domains and sizes[-1] != num_devices:
        raise ValueError(f"network: the last of the domains has {sizes[-1]} devices; it must join all {num_devices}")
    return domains


def _detected(ways: _Ways, num_devices: int) -> list[tuple[str, int]]:
    """Runs of devices that reach each other with more bandwidth, or over fewer links, than devices outside."""
    both = np.minimum(ways.bandwidth_bytes_per_s, ways.bandwidth_bytes_per_s.T)
    far = np.maximum(ways.hops, ways.hops.T)
    kinds = sorted({(-both[a, b], int(far[a, b])) for a in range(num_devices) for b in range(a)})
    sizes: list[int] = []
    for negative, links in kinds:
        more = both > -negative * (1 + _SAME)
        same = (np.abs(both + negative) <= _SAME * -negative) & (far <= links)
        size = _run(more | same | np.eye(num_devices, dtype=bool))
        if size > (sizes[-1] if sizes else 1) and not (sizes and size % sizes[-1]):
            sizes.append(size)
    if not sizes or sizes[-1] != num_devices:
        sizes.append(num_devices)
    return [(f"tier-{at}", size) for at, size in enumerate(sizes)]


def _run(near: NDArray[np.bool_]) -> int:
    """Returns the size of the parts that `near` joins, if they are equal runs of consecutive devices, else 0."""
    parts = [sorted(part) for part in nx.connected_components(nx.from_numpy_array(near))]
    size = len(parts[0])
    runs = all(len(part) == size and part[0] % size == 0 and part[-1] == part[0] + size - 1 for part in parts)
    return size if runs else 0


def _joined_here(row: tuple[frozenset[object], ...], at: int, inner: int, size: int) -> list[frozenset[object]]:
    """First links to the devices of the same domain that lie in other inner domains."""
    start = at // size * size
    return [row[other] for other in range(start, start + size) if other // inner != at // inner]


def _tier(
    name: str,
    inner: int,
    size: int,
    *,
    graph: Network,
    ways: _Ways,
    network: NetworkSpec,
    port: tuple[frozenset[object], ...],
) -> TierSpec:
    devices = len(port)
    number = np.arange(devices)
    here = (number[:, None] // size == number // size) & (number[:, None] // inner != number // inner)
    bandwidth = min(
        sum(graph.edges[device, after]["bandwidth_bytes_per_s"] for after in port[device]) for device in range(devices)
    )
    source = "made of the links of the network"
    is_mesh = inner == 1 and size > 1 and bool((ways.hops[here] == 1).all())
    return TierSpec(
        source=source,
        name=name,
        kind=TierKind.MESH if is_mesh else TierKind.SWITCH,
        size=CountFigure(value=size),
        bandwidth=BandwidthFigure(value=bandwidth),
        latency=SecondsFigure(value=float(ways.latency_s[here].max(initial=0.0))),
        efficiency=network.efficiency,
        oversubscription=RatioFigure(
            value=1.0 if is_mesh else _oversubscription(graph, inner, size, bandwidth, network, devices)
        ),
    )


def _oversubscription(
    graph: Network, inner: int, size: int, bandwidth: float, network: NetworkSpec, devices: int
) -> float:
    """The devices' ports over the narrowest cut: around an inner domain, or between halves of the inner domains."""
    worst = 1.0
    for start in range(0, devices, size):
        whole = range(start, start + size)
        cuts = [range(at, at + inner) for at in range(start, start + size, inner)]
        if size // inner > 2:
            cuts.append(range(start, start + size // inner // 2 * inner))
        for near in cuts:
            rest = [device for device in whole if device not in near]
            carried = max_flow_bytes_per_s(graph, near, rest, forwarding=network.forwarding)
            worst = max(worst, min(len(near), len(rest)) * bandwidth / carried)
    return worst


def max_flow_bytes_per_s(
    graph: Network, sources: range | list[int], targets: range | list[int], *, forwarding: bool = False
) -> float:
    """Returns the most that a set of devices can send to another at once, over any paths (the smallest cut).

    Source: Ford and Fulkerson 1956.
    """
    flow: Network = nx.DiGraph()
    sends, receives = set(sources), set(targets)
    for a, b, link in graph.edges(data=True):
        passes = forwarding or (
            (graph.nodes[a]["kind"] == "switch" or a in sends) and (graph.nodes[b]["kind"] == "switch" or b in receives)
        )
        if passes:
            flow.add_edge(a, b, capacity=link["bandwidth_bytes_per_s"])
    flow.add_edges_from(("sources", device) for device in sends)
    flow.add_edges_from((device, "targets") for device in receives)
    carried: float = nx.maximum_flow_value(flow, "sources", "targets")
    return carried
