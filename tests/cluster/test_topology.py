"""The folded form of the network and the explicit graph say the same."""

from __future__ import annotations

import itertools
import math
from typing import Any

import networkx as nx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.cluster import Cluster, TierKind, bisection_bytes_per_s, build_cluster, hops, load_profile, tier_of_pair
from simulator.cluster.tiers import tiers_under_port
from simulator.cluster.topology import explicit_graph
from simulator.cluster.torus import coordinates, slice_of
from simulator.errors import ScenarioError, SimulatorFault
from tests.cluster.machines import spec, tier


@st.composite
def clusters(draw: st.DrawFn) -> Cluster:
    """One to three tiers of any kind, up to 96 devices."""
    if draw(st.booleans()):
        dims = tuple(draw(st.lists(st.integers(1, 4), min_size=1, max_size=3)))
        wrap = [draw(st.sampled_from(["true", "false"])) for _ in dims]
        tiers = [tier("torus", "torus", math.prod(dims), dims=[str(length) for length in dims], wrap=wrap)]
    else:
        tiers = [tier("inner", draw(st.sampled_from(["switch", "mesh"])), draw(st.sampled_from([2, 3, 4, 8])))]
    size = int(tiers[0]["size"])
    shared = {"port": "nic"} if draw(st.booleans()) else {}
    for name in draw(st.sampled_from([[], ["pod"], ["pod", "spine"]])):
        size *= draw(st.sampled_from([2, 4]))
        more = {"oversubscription": str(draw(st.sampled_from([1, 2, 7])))} if name == "spine" else {}
        tiers.append(tier(name, "switch", size, bandwidth="25 GB/s", **shared, **more))
    return build_cluster(spec(*tiers))


@settings(max_examples=60, deadline=None)
@given(clusters())
def test_tier_and_hops_of_every_pair_are_those_of_the_graph(cluster: Cluster) -> None:
    graph = explicit_graph(cluster)
    devices = np.arange(min(cluster.num_devices, 24))
    a, b = np.meshgrid(devices, devices, indexing="ij")
    folded_tier, folded_hops = tier_of_pair(cluster, a, b), hops(cluster, a, b)
    for part in cluster.tiers:
        reach = graph.edge_subgraph([e for e in graph.edges if graph.edges[e]["tier"] <= part.index])
        used = {part.index, *(under.index for under in tiers_under_port(cluster.tiers, part))}
        own = graph.edge_subgraph([e for e in graph.edges if graph.edges[e]["tier"] in used])
        for first, second in itertools.combinations(devices.tolist(), 2):
            connected = first in reach and second in reach and nx.has_path(reach, first, second)
            assert connected == (folded_tier[first, second] <= part.index)
            if folded_tier[first, second] == part.index:
                assert nx.shortest_path_length(own, first, second) == folded_hops[first, second]


@settings(max_examples=60, deadline=None)
@given(clusters())
def test_bisection_bandwidth_is_the_smallest_cut_of_the_graph(cluster: Cluster) -> None:
    graph = explicit_graph(cluster)
    for part in cluster.tiers:
        if part.size == 1:
            continue
        used = {part.index, *(under.index for under in tiers_under_port(cluster.tiers, part))}
        flow = nx.DiGraph()
        for a, b, link in graph.edges(data=True):
            if link["tier"] in used:
                flow.add_edge(a, b, capacity=link["bandwidth_bytes_per_s"])
                flow.add_edge(b, a, capacity=link["bandwidth_bytes_per_s"])
        cuts = []
        for near in halves(part.size, part.dims):
            whole = flow.copy()
            for device in range(part.size):
                whole.add_edge(*(("from", device) if device in near else (device, "to")))
            cuts.append(nx.maximum_flow_value(whole, "from", "to"))
        assert bisection_bytes_per_s(part) == pytest.approx(min(cuts))


@pytest.mark.parametrize(
    ("part", "links"),
    [
        (tier("mesh", "mesh", 5, bandwidth="40 GB/s"), 2 * 3),
        (tier("mesh", "mesh", 8, bandwidth="70 GB/s"), 4 * 4),
        (tier("line", "torus", 5, dims=["5"], wrap=["false"], bandwidth="10 GB/s"), 1),
        (tier("ring", "torus", 5, dims=["5"], wrap=["true"], bandwidth="10 GB/s"), 2),
        (tier("pair", "torus", 2, dims=["2"], wrap=["true"], bandwidth="10 GB/s"), 1),
        (tier("plane", "torus", 15, dims=["5", "3"], wrap=["true", "false"], bandwidth="10 GB/s"), 5),
        (tier("ports", "switch", 8, bandwidth="10 GB/s"), 4),
        (tier("ports", "switch", 8, bandwidth="10 GB/s", oversubscription="2"), 2),
    ],
)
def test_bisections_counted_by_hand(part: dict[str, Any], links: int) -> None:
    assert bisection_bytes_per_s(build_cluster(spec(part)).tiers[0]) == links * 10e9


def halves(size: int, dims: tuple[int, ...]) -> list[set[int]]:
    """The first half of the devices of the first domain; of a torus, across each of its axes."""
    if not dims:
        return [set(range(size // 2))]
    places = coordinates(range(size), dims)
    return [
        {int(device) for device in np.flatnonzero(places[:, axis] < length // 2)}
        for axis, length in enumerate(dims)
        if length > 1
    ]


def test_a_million_devices_are_arithmetic() -> None:
    cluster = build_cluster(load_profile("h100-superpod"))
    assert tier_of_pair(cluster, 0, [0, 7, 8, 1_048_575]).tolist() == [0, 0, 1, 1]
    assert bisection_bytes_per_s(cluster.tiers[-1]) == 1_048_576 / 2 * 50e9
    with pytest.raises(SimulatorFault, match="1048576 devices"):
        explicit_graph(cluster)


def test_the_oversubscribed_spine_is_reached_through_the_pod_switches() -> None:
    cluster = build_cluster(load_profile("h100-roce-meta24k"), 6144)
    assert tier_of_pair(cluster, [0, 0, 0], [7, 8, 3072]).tolist() == [0, 1, 2]
    assert hops(cluster, [0, 0, 0], [7, 8, 3072]).tolist() == [2, 2, 4]
    assert bisection_bytes_per_s(cluster.tiers[2]) == pytest.approx(3072 * 50e9 / 7)


@given(dims=st.lists(st.integers(1, 12), min_size=1, max_size=3).map(tuple), devices=st.integers(1, 300))
def test_a_slice_is_a_box_that_fits(dims: tuple[int, ...], devices: int) -> None:
    box = slice_of(dims, devices)
    boxes = itertools.product(*(range(1, length + 1) for length in dims))
    if box is None:
        assert all(math.prod(sides) != devices for sides in boxes)
    else:
        assert math.prod(box) == devices
        assert all(side <= length for side, length in zip(box, dims, strict=True))
        assert max(box) == min(max(sides) for sides in boxes if math.prod(sides) == devices)


def test_a_size_that_makes_no_slice_is_refused() -> None:
    with pytest.raises(ScenarioError, match="4097 devices are no equal slices of ici tori of 16x16x16"):
        build_cluster(load_profile("tpu-v4-pod"), 4097)


def test_mesh_shares_its_links_between_peers() -> None:
    cluster = build_cluster(load_profile("mi300x-cluster"), 8)
    assert cluster.tiers[0].kind is TierKind.MESH
    graph = explicit_graph(cluster)
    assert {link["bandwidth_bytes_per_s"] for _, _, link in graph.edges(data=True)} == {64e9}
