"""What a model runs on: accelerator, host, tiers of the network; folded form for a million devices, graph for few."""

from __future__ import annotations

from simulator.cluster.cluster import Accelerator, Cluster, Host, Tier, build_cluster, cluster_violations
from simulator.cluster.profiles import load_profile, profile_paths
from simulator.cluster.spec import (
    AcceleratorSpec,
    ClusterSpec,
    FigureRow,
    HostSpec,
    PeakDtype,
    TierKind,
    TierSpec,
    figures,
)
from simulator.cluster.tiers import bisection_bytes_per_s, hops, pair_bandwidth_bytes_per_s, tier_of_pair

__all__ = [
    "Accelerator",
    "AcceleratorSpec",
    "Cluster",
    "ClusterSpec",
    "FigureRow",
    "Host",
    "HostSpec",
    "PeakDtype",
    "Tier",
    "TierKind",
    "TierSpec",
    "bisection_bytes_per_s",
    "build_cluster",
    "cluster_violations",
    "figures",
    "hops",
    "load_profile",
    "pair_bandwidth_bytes_per_s",
    "profile_paths",
    "tier_of_pair",
]
