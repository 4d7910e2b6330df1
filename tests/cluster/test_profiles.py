"""The built-in profiles: all load, each figure has unit and source, key figures are those of the data."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from simulator.cluster import Cluster, bisection_bytes_per_s, build_cluster, figures, load_profile, profile_paths

RIDGES = {
    record["id"]: record
    for record in yaml.safe_load((Path(__file__).parents[1] / "oracles" / "cluster.yaml").read_text(encoding="utf-8"))[
        "records"
    ]
}
EXPECTED = {
    "a100-superpod",
    "b200-superpod",
    "gb200-nvl72",
    "h100-roce-meta24k",
    "h100-superpod",
    "h200-superpod",
    "mi300x-cluster",
    "tpu-ironwood",
    "tpu-v4-pod",
    "tpu-v5p",
    "tpu-v6e",
}


def built(name: str, devices: int | None = None) -> Cluster:
    return build_cluster(load_profile(name), devices)


def test_the_profiles_are_there() -> None:
    assert set(profile_paths()) >= EXPECTED


@pytest.mark.parametrize("name", sorted(profile_paths()))
def test_a_profile_loads_under_its_file_name(name: str) -> None:
    spec = load_profile(name)
    assert spec.name == name
    assert built(name).num_devices == spec.devices.value


@pytest.mark.parametrize("name", sorted(profile_paths()))
def test_every_figure_has_a_source_and_guesses_are_marked(name: str) -> None:
    spec = load_profile(name)
    for row in figures(spec):
        assert len(row.source) > 4, row
        guessed = any(word in row.source for word in ("assumption", "hypothetical", "recalled", "estimate,"))
        assert not (guessed and row.verified), f"{name}: {row.path} is a guess but not marked as one"
    used = " ".join(row.source for row in figures(spec))
    assert [key for key, title in spec.sources.items() if title not in used] == []


@pytest.mark.parametrize(
    ("name", "oracle"),
    [("a100-superpod", "a100"), ("h100-superpod", "h100"), ("h200-superpod", "h200")],
)
def test_ridge_points_are_the_worked_ones(name: str, oracle: str) -> None:
    record = RIDGES[f"compute.ridge.{oracle}"]
    accelerator = built(name).accelerator
    assert accelerator.peak_flops_per_s["bf16"] == record["inputs"]["flops_per_s"]
    assert accelerator.memory_bandwidth_bytes_per_s == record["inputs"]["bytes_per_s"]
    assert accelerator.ridge_flops_per_byte("bf16") == pytest.approx(record["expected"], rel=1e-12)


@pytest.mark.parametrize(("name", "oracle"), [("b200-superpod", "b200"), ("tpu-v5p", "v5p")])
def test_ridge_points_with_rounded_bandwidths_are_near(name: str, oracle: str) -> None:
    # The worked values take 8 and 2.8 TB/s; the HGX data sheet has 7.7 TB/s and Google documents 2.765 TB/s.
    record = RIDGES[f"compute.ridge.{oracle}"]
    accelerator = built(name).accelerator
    assert accelerator.peak_flops_per_s["bf16"] == record["inputs"]["flops_per_s"]
    assert accelerator.ridge_flops_per_byte("bf16") == pytest.approx(record["expected"], rel=0.04)


@pytest.mark.parametrize(
    ("name", "devices", "memory_gib", "scale_up", "scale_up_gb_per_s", "scale_out_gb_per_s"),
    [
        ("a100-superpod", 16_000, 80, 8, 300, 25),
        ("h100-superpod", 1_048_576, 80, 8, 450, 50),
        ("h100-roce-meta24k", 24_576, 80, 8, 450, 50),
        ("h200-superpod", 131_072, 141, 8, 450, 50),
        ("b200-superpod", 131_072, 180, 8, 900, 50),
        ("gb200-nvl72", 1_048_608, 186, 72, 900, 50),
        ("mi300x-cluster", 131_072, 192, 8, 448, 50),
        ("tpu-v4-pod", 8_192, 32, 4_096, 45, 6.25),
        ("tpu-v5p", 143_360, 95, 8_960, 100, 6.25),
        ("tpu-v6e", 99_840, 32, 256, 100, 12.5),
        ("tpu-ironwood", 147_456, 192, 9_216, 100, 12.5),
    ],
)
def test_key_figures(
    name: str,
    devices: int,
    memory_gib: int,
    scale_up: int,
    scale_up_gb_per_s: float,
    scale_out_gb_per_s: float,
) -> None:
    cluster = built(name)
    inner, outer = cluster.tiers[0], cluster.tiers[-1]
    assert (cluster.num_devices, cluster.accelerator.memory_bytes) == (devices, memory_gib * 2**30)
    assert (inner.size, inner.bandwidth_bytes_per_s) == (scale_up, scale_up_gb_per_s * 1e9)
    assert outer.bandwidth_bytes_per_s == scale_out_gb_per_s * 1e9


def test_the_meta_cluster_is_oversubscribed_across_pods_only() -> None:
    nvlink, pod, spine = built("h100-roce-meta24k").tiers
    assert (nvlink.oversubscription, pod.oversubscription, spine.oversubscription) == (1, 1, 7)
    assert pod.port == spine.port == "nic"
    assert pod.size == 3072


def test_torus_bisections_are_those_that_google_documents() -> None:
    # Cloud TPU v6e: 3.2 TB/s per pod. Cloud TPU v4: 24 TB/s per pod, which goes with 46.9 GB/s a link (here 45).
    assert bisection_bytes_per_s(built("tpu-v6e").tiers[0]) == 3.2e12
    assert bisection_bytes_per_s(built("tpu-v4-pod").tiers[0]) == pytest.approx(24e12, rel=0.05)


@pytest.mark.parametrize(
    ("name", "devices", "dims", "wrap", "slices"),
    [
        ("tpu-v5p", 6_144, (16, 16, 24), (True, True, True), 1),
        ("tpu-v5p", 18_432, (16, 16, 24), (True, True, True), 3),
        ("tpu-v5p", 8_960, (16, 20, 28), (True, True, True), 1),
        ("tpu-v4-pod", 6_144, (12, 16, 16), (True, True, True), 2),
        ("tpu-v4-pod", 192, (4, 4, 12), (True, True, True), 1),
        ("tpu-v4-pod", 8, (2, 2, 2), (False, False, False), 1),
        ("tpu-v6e", 128, (8, 16), (False, True), 1),
    ],
)
def test_slices_of_tpu_pods(
    name: str, devices: int, dims: tuple[int, ...], wrap: tuple[bool, ...], slices: int
) -> None:
    cluster = built(name, devices)
    assert (cluster.tiers[0].dims, cluster.tiers[0].wrap) == (dims, wrap)
    assert cluster.num_devices == slices * cluster.tiers[0].size
    assert len(cluster.tiers) == (1 if slices == 1 else 2)
