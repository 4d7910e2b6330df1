"""Networks written link by link, and the tiers that are made of them."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.cluster import (
    Cluster,
    ClusterSpec,
    TierKind,
    bandwidth_of_pair,
    build_cluster,
    hops,
    pair_latency_s,
    tier_of_pair,
    uplink,
)
from simulator.cluster.network_tiers import max_flow_bytes_per_s
from simulator.cluster.routes import route
from simulator.cluster.topology import explicit_graph
from tests.cluster.machines import ACCELERATOR, machine, tier


def link(a: str, b: str, bandwidth: str, **more: Any) -> dict[str, Any]:
    return {"between": [a, b], "bandwidth": bandwidth, "latency": "1 us", **more}


def network(devices: int, switches: list[str], links: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
    return {
        "name": "written",
        "description": "a network of the tests",
        "source": "made up",
        "accelerator": ACCELERATOR,
        "devices": str(devices),
        "node_size": "1",
        "network": {"switches": switches, "links": links, "efficiency": "0.9", **more},
    }


def built(given_: dict[str, Any]) -> Cluster:
    return build_cluster(ClusterSpec.model_validate(given_))


def two_nodes(uplinks: str, **more: Any) -> dict[str, Any]:
    """Two nodes of four devices, each with an inner switch, and a network with two spines."""
    links = [link("0-3", "inner0", "100 GB/s"), link("4-7", "inner1", "100 GB/s")]
    links += [link("0-3", "leaf0", "10 GB/s"), link("4-7", "leaf1", "10 GB/s")]
    links += [link(leaf, spine, uplinks) for leaf in ("leaf0", "leaf1") for spine in ("spine0", "spine1")]
    return network(8, ["inner0", "inner1", "leaf0", "leaf1", "spine0", "spine1"], links, **more)


def test_two_nodes_on_a_leaf_and_spine_are_two_tiers() -> None:
    cluster = built(two_nodes("20 GB/s"))
    inner, outer = cluster.tiers
    assert (inner.size, inner.bandwidth_bytes_per_s, inner.oversubscription) == (4, 110e9, 1)
    assert (outer.size, outer.bandwidth_bytes_per_s, outer.oversubscription) == (8, 10e9, 1)
    assert (inner.latency_s, outer.latency_s) == (pytest.approx(2e-6), pytest.approx(4e-6))


def test_narrow_uplinks_are_oversubscription() -> None:
    cluster = built(two_nodes("5 GB/s"))
    assert cluster.tiers[1].oversubscription == pytest.approx(4.0)
    assert uplink(cluster, cluster.tiers[1]).capacity_bytes_per_s == pytest.approx(10e9)


def test_domains_can_be_named() -> None:
    cluster = built(two_nodes("20 GB/s", domains={"node": "4", "all": "8"}))
    assert [(part.name, part.size) for part in cluster.tiers] == [("node", 4), ("all", 8)]


def test_a_full_mesh_is_a_mesh() -> None:
    links = [link(str(a), str(b), "50 GB/s") for a in range(4) for b in range(a)]
    (only,) = built(network(4, [], links)).tiers
    assert (only.kind, only.bandwidth_bytes_per_s) == (TierKind.MESH, 150e9)


def test_a_ring_passes_traffic_on_where_devices_forward() -> None:
    links = [link(str(at), str((at + 1) % 6), "10 GB/s") for at in range(6)]
    with pytest.raises(ValueError, match="no way from device 2 to device 0 that passes through switches only"):
        built(network(6, [], links))
    cluster = built(network(6, [], links, forwarding="true"))
    graph = explicit_graph(cluster)
    half = route(graph, 0, 3, forwarding=True)
    assert half is not None
    assert (half.hops, half.bandwidth_bytes_per_s) == (3, 20e9)  # both ways around, half of the traffic each
    # Three devices to the three others: 3 x 20 GB/s of ports over the two links that a cut in two leaves.
    assert cluster.tiers[-1].oversubscription == pytest.approx(60 / 20)


def test_traffic_is_spread_equally_over_shortest_paths() -> None:
    links = [link("0", "a", "30 GB/s"), link("1", "b", "30 GB/s")]
    links += [link("a", f"s{at}", "10 GB/s") for at in range(3)] + [link(f"s{at}", "b", "8 GB/s") for at in range(3)]
    graph = explicit_graph(built(network(2, ["a", "b", "s0", "s1", "s2"], links)))
    way = route(graph, 0, 1)
    assert way is not None
    assert way.shares["a", "s1"] == pytest.approx(1 / 3)
    assert way.bandwidth_bytes_per_s == pytest.approx(24e9)


def test_one_way_links_and_parallel_links() -> None:
    links = [link("0", "1", "10 GB/s", one_way="true"), link("0-1", "s", "4 GB/s"), link("0", "1", "10 GB/s")]
    graph = explicit_graph(built(network(2, ["s"], links)))
    assert graph.edges[0, 1]["bandwidth_bytes_per_s"] == 20e9
    assert graph.edges[1, 0]["bandwidth_bytes_per_s"] == 10e9


@pytest.mark.parametrize(
    ("given_", "message"),
    [
        (network(2, ["s"], [link("0-1", "t", "1 GB/s")]), "'t' is no device and none of the switches"),
        (network(2, ["7"], [link("0-1", "7", "1 GB/s")]), "switch 7 is called like a device"),
        (network(2, ["s"], [link("0-2", "s", "1 GB/s")]), "link 0-2 to s: there are devices 0 to 1 only"),
        (network(4, ["s", "t"], [link("0-1", "s", "1 GB/s"), link("2-3", "t", "1 GB/s")]), "no way from device 2 to"),
        (two_nodes("1 GB/s", domains={"a": "3", "b": "8"}), "domains of 8 devices do not hold several whole domains"),
        (two_nodes("1 GB/s", domains={"a": "4"}), "the last of the domains has 4 devices; it must join all 8"),
        (network(300, ["s"], [link("0-299", "s", "1 GB/s")]), "300 devices written link by link, at most 256"),
        (machine(tier("x", "switch", 2), network={"links": []}), "tiers stand beside network"),
        (network(2, [], []), "network.links"),
        (network(1, ["s"], [link("0", "s", "1 GB/s")]), "a cluster of one device has no network"),
    ],
)
def test_a_wrong_network_is_refused(given_: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        built(given_)


@st.composite
def written_trees(draw: st.DrawFn) -> dict[str, Any]:
    """Leaves with equal numbers of devices under spines, every link of a layer alike."""
    leaves, under, spines = draw(st.integers(1, 4)), draw(st.integers(2, 4)), draw(st.integers(1, 3))
    up = draw(st.sampled_from(["2 GB/s", "10 GB/s", "40 GB/s"]))
    links = [link(f"{at * under}-{at * under + under - 1}", f"leaf{at}", "10 GB/s") for at in range(leaves)]
    links += [link(f"leaf{at}", f"spine{spine}", up) for at in range(leaves) for spine in range(spines)]
    names = [f"leaf{at}" for at in range(leaves)] + [f"spine{at}" for at in range(spines)]
    return network(leaves * under, names, links)


@settings(max_examples=20, deadline=None)
@given(written_trees())
def test_the_tiers_of_a_network_promise_no_more_than_its_links(given_: dict[str, Any]) -> None:
    cluster = built(given_)
    graph = explicit_graph(cluster)
    count = cluster.num_devices
    for a in range(count):
        for b in range(count):
            way = route(graph, a, b) if a != b else None
            if way is not None:
                assert float(pair_latency_s(cluster, a, b)) >= way.latency_s * (1 - 1e-9)
                assert way.bandwidth_bytes_per_s <= 10e9
    for part in cluster.tiers:
        inner = cluster.tiers[part.index - 1].size if part.index else 1
        for start in range(0, part.size, inner):
            near = list(range(start, start + inner))
            rest = [device for device in range(part.size) if device not in near]
            if rest:
                promised = min(len(near), len(rest)) * part.bandwidth_bytes_per_s / part.oversubscription
                assert promised <= max_flow_bytes_per_s(graph, near, rest) * (1 + 1e-9)


def test_a_written_torus_is_as_the_tier_of_that_kind() -> None:
    links = [link(str(y * 4 + x), str(y * 4 + (x + 1) % 4), "10 GB/s") for x in range(4) for y in range(3)]
    links += [link(str(y * 4 + x), str((y + 1) % 3 * 4 + x), "10 GB/s") for x in range(4) for y in range(3)]
    written = explicit_graph(built(network(12, [], links, forwarding="true")))
    wrap = ["true", "true"]
    torus = tier("ici", "torus", 12, dims=["4", "3"], wrap=wrap, bandwidth="10 GB/s")
    drawn = explicit_graph(build_cluster(ClusterSpec.model_validate(machine(torus))))
    assert set(written.edges) == set(drawn.edges)
    cluster = build_cluster(ClusterSpec.model_validate(machine(torus)))
    for a in range(12):
        for b in range(12):
            if a != b:
                way = route(written, a, b, forwarding=True)
                assert way is not None
                assert way.hops == int(hops(cluster, a, b))
    assert int(tier_of_pair(cluster, 0, 11)) == 0
    assert float(bandwidth_of_pair(cluster, 0, 1)) == 10e9
