"""The two engines agree on what lowering writes, and a result depends on nothing but its input."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from hypothesis import given, settings

from simulator.config.scenario import Scenario
from simulator.engine.compiled import run_compiled
from simulator.engine.reference import run_reference
from simulator.simulate import run_steps, simulate
from tests.engine.programs import assert_same
from tests.system.jobs import scenarios


@settings(max_examples=25, deadline=None, derandomize=True)
@given(scenario=scenarios(max_ranks=24, max_microbatches=3))
def test_the_compiled_engine_equals_the_reference_on_lowered_programs(scenario: Scenario) -> None:
    program = run_steps(scenario).step.program
    assert_same(run_compiled(program, record_spans=True), run_reference(program))


@settings(max_examples=10, deadline=None, derandomize=True)
@given(scenario=scenarios(max_ranks=8, max_microbatches=2))
def test_the_compiled_engine_equals_the_reference_on_every_rank_alone(scenario: Scenario) -> None:
    program = run_steps(scenario, fold=False).step.program
    assert_same(run_compiled(program, record_spans=True), run_reference(program))


@settings(max_examples=25, deadline=None, derandomize=True)
@given(scenario=scenarios())
def test_the_same_input_gives_the_same_bytes(scenario: Scenario) -> None:
    assert _text(scenario) == _text(scenario)


@pytest.mark.parametrize("scenario", ["llama3.1-70b-compare"])
def test_two_processes_with_different_hash_seeds_give_the_same_bytes(scenario: str) -> None:
    program = (
        "import json, sys; from simulator import read_scenario, simulate; "
        "found = simulate(read_scenario(sys.argv[1])).to_dict(); "
        "del found['engine']['wall_s']; print(json.dumps(found))"
    )
    texts = [
        subprocess.run(
            [sys.executable, "-c", program, scenario],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    ]
    assert texts[0] == texts[1]
    assert json.loads(texts[0])["step"]["time_s"] > 0


def _text(scenario: Scenario) -> str:
    found = simulate(scenario).to_dict()
    del found["engine"]["wall_s"]
    for lever in found["memory"]["levers"]:
        assert "wall_s" not in lever
    return json.dumps(found)
