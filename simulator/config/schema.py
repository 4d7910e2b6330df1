"""JSON Schemas of the three kinds of files, for editors."""

from __future__ import annotations

from enum import StrEnum
from typing import Any

from pydantic import BaseModel

from simulator.cluster.spec import ClusterSpec
from simulator.config.library import Kind, list_builtin
from simulator.config.scenario_form import ScenarioForm
from simulator.model.spec import ModelSpec
from simulator.schedule import SCHEDULES

_DIALECT = "https://json-schema.org/draft/2020-12/schema"


class SchemaKind(StrEnum):
    """Files that have a schema."""

    SCENARIO = "scenario"
    CLUSTER = "cluster"
    MODEL = "model"


_FORMS: dict[SchemaKind, type[BaseModel]] = {
    SchemaKind.SCENARIO: ScenarioForm,
    SchemaKind.CLUSTER: ClusterSpec,
    SchemaKind.MODEL: ModelSpec,
}


def json_schema(kind: SchemaKind) -> dict[str, Any]:
    """Returns the JSON Schema of a kind of file, as an editor needs it: names are allowed where files allow them."""
    schema = _FORMS[kind].model_json_schema()
    if kind is SchemaKind.SCENARIO:
        keys = schema["properties"]
        keys["model"] = _named(keys["model"], Kind.MODELS)
        keys["cluster"] = _named(keys["cluster"], Kind.CLUSTERS)
        named, *others = keys["schedule"]["anyOf"]
        table = {**named, "pattern": r"\.csv$"}
        keys["schedule"] = {**keys["schedule"], "anyOf": [{"enum": list(SCHEDULES)}, table, *others]}
    return {"$schema": _DIALECT, **schema}


def _named(reference: dict[str, Any], kind: Kind) -> dict[str, Any]:
    about = {key: value for key, value in reference.items() if key in ("title", "description")}
    inline = {key: value for key, value in reference.items() if key not in about}
    name = {"type": "string", "minLength": 1, "examples": list_builtin(kind)}
    return {**about, "anyOf": [name, inline]}
