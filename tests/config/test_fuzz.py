"""Whatever stands in a file, reading it gives a scenario or a `ScenarioError`, and nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from simulator.config.document import parse_document
from simulator.config.form import check_form
from simulator.config.scalars import key_paths, shape_of
from simulator.config.scenario import read_variants
from simulator.config.scenario_form import ScenarioForm
from simulator.errors import Problem, ScenarioError
from tests.config.files import SCENARIO

LINES = SCENARIO.splitlines()
KEYS = key_paths(shape_of(ScenarioForm))
VALUES = """
|~|0|-1|1|3|8|1e30|1e400|-1e-400|nan|inf|0.5|yes|true|auto|bf16|80 GB|1e999 TB/s|80|1 us|0 GB|gpt2-small|h100-superpod
a.json|./x|1f1b|[1, 2]|{a: 1}|[]|{}|[[1]]|&a [*a]|*a|!x 1|'|999999999999999999999999999999999|\u202e|[tp, tp]|7|16777216
[pp, dp, ep, cp, tp]|1099511627776|interleaved-1f1b|gpipe|full|none|{full_layers: 99}|[8, 0]|4194304|fp8|muon|ulysses
"""
SCALARS = st.sampled_from(VALUES.strip("\n").replace("\n", "|").split("|"))
TREES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS) | st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=12,
)
SLOW = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]


def try_to_read(folder: Path, text: str, overrides: dict[str, str] | None = None) -> None:
    path = folder / "fuzz.yaml"
    path.write_text(text, encoding="utf-8", errors="surrogatepass")
    try:
        read_variants(str(path), overrides)
    except ScenarioError as error:
        assert error.problems
        for problem in error.problems:
            assert isinstance(problem, Problem)
            assert problem.line >= 1
            assert problem.column >= 1
            assert all([problem.violation.problem, problem.violation.why, problem.violation.mend])
            assert len(str(problem)) < 2000


@settings(max_examples=150, deadline=None, suppress_health_check=SLOW)
@given(data=st.data())
def test_mutated_scenarios(tmp_path: Path, data: st.DataObject) -> None:
    lines = list(LINES)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(lines) - 1))
        key, colon, _ = lines[at].partition(":")
        action = data.draw(st.sampled_from(["value", "value", "delete", "double", "indent", "misspell", "swap"]))
        if action == "value":
            lines[at] = f"{key}{colon} {data.draw(SCALARS)}"
        elif action == "delete" and len(lines) > 1:
            del lines[at]
        elif action == "double":
            lines.insert(at, lines[at])
        elif action == "indent":
            lines[at] = data.draw(st.sampled_from(["  ", "\t", "- "])) + lines[at]
        elif action == "misspell":
            lines[at] = lines[at].replace("e", "", 1)
        else:
            other = data.draw(st.integers(0, len(lines) - 1))
            lines[at], lines[other] = lines[other], lines[at]
    try_to_read(tmp_path, "\n".join(lines))


@settings(max_examples=100, deadline=None, suppress_health_check=SLOW)
@given(changes=st.dictionaries(st.sampled_from(KEYS) | st.text(max_size=6), SCALARS | st.text(max_size=6), max_size=3))
def test_random_overrides(tmp_path: Path, changes: dict[str, str]) -> None:
    try_to_read(tmp_path, SCENARIO, changes)


@settings(max_examples=60, deadline=None, suppress_health_check=SLOW)
@given(section=st.sampled_from(["model", "cluster", "layout", "training", "assumptions", "variants"]), tree=TREES)
def test_random_trees_in_a_scenario(tmp_path: Path, section: str, tree: Any) -> None:
    keys = {"layout": {"tp": 2}, "name": "x", "model": "gpt2-small", "cluster": "h100-superpod", section: tree}
    try_to_read(tmp_path, json.dumps(keys))


@settings(max_examples=60, deadline=None)
@given(TREES)
def test_random_trees_against_the_form(tree: Any) -> None:
    try:
        node, _ = parse_document(json.dumps({"name": tree, "layout": tree}), "f")
    except ScenarioError:
        return
    filled, problems = check_form(node, ScenarioForm)
    assert filled is None
    assert problems


@pytest.mark.parametrize("path", KEYS)
@pytest.mark.parametrize("value", ["", "[]", "{}", "x", "1e30", "1e400", "-1", "0"])
def test_every_key_with_a_wrong_value(tmp_path: Path, path: str, value: str) -> None:
    try_to_read(tmp_path, SCENARIO, {path: value})
