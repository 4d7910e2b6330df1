"""Faults of the cluster are seen in the step: a slow NIC, a lost rail, a failed torus link, a slow node."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from simulator.config.scenario import read_scenario
from simulator.parallel.scenario import Scenario
from simulator.simulate import run_steps, simulate

JOB = {
    "h100-superpod": "model: gpt2-small\ncluster: h100-superpod\ndevices: 32\nlayout: {tp: 1, dp: 32}\n",
    "tpu-v4-pod": "model: gpt2-small\ncluster: tpu-v4-pod\ndevices: 64\nlayout: {tp: 4, dp: 16}\n",
}


def job(folder: Path, cluster: str, more: str = "") -> Scenario:
    file = folder / "job.yaml"
    text = f"name: job\n{JOB[cluster]}training: {{sequence_length: 1024, global_batch: 64}}\n"
    file.write_text(text + more)
    return read_scenario(file)


def seconds(folder: Path, cluster: str, fault: str = "") -> float:
    return simulate(job(folder, cluster, f"degraded:\n  - {fault}\n" if fault else "")).step.time_s


@pytest.mark.parametrize(
    ("cluster", "fault"),
    [
        ("h100-superpod", "{device: 5, tier: infiniband, bandwidth: 0.1}"),
        ("h100-superpod", "{rail: 3, tier: infiniband, bandwidth: 0}"),
        ("h100-superpod", "{node: 1, slowdown: 1.5}"),
    ],
)
def test_a_fault_of_the_cluster_lengthens_the_step(tmp_path: Path, cluster: str, fault: str) -> None:
    assert seconds(tmp_path, cluster, fault) > seconds(tmp_path, cluster)


def test_a_fault_of_devices_that_the_job_does_not_use_changes_nothing(tmp_path: Path) -> None:
    fault = "{node: 4, tier: infiniband, bandwidth: 0.1}"
    assert seconds(tmp_path, "h100-superpod", fault) == seconds(tmp_path, "h100-superpod")


def test_a_slow_nic_is_a_slow_link_of_that_rank(tmp_path: Path) -> None:
    link = "variability: {slow_links: [{rank: 5, tier: infiniband, bandwidth: 0.25}]}\n"
    as_link = simulate(job(tmp_path, "h100-superpod", link)).step.time_s
    assert seconds(tmp_path, "h100-superpod", "{device: 5, tier: infiniband, bandwidth: 0.25}") == as_link


def test_a_slow_node_is_stragglers_on_its_ranks(tmp_path: Path) -> None:
    stragglers = "variability: {stragglers: [{node: 1, slowdown: 1.5}]}\n"
    as_stragglers = simulate(job(tmp_path, "h100-superpod", stragglers)).step.time_s
    assert seconds(tmp_path, "h100-superpod", "{node: 1, slowdown: 1.5}") == as_stragglers


def test_a_failed_link_of_a_torus_slows_one_axis_only(tmp_path: Path) -> None:
    fault = "degraded:\n  - {link: [0, 1], tier: ici, bandwidth: 0}\n"
    found: Any = run_steps(job(tmp_path, "tpu-v4-pod", fault)).variation.bandwidth
    assert set(found) == {(0, 0)}
    assert sorted(set(found[0, 0].tolist())) == [0.5, 1.0]
