"""How many switches and links networks are built of: closed forms, published counts, counts of the explicit graph."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings

from simulator.cluster import Cluster, build_cluster, direct_links, layers, load_profile
from simulator.cluster.equipment import fat_tree
from simulator.cluster.topology import explicit_graph
from tests.cluster.machines import spec, tier
from tests.cluster.random_machines import clusters
from tests.oracles import Record, each

PUBLISHED = {
    512: (16, 8),
    1024: (32, 16),
    2048: (64, 32),
    4096: (128, 128, 64),
    8192: (256, 256, 128),
    16384: (512, 512, 256),
}
"""Leaf, spine and core switches of DGX SuperPODs by devices: NVIDIA, reference architecture of DGX B200, table of
component counts."""


@each("cluster", "comm.fat_tree")
def test_fat_trees_have_the_published_endpoints_and_switches(record: Record) -> None:
    ports = record.inputs["ports"]
    num_levels = 2 if "two_level" in record.id else 3
    expected = (record.expected["endpoints"], record.expected["switches"])
    assert fat_tree(ports, num_levels) == expected
    assert plain_tree(ports, num_levels) == expected


def plain_tree(ports: int, num_levels: int) -> tuple[int, int]:
    """Endpoints and switches of a tree whose layers are derived from the ports of a switch."""
    sizes = [(ports // 2) ** number for number in range(1, num_levels)] + [2 * (ports // 2) ** num_levels]
    stack = [{"name": f"layer-{at}", "size": str(size), "radix": str(ports)} for at, size in enumerate(sizes)]
    cluster = build_cluster(spec(tier("fabric", "switch", sizes[-1], levels=stack)))
    return cluster.num_devices, sum(layer.num_switches or 0 for layer in layers(cluster))


@pytest.mark.parametrize("devices", sorted(PUBLISHED))
def test_superpods_have_the_switches_that_the_reference_architecture_lists(devices: int) -> None:
    sizes = (256, devices) if devices <= 2048 else (256, 2048, devices)
    stack = [
        {"name": f"layer-{at}", "size": str(size), "radix": "64", "per_rail": str(at + 1 < len(sizes)).lower()}
        for at, size in enumerate(sizes)
    ]
    network = tier("infiniband", "switch", devices, rails="8", levels=stack)
    found = layers(build_cluster(spec(tier("nvlink", "switch", 8), network)))[1:]
    assert tuple(layer.num_switches for layer in found) == PUBLISHED[devices]


def test_oversubscribed_leaves_have_fewer_ports_up_and_need_fewer_spines() -> None:
    def spines(ratio: int) -> list[int | None]:
        leaf = tier("leaf", "switch", 48, port="nic", levels=[{"name": "leaf", "size": "48", "radix": "64"}])
        spine = {"name": "spine", "size": "960", "radix": "64"}
        outer = tier("spine", "switch", 960, port="nic", levels=[spine], oversubscription=str(ratio))
        return [layer.num_switches for layer in layers(build_cluster(spec(leaf, outer)))]

    # 3 : 1: 48 ports down and 16 up on each of 20 leaves, 320 uplinks on 5 spines. 1 : 1 takes two switches a leaf.
    assert spines(3) == [20, 5]
    assert spines(1) == [40, 15]


@settings(max_examples=25, deadline=None)
@given(clusters())
def test_counted_switches_and_links_are_those_of_the_graph(cluster: Cluster) -> None:
    graph = explicit_graph(cluster)
    named: dict[tuple[str, str], int] = {}
    for node, data in graph.nodes(data=True):
        if data["kind"] == "switch" and node[1] != "border":
            named[node[0], node[1]] = named.get((node[0], node[1]), 0) + 1
    for layer in layers(cluster):
        drawn = named[layer.tier, layer.name]
        assert layer.num_switches in (drawn, None)
    for part in cluster.tiers:
        if not part.levels and part.links is None:
            drawn = sum(link["tier"] == part.index for _, _, link in graph.edges(data=True))
            assert drawn == 2 * direct_links(cluster, part)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("gh200-jupiter", {"leaf": 25 * 15, "spine": 25 * 16}),
        ("b300-superpod", {"nvswitch": 2592, "leaf": 144, "spine": 72}),
        ("h100-roce-meta24k", {"nvswitch": 12_288, "rack": 8 * 192, "cluster": None, "aggregation": None}),
    ],
)
def test_machines_have_the_switches_that_their_owners_count(name: str, expected: dict[str, Any]) -> None:
    assert {layer.name: layer.num_switches for layer in layers(build_cluster(load_profile(name)))} == expected
