"""Small machines for the tests, as mappings like those of a YAML file (all scalars are text)."""

from __future__ import annotations

from typing import Any

from simulator.cluster import ClusterSpec

ACCELERATOR: dict[str, Any] = {
    "name": "chip",
    "kernels": "h100-sxm-80gb",
    "vendor": "nobody",
    "memory": "80 GiB",
    "memory_bandwidth": "2 TB/s",
    "peak": {"bf16": "300 TFLOP/s"},
    "host_bandwidth": "32 GB/s",
}


def tier(name: str, kind: str, size: int, **more: Any) -> dict[str, Any]:
    figures = {"bandwidth": "100 GB/s", "latency": "1 us", "efficiency": "0.8"}
    return {"name": name, "kind": kind, "size": str(size), **figures, **more}


def machine(*tiers: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {
        "name": "test",
        "description": "a machine of the tests",
        "source": "made up",
        "accelerator": ACCELERATOR,
        "tiers": list(tiers),
        "devices": tiers[-1]["size"],
        "node_size": "1",
        **more,
    }


def spec(*tiers: dict[str, Any]) -> ClusterSpec:
    return ClusterSpec.model_validate(machine(*tiers))
