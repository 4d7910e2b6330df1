"""Where groups lie: devices of ranks, tiers, ways, slowest links and shared uplinks."""

from __future__ import annotations

from math import inf
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.cluster import (
    Cluster,
    ClusterSpec,
    bandwidth_of_pair,
    build_cluster,
    device_of_rank,
    hops,
    load_profile,
    place_of_group,
    tier_of_pair,
)
from simulator.cluster.placement import group_ranks
from tests.cluster.machines import machine, tier


def meta() -> Cluster:
    return build_cluster(load_profile("h100-roce-meta24k"))


def test_ranks_are_laid_on_the_first_devices_of_each_domain() -> None:
    cluster = build_cluster(load_profile("gb200-nvl72"))
    # 64 of the 72 devices of a rack: rank 64 is the first device of the second rack.
    assert device_of_rank(cluster, [0, 63, 64, 129], (64, 1024)).tolist() == [0, 63, 72, 145]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(1, 4), min_size=1, max_size=3), st.integers(0, 2))
def test_ranks_of_one_domain_are_devices_of_one_domain(factors: list[int], spare: int) -> None:
    sizes, domains = [], []
    size = domain = 1
    for factor in factors:
        size, domain = size * (factor + 1 + spare), domain * (factor + 1)
        sizes.append(size)
        domains.append(domain)
    tiers = [tier(f"t{at}", "switch", each) for at, each in enumerate(sizes)]
    cluster = build_cluster(ClusterSpec.model_validate(machine(*tiers)))
    ranks = np.arange(domains[-1])
    devices = device_of_rank(cluster, ranks, tuple(domains))
    assert len(set(devices.tolist())) == len(ranks)
    for part, ranks_of_domain in zip(cluster.tiers, domains, strict=True):
        together = devices[:, None] // part.size == devices // part.size
        assert (together == (ranks[:, None] // ranks_of_domain == ranks // ranks_of_domain)).all()


def test_a_group_of_one_uses_no_link() -> None:
    found = place_of_group(meta(), (), (8, 3072, 24_576))
    assert (found.tier, found.hops, found.slowest_bytes_per_s, found.uplinks) == (0, 0, inf, ())


def test_a_tensor_group_stays_in_its_node() -> None:
    found = place_of_group(meta(), ((8, 1),), (8, 3072, 24_576))
    assert (found.tier, found.hops, found.slowest_bytes_per_s, found.uplinks) == (0, 2, 450e9, ())


def test_a_data_group_over_pods_shares_the_oversubscribed_uplinks() -> None:
    found = place_of_group(meta(), ((3072, 8),), (8, 3072, 24_576))
    assert (found.tier, found.hops, found.slowest_tier) == (2, 6, 2)
    assert found.slowest_bytes_per_s == pytest.approx(50e9 / 7)
    pod, spine = found.uplinks
    assert (pod.num_ranks, pod.members, pod.capacity_bytes_per_s) == (8, 1, 400e9)
    assert (spine.num_ranks, spine.members, spine.rank_bytes_per_s) == (3072, 384, pytest.approx(50e9 / 7))


def test_a_job_that_leaves_devices_idle_has_more_of_the_uplinks_for_each_rank() -> None:
    whole = place_of_group(meta(), ((2, 8),), (8, 8, 16))
    assert whole.slowest_bytes_per_s == pytest.approx(50e9)  # no more than the port of a device


def test_a_fault_is_seen_in_the_slowest_link() -> None:
    rail = {"name": "leaf", "size": "16", "per_rail": "true"}
    network = tier("nic", "switch", 16, bandwidth="10 GB/s", rails="4", levels=[rail])
    faults: list[dict[str, Any]] = [{"rail": 1, "tier": "nic", "bandwidth": 0}]
    mapping = machine(tier("nvlink", "switch", 4), network, node_size="4")
    healthy = build_cluster(ClusterSpec.model_validate(mapping))
    broken = build_cluster(ClusterSpec.model_validate({**mapping, "degraded": faults}))
    digits = ((4, 4),)
    assert place_of_group(healthy, digits, (4, 16)).slowest_bytes_per_s == 10e9
    assert place_of_group(broken, digits, (4, 16)).slowest_bytes_per_s == 7.5e9


@settings(max_examples=30, deadline=None)
@given(count=st.sampled_from([2, 4, 8]), stride=st.sampled_from([1, 2, 4, 8, 16]))
def test_tier_and_hops_are_those_of_the_neighbours(count: int, stride: int) -> None:
    cluster = build_cluster(load_profile("h100-superpod"), 256)
    found = place_of_group(cluster, ((count, stride),), (8, 256))
    ranks = group_ranks(((count, stride),))
    assert ranks.tolist() == [at * stride for at in range(count)]
    pairs = [(int(a), int(b)) for a, b in zip(ranks, np.roll(ranks, -1), strict=True)]
    assert found.hops == max(int(hops(cluster, a, b)) for a, b in pairs)
    assert found.tier == max(int(tier_of_pair(cluster, a, b)) for a, b in pairs)
    assert found.slowest_bytes_per_s == min(float(bandwidth_of_pair(cluster, a, b)) for a, b in pairs)
