"""Scenario texts that the tests of this room share."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from simulator.config.scenario import Scenario, read_scenario
from simulator.errors import Problem, ScenarioError

MODEL = """\
name: tiny
layers: 8
hidden: 512
heads: 8
ffn: 2048
vocab: 1024
"""

CLUSTER = """\
name: desk
description: two nodes of four
source: made up for the tests
accelerator:
  name: chip
  kernels: a100-sxm-80gb
  vendor: nobody
  memory: 80 GB
  memory_bandwidth: 2 TB/s
  peak: {bf16: 300 TFLOP/s, fp32: 20 TFLOP/s}
  host_bandwidth: 50 GB/s
tiers:
  - {name: inside, kind: switch, size: 4, bandwidth: 300 GB/s, latency: 1 us, efficiency: 0.8}
  - {name: outside, kind: switch, size: 8, bandwidth: 50 GB/s, latency: 5 us, efficiency: 0.9}
devices: 8
node_size: 4
"""


def indented(text: str) -> str:
    return "".join(f"  {line}\n" for line in text.splitlines())


SCENARIO = f"""\
name: demo
model:
{indented(MODEL)}cluster:
{indented(CLUSTER)}layout:
  tp: 2
  pp: 2
training:
  sequence_length: 128
  global_batch: 8
"""


def write(folder: Path, text: str | bytes, name: str = "x.yaml") -> str:
    path = folder / name
    if isinstance(text, str):
        path.write_text(text, encoding="utf-8")
    else:
        path.write_bytes(text)
    return str(path)


def read(folder: Path, text: str | bytes, overrides: Mapping[str, str] | None = None) -> Scenario:
    return read_scenario(write(folder, text), overrides)


def refused(folder: Path, text: str | bytes, overrides: Mapping[str, str] | None = None) -> str:
    """Returns the whole message with the file's folder taken out."""
    try:
        read(folder, text, overrides)
    except ScenarioError as error:
        assert all(isinstance(problem, Problem) for problem in error.problems)
        return str(error).replace(f"{folder}/", "")
    raise AssertionError("the file was accepted")


def changed(old: str, new: str, text: str = SCENARIO) -> str:
    assert text.count(old) == 1, old
    return text.replace(old, new)


def line_of(fragment: str, text: str = SCENARIO) -> int:
    return text[: text.index(fragment)].count("\n") + 1
