"""The scenarios that come with the program: each runs, fits, and has the result that scripts depend on."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from simulator import compare, read_scenario
from simulator.cli import app
from simulator.config.scenario import read_variants
from simulator.report.result import BREAKDOWN_CATEGORIES, MEMORY_CATEGORIES, Report
from simulator.simulate import simulate

FOLDER = Path(__file__).parents[2] / "scenarios"
NAMES = tuple(path.stem for path in sorted(FOLDER.glob("*.yaml")))
each_scenario = pytest.mark.parametrize("name", NAMES)
"""Every file; a result is computed once for all tests."""

# Section 3 of the contract, name by name; a list stands for each of its entries.
MEMORY_OF = dict.fromkeys(MEMORY_CATEGORIES)
CONTRACT: dict[str, Any] = {
    "version": None,
    "scenario": {
        "name": None,
        "description": None,
        "model": None,
        "cluster": None,
        "devices": None,
        "layout": dict.fromkeys(
            ["tp", "sp", "pp", "vpp", "dp", "cp", "cp_method", "ep", "etp", "zero", "shard_group", "order", "stages"],
        ),
        "schedule": None,
        "training": {
            "sequence_length": None,
            "global_batch": None,
            "micro_batch": None,
            "precision": dict.fromkeys(["compute", "parameters", "gradients", "reduce", "master", "optimizer"]),
            "optimizer": None,
            "recompute": None,
            "offload": dict.fromkeys(["optimizer", "parameters", "activations"]),
            "overlap": dict.fromkeys(["dp", "tp", "pp", "ep"]),
            "distributed_optimizer_step": None,
        },
        "assumptions": None,
        "seed": None,
    },
    "parameters": dict.fromkeys(["total", "active", "embedding", "per_rank_max"]),
    "memory": {
        "capacity_bytes": None,
        "peak_bytes": None,
        "reserved_peak_bytes": None,
        "fits": None,
        "peak_class": None,
        "peak": dict.fromkeys(["class", "action", "microbatch", "stage", "layer", "operator", "tensor", "largest"]),
        "allocator": dict.fromkeys(["name", "outside_bytes", "allocated_peak_bytes", "reserved_peak_bytes"]),
        "classes": [
            {
                "class": None,
                "pipeline_rank": None,
                "count": None,
                "peak_bytes": None,
                "reserved_peak_bytes": None,
                "at_peak": MEMORY_OF,
                "steady": MEMORY_OF,
            }
        ],
    },
    "communication": {
        "by_axis": [
            dict.fromkeys(
                ["axis", "collective", "calls_per_rank", "payload_bytes", "sent_bytes_per_rank", "time_s", "exposed_s"],
            )
        ],
        "by_tier": [
            dict.fromkeys(["tier", "total_bytes", "bytes_per_rank_mean", "busy_fraction", "capacity_bytes_per_s"])
        ],
        "sent_bytes_total": None,
        "received_bytes_total": None,
    },
    "step": {
        **dict.fromkeys(
            ["time_s", "tokens", "tokens_per_s", "tokens_per_s_per_device", "model_flops", "hardware_flops"]
        ),
        **dict.fromkeys(["model_tflops_per_device", "mfu", "hfu", "flops_convention"]),
        "breakdown_s": dict.fromkeys(BREAKDOWN_CATEGORIES),
    },
    "pipeline": dict.fromkeys(["schedule", "microbatches", "bubble_fraction", "in_flight_max"]),
    "engine": dict.fromkeys(["events", "rank_classes", "wall_s"]),
}
MEMORY_NAMES = [
    "parameters",
    "gradients",
    "optimizer",
    "activations",
    "logits",
    "temporary",
    "communication",
    "framework",
]
BREAKDOWN_NAMES = ["compute", "tp", "cp", "ep", "pp", "dp", "bubble", "optimizer", "offload", "other"]
SCHEDULES = {"gpipe", "1f1b", "interleaved-1f1b", "zb-h1", "zb-h2", "zb-v", "dualpipe", "dualpipe-v"}


@cache
def report_of(name: str) -> Report:
    return simulate(read_scenario(FOLDER / f"{name}.yaml"))


@each_scenario
def test_every_scenario_runs_and_fits(name: str) -> None:
    report = report_of(name)
    assert report.memory.fits, f"{report.memory.shortfall_bytes} bytes are missing on {report.memory.peak_class}"
    assert report.step.time_s > 0
    assert 0.05 < report.step.mfu < 0.7


@each_scenario
def test_every_result_has_the_names_of_the_contract(name: str) -> None:
    assert list(MEMORY_CATEGORIES) == MEMORY_NAMES
    assert list(BREAKDOWN_CATEGORIES) == BREAKDOWN_NAMES
    result = json.loads(json.dumps(report_of(name).to_dict(), allow_nan=False))
    _has_names(result, CONTRACT, "")
    for entry in result["memory"]["classes"]:
        assert list(entry["at_peak"]) == list(entry["steady"]) == MEMORY_NAMES
    assert list(result["step"]["breakdown_s"]) == BREAKDOWN_NAMES
    assert {row["axis"] for row in result["communication"]["by_axis"]} <= {"tp", "cp", "ep", "pp", "dp", "embedding"}
    assert result["pipeline"]["schedule"] in SCHEDULES
    assert len(result["pipeline"]["in_flight_max"]) == result["scenario"]["layout"]["pp"]
    assert "auto" not in json.dumps(result["scenario"]["layout"])


@each_scenario
def test_every_result_adds_up(name: str) -> None:
    report = report_of(name)
    communication = report.communication
    assert sum(report.step.breakdown_s.values()) == pytest.approx(report.step.time_s, rel=1e-9)
    assert communication.sent_bytes_total == communication.received_bytes_total
    assert sum(row.total_sent_bytes for row in communication.by_axis) == communication.sent_bytes_total
    assert sum(row.total_bytes for row in communication.by_tier) == communication.sent_bytes_total
    assert sum(entry.count for entry in report.memory.classes) == report.scenario["devices"]
    assert all(sum(entry.at_peak.values()) == entry.peak_bytes for entry in report.memory.classes)
    assert report.engine.rank_classes >= len(report.memory.classes) == report.scenario["layout"]["pp"]


@pytest.mark.parametrize(
    ("name", "parameters"), [("dense-100t", 100e12), ("finemoe-100t", 100e12), ("mlamoe-100t", 100e12)]
)
def test_the_large_designs_have_a_hundred_trillion_parameters(name: str, parameters: float) -> None:
    counts = {report_of(each).parameters.total for each in NAMES if each.startswith(name)}
    assert len(counts) == 1
    assert counts.pop() == pytest.approx(parameters, rel=0.05)


def test_variants_are_compared_best_first() -> None:
    scenarios = read_variants(FOLDER / "llama3.1-70b-compare.yaml")
    reports = compare(scenarios)
    assert len(reports) == len(scenarios) == 5
    assert {report.scenario["name"] for report in reports} == {scenario.name for scenario in scenarios}
    order = [(not report.memory.fits, report.step.time_s / report.step.tokens) for report in reports]
    assert order == sorted(order)
    assert len({report.parameters.total for report in reports}) == 1


def test_the_trace_of_a_small_scenario_is_json(tmp_path: Path) -> None:
    trace, result = tmp_path / "trace.json", tmp_path / "result.json"
    path = str(FOLDER / "gpt2-small-laptop.yaml")
    done = CliRunner().invoke(app, ["run", path, "--quiet", "--trace", str(trace), "--json", str(result)])
    assert done.exit_code == 0, done.output
    written = json.loads(trace.read_text(encoding="utf-8"))
    events = written["traceEvents"] if isinstance(written, dict) else written
    spans = [event for event in events if event["ph"] == "X"]
    step_s = json.loads(result.read_text(encoding="utf-8"))["step"]["time_s"]
    assert max(span["ts"] + span["dur"] for span in spans) == pytest.approx(step_s * 1e6, rel=1e-6)
    assert {event["ph"] for event in events} >= {"X", "C", "M"}


def test_gpt3_175b_on_1024_a100s_takes_the_published_time() -> None:
    """140 TFLOP/s a GPU of hardware FLOPs with recomputation: 31.47 s a step.

    Source: Narayanan et al. 2021 (arXiv 2104.04473), section 5.1.
    """
    assert report_of("gpt3-175b-a100-1024").step.time_s == pytest.approx(31.47, rel=0.15)


def test_llama3_405b_on_16384_h100s_takes_the_published_time() -> None:
    """400 TFLOP/s a GPU of PaLM FLOPs: 6.72 s a step.

    Source: The Llama 3 Herd of Models (arXiv 2407.21783), table 4.
    """
    assert report_of("llama3.1-405b-h100-16384").step.time_s == pytest.approx(6.72, rel=0.15)


def _has_names(found: Any, wanted: Any, place: str) -> None:
    if isinstance(wanted, dict):
        assert isinstance(found, dict), place
        assert not set(wanted) - set(found), place
        for name, inner in wanted.items():
            _has_names(found[name], inner, f"{place}.{name}")
    elif isinstance(wanted, list):
        assert isinstance(found, list), place
        assert found, place
        for number, entry in enumerate(found):
            _has_names(entry, wanted[0], f"{place}[{number}]")
