from __future__ import annotations

import json

import pytest

from simulator.config.library import Kind, list_builtin
from simulator.config.listing import full_text, listing
from simulator.config.schema import SchemaKind, json_schema
from simulator.config.wording import alternatives, listed, nearest, shortened
from simulator.errors import ScenarioError
from simulator.schedule import SCHEDULES


@pytest.mark.parametrize("kind", list(SchemaKind))
def test_schemas_are_json_and_closed(kind: SchemaKind) -> None:
    schema = json_schema(kind)
    assert json.loads(json.dumps(schema)) == schema
    assert schema["additionalProperties"] is False
    assert "name" in schema["required"]


def test_scenario_schema_takes_names_or_mappings() -> None:
    keys = json_schema(SchemaKind.SCENARIO)["properties"]
    for key in ("model", "cluster"):
        name, inline = keys[key]["anyOf"]
        assert name["type"] == "string"
        assert "$ref" in inline
    assert keys["schedule"]["anyOf"][0]["enum"] == list(SCHEDULES)


@pytest.mark.parametrize("kind", [*Kind, "schedules"])
def test_everything_listed_can_be_shown(kind: str) -> None:
    for name, about in listing(str(kind)):
        assert about, name
        assert "\n" not in about
        assert full_text(str(kind), name).endswith("\n")
    with pytest.raises(ScenarioError, match="'nothing' is not a built-in"):
        full_text(str(kind), "nothing")


def test_full_text_of_a_cluster_has_its_sources() -> None:
    for name in list_builtin(Kind.CLUSTERS):
        assert "source" in full_text("clusters", name)


def test_nearest_ignores_case_and_dashes() -> None:
    assert nearest("GPT2_Small", ["gpt2-small", "gpt2-large"]) == "gpt2-small"
    assert nearest("zzz", ["abc"]) is None
    assert nearest("x" * 10**6, ["x" * 70]) is not None


def test_long_values_are_shortened() -> None:
    assert shortened("short") == "short"
    assert shortened("a\nb") == "a b"
    assert shortened("x" * 100) == "x" * 40 + "…"
    assert shortened("1" * 100) == "111111111111… (100 digits)"


def test_lists_of_choices() -> None:
    assert alternatives(["a", "b", "b", "c"]) == "a, b or c"
    assert alternatives(["a"]) == "a"
    assert listed([str(number) for number in range(45)]).endswith("38, 39, … (5 more)")
