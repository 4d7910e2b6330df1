"""What the scripts of published figures share: rows written short to scenario files, and sections of a page."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from simulator.config.library import Kind, builtin_path

HERE = Path(__file__).resolve().parent
SCENARIOS = HERE.parent / "scenarios"
PAGE = HERE.parent / "docs" / "accuracy.md"

WHOLE = ("model", "cluster", "devices", "schedule")
LAYOUT = (
    "tp",
    "sp",
    "pp",
    "vpp",
    "dp",
    "cp",
    "cp_method",
    "ep",
    "etp",
    "zero",
    "shard_group",
    "reshard_after_forward",
    "stages",
)
TRAINING = ("sequence_length", "global_batch", "micro_batch", "precision", "recompute", "optimizer", "lora", "offload")
OVERLAP = ("dp", "tp")
Row = Mapping[str, Any]


def read_models(runs: Row) -> dict[str, dict[str, Any]]:
    """Returns the models of a file of runs, each with the keys of its family, as a scenario file has them."""
    models = {}
    for name, figures in runs["models"].items():
        own = {key: value for key, value in figures.items() if key != "family"}
        models[name] = {"name": name, "ffn": 4 * figures["hidden"], **runs["families"][figures["family"]], **own}
    return models


def filled_rows(group: Row, models: Mapping[str, Row]) -> tuple[Row, ...]:
    """Returns the rows of a group with its common keys and their models filled in."""
    rows = [{**group["common"], **row} for row in group["rows"]]
    return tuple({**row, "model": models.get(row["model"], row["model"])} if "model" in row else row for row in rows)


def scenario_document(row: Row, *, assumptions: Row) -> dict[str, Any]:
    """Returns a row as a scenario file has it.

    Args:
        row: keys of `layout` and `training` stand beside each other; `scenario` names a built-in one to start from,
            `edge_layers` is the number of layers of the first and of the last stage.
        assumptions: what the scenario assumes beside those of the scenario to start from.
    """
    document: dict[str, Any] = {"layout": {}, "training": {}, "assumptions": {}}
    if "scenario" in row:
        document |= yaml.safe_load((SCENARIOS / f"{row['scenario']}.yaml").read_text(encoding="utf-8"))
    document["name"] = row["id"]
    document |= {key: row[key] for key in WHOLE if key in row}
    document["layout"] |= {key: row[key] for key in LAYOUT if key in row}
    document["training"] |= {key: row[key] for key in TRAINING if key in row}
    document["assumptions"] |= assumptions
    document["training"]["overlap"] = {axis: row[f"overlap_{axis}"] for axis in OVERLAP if f"overlap_{axis}" in row}
    if isinstance(row.get("model"), dict) and row["model"].get("positions") == "learned":
        document["model"] = {**row["model"], "max_positions": document["training"]["sequence_length"]}
    if row.get("vpp", 1) > 1 and "schedule" not in row:
        document["schedule"] = "interleaved-1f1b"
    if "edge_layers" in row:
        document["layout"]["stages"] = stages_with_edges(row)
    return document


def stages_with_edges(row: Row) -> list[int]:
    """Returns the layers of each stage: `edge_layers` on the first and the last, the rest shared out evenly."""
    stages, edge = row["pp"] * row.get("vpp", 1), row["edge_layers"]
    layers = (row["model"] if isinstance(row["model"], dict) else _builtin_model(row["model"]))["layers"]
    inner, left = divmod(layers - 2 * edge, stages - 2)
    if left:
        raise ValueError(f"{row['id']}: {layers} layers, {edge} on the first and last stage, leave {left} over")
    return [edge] + [inner] * (stages - 2) + [edge]


def _builtin_model(name: str) -> dict[str, Any]:
    path = builtin_path(Kind.MODELS, name)
    if path is None:
        raise ValueError(f"there is no built-in model {name!r}")
    model: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return model


def write_section(begin: str, end: str, text: str) -> None:
    """Puts a text into docs/accuracy.md, between two marks."""
    page = PAGE.read_text(encoding="utf-8")
    head, rest = page.split(begin)
    PAGE.write_text(f"{head}{begin}\n\n{text}\n{end}{rest.split(end, 1)[1]}", encoding="utf-8")
