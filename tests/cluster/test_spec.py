"""The form of a cluster file: what is read, what is refused, and where each figure comes from."""

from __future__ import annotations

import pickle
import re
from typing import Any

import pytest
from pydantic import ValidationError

from simulator.cluster import ClusterSpec, build_cluster, figures
from simulator.errors import ScenarioError
from tests.cluster.machines import ACCELERATOR, machine, spec, tier

NVLINK = tier("nvlink", "switch", 8)
FABRIC = tier("fabric", "switch", 64)


def refused(mapping: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=re.escape(message)):
        ClusterSpec.model_validate(mapping)


def test_decimal_and_binary_prefixes_and_bits_are_kept_apart() -> None:
    for text, expected in [("80 GiB", 80 * 2**30), ("80 GB", 80 * 10**9)]:
        read = ClusterSpec.model_validate(machine(NVLINK, accelerator={**ACCELERATOR, "memory": text}))
        assert read.accelerator.memory.value == expected
    assert spec(tier("nic", "switch", 8, bandwidth="400 Gb/s")).tiers[0].bandwidth.value == 50e9


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"memory": "80"}, "has no unit; write for example '80 GB'"),
        ({"memory": "80 GB/s"}, "is not a unit of bytes"),
        ({"memory": "80 gigs"}, "is not a unit of bytes"),
        ({"memory": "0 GB"}, "greater than 0"),
        ({"memory_bandwidth": "2 TB"}, "is not a unit of bytes per second"),
        ({"peak": {"bf16": "300 TB/s"}}, "is not a unit of flops per second"),
        ({"peak": {"bf17": "300 TFLOP/s"}}, "Input should be"),
        ({"peak": {}}, "peak lists no number format"),
        ({"power": {"value": "700 kg", "source": "x"}}, "is not a unit of watts"),
        ({"memory_usable": "81 GiB"}, "memory_usable is more than memory"),
        ({"memroy": "80 GB"}, "Extra inputs are not permitted"),
        ({"memory": {"value": "80 GB", "origin": "x"}}, "Extra inputs are not permitted"),
    ],
)
def test_a_wrong_figure_of_the_accelerator_is_refused(change: dict[str, Any], message: str) -> None:
    refused(machine(NVLINK, accelerator={**ACCELERATOR, **change}), message)


@pytest.mark.parametrize(
    ("tiers", "message"),
    [
        ([tier("a", "ring", 8)], "Input should be 'switch', 'mesh' or 'torus'"),
        ([tier("a", "switch", 8, latency="3")], "3 has no unit; write for example '1.5 us'"),
        ([tier("a", "switch", 8, efficiency="1.2")], "less than or equal to 1"),
        ([tier("a", "switch", 8, oversubscription="0.5")], "greater than or equal to 1"),
        ([tier("a", "switch", 8, dims=["2", "4"])], "dims, wrap and wrap_multiple are for kind torus only"),
        ([tier("a", "torus", 8, dims=["2", "2"], wrap=["true", "true"])], "dims [2, 2] hold 4 devices, size is 8"),
        ([tier("a", "torus", 8, dims=["2", "4"], wrap=["true"])], "one wrap value for each axis"),
        ([tier("a", "switch", 8, in_network_efficiency="0.6")], "in_network_efficiency without in_network_reduction"),
        ([NVLINK, tier("fabric", "switch", 20)], "must hold several whole domains of nvlink (8 devices)"),
        ([NVLINK, tier("nvlink", "switch", 16)], "two have the same name among nvlink, nvlink"),
    ],
)
def test_a_wrong_tier_is_refused(tiers: list[dict[str, Any]], message: str) -> None:
    refused(machine(*tiers), message)


def test_the_last_tier_joins_all_devices() -> None:
    refused(machine(NVLINK, devices="16"), "the last tier, nvlink, has size 8; it must join all devices, 16")


def test_a_figure_without_source_is_refused() -> None:
    mapping = machine(NVLINK)
    mapping["source"] = ""
    refused(mapping, "no source for accelerator.memory, accelerator.memory_bandwidth")


def test_a_source_that_cites_a_missing_entry_is_refused() -> None:
    refused(machine(NVLINK, source="[paper]", sources={"sheet": "x"}), "no entry for paper; there are sheet")


def test_the_innermost_source_covers_a_figure() -> None:
    chip = {**ACCELERATOR, "source": "[sheet]", "memory": {"value": "80 GB", "source": "own", "verified": "false"}}
    read = ClusterSpec.model_validate(machine(NVLINK, accelerator=chip, sources={"sheet": "Data sheet, page 2"}))
    rows = {row.path: row for row in figures(read)}
    assert (rows["accelerator.memory"].source, rows["accelerator.memory"].verified) == ("own", False)
    assert rows["accelerator.memory_bandwidth"].source == "[Data sheet, page 2]"
    assert (rows["tiers.nvlink.bandwidth"].source, rows["tiers.nvlink.bandwidth"].unit) == ("made up", "B/s")


def test_specs_are_frozen_and_clusters_can_be_sent_to_workers() -> None:
    read = spec(NVLINK, FABRIC)
    with pytest.raises(ValidationError, match="frozen"):
        read.name = "other"  # type: ignore[misc]
    cluster = build_cluster(read)
    assert pickle.loads(pickle.dumps(cluster)) == cluster


def test_a_job_uses_only_the_tiers_it_needs() -> None:
    assert [part.name for part in build_cluster(spec(NVLINK, FABRIC), 8).tiers] == ["nvlink"]
    small = build_cluster(spec(NVLINK, FABRIC), 4)
    assert [(part.name, part.size) for part in small.tiers] == [("nvlink", 4)]
    partial = build_cluster(spec(NVLINK, FABRIC), 20)
    assert [(part.name, part.size) for part in partial.tiers] == [("nvlink", 8), ("fabric", 20)]


def test_a_job_larger_than_the_cluster_is_refused() -> None:
    for devices in (0, 65):
        with pytest.raises(ScenarioError, match=f"devices: {devices} devices of cluster test, which has 64"):
            build_cluster(spec(NVLINK, FABRIC), devices)


def test_calibration_is_carried_into_the_cluster() -> None:
    chip = {**ACCELERATOR, "compute": {"launch_s": "3e-6"}}
    nvlink = {**NVLINK, "calibration": {"base_latency_s": {"value": "6.6e-6", "source": "fitted"}}}
    cluster = build_cluster(ClusterSpec.model_validate(machine(nvlink, accelerator=chip)))
    assert cluster.accelerator.compute == {"launch_s": 3e-6}
    assert cluster.tiers[0].calibration == {"base_latency_s": 6.6e-6}


def test_the_json_schema_accepts_a_text_or_a_mapping() -> None:
    schema = ClusterSpec.model_json_schema()
    text, mapping = schema["$defs"]["BytesFigure"]["anyOf"]
    assert text["type"] == "string"
    assert set(mapping["properties"]) == {"value", "source", "verified"}
