"""From a Hugging Face config.json to the tree of a model file; every value keeps its line in the config.json."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from simulator.config.document import parse_document, read_text
from simulator.config.form import check_form
from simulator.config.huggingface.families import FAMILIES
from simulator.config.huggingface.keys import Keys
from simulator.config.huggingface.parts import Spec
from simulator.config.tree import Entry, Node, Place
from simulator.config.wording import nearest, shortened
from simulator.errors import Problem, ScenarioError
from simulator.model.spec import ModelSpec

_ENDING = ".json"
_WHY_JSON = "a config.json is JSON text in UTF-8"
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F][0-9a-fA-F]{2}")
"""Half of a character outside of the basic plane, which JSON escapes in two halves and YAML in one."""

_WRITTEN_AS: dict[str, tuple[str, ...]] = {
    "layers": ("num_decoder_layers", "num_hidden_layers", "n_layer", "num_layers", "n_layers"),
    "hidden": ("hidden_size", "n_embd", "d_model", "dim", "n_embed"),
    "heads": ("num_attention_heads", "n_head", "num_heads", "n_heads"),
    "kv_heads": ("num_key_value_heads", "num_kv_heads", "kv_n_heads", "multi_query"),
    "head_dim": ("head_dim", "d_kv"),
    "ffn": ("intermediate_size", "n_inner", "ffn_dim", "d_ff", "ffn_hidden_size", "hidden_dim"),
    "vocab": ("vocab_size",),
    "tied_embeddings": ("tie_word_embeddings",),
    "max_positions": ("max_position_embeddings", "n_positions"),
    "mtp_layers": ("num_nextn_predict_layers",),
    "distinct_layers": ("num_hidden_groups",),
    "windows": ("layer_types", "sliding_window"),
    "count": ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"),
    "top_k": ("num_experts_per_tok", "experts_per_token", "moe_top_k"),
    "shared": ("n_shared_experts",),
    "first_dense_layers": ("first_k_dense_replace", "mlp_only_layers"),
    "query_rank": ("q_lora_rank",),
    "kv_rank": ("kv_lora_rank",),
    "output_head": ("architectures",),
    "size": ("image_size",),
    "patch": ("patch_size",),
    "blocks": ("depths",),
    "width": ("embedding_size",),
    "classes": ("num_labels", "id2label"),
}
"""Keys of a config.json that a key of a model file may come from, for the line of a message."""


def is_config(path: Path) -> bool:
    """Returns whether a model file is a config.json, by its name."""
    return path.suffix == _ENDING


def imported_model(path: Path) -> ModelSpec:
    """Returns the model of a config.json.

    Args:
        path: the file.

    Raises:
        ScenarioError: every problem of the file, with lines.
    """
    spec, problems = check_form(read_config(path), ModelSpec)
    if spec is None:
        raise ScenarioError(problems)
    return spec


def read_config(path: Path, *, shown: str | None = None) -> Node:
    """Returns the model of a config.json as the tree of a model file.

    Args:
        path: the file.
        shown: its name in messages; default: `path` as it is.

    Raises:
        ScenarioError: every problem of the file, with lines.
    """
    name = str(path) if shown is None else shown
    root, doubled = _read_json(path, name)
    model_type = root.child("model_type")
    keys = Keys(root=root, model_type="")
    keys.model_type = keys.text("model_type")
    family = FAMILIES.get(keys.model_type)
    if family is None:
        if not keys.problems:
            _refuse_family(keys, model_type)
        raise ScenarioError([*doubled, *keys.problems])
    spec = family(keys)
    told: list[Problem] = list(dict.fromkeys([*doubled, *keys.problems]))
    if told:
        told.sort(key=lambda each: (each.line, each.column))
        raise ScenarioError(told)
    about = {"name": _model_name(path), "source": f"{path.name} of the model_type {keys.model_type}"}
    return _tree({**about, **_shortest(spec)}, root, root.place)


def _shortest(spec: Spec) -> Spec:
    """Returns the keys without head sizes that are the defaults of a model file."""
    heads = spec.get("heads", 0)
    same = {"kv_heads": spec.get("kv_heads") == heads}
    same["head_dim"] = (spec.get("head_dim") or 0) * heads == spec["hidden"]
    return {key: value for key, value in spec.items() if not same.get(key)}


def _read_json(path: Path, name: str) -> tuple[Node, list[Problem]]:
    """Returns the tree of a JSON file, and the doubled keys: JSON is YAML, but for tabs and escaped surrogates."""
    text = read_text(path, name)
    try:
        json.loads(text, parse_int=str, parse_float=str)
    except json.JSONDecodeError as error:
        place = Place(file=name, line=error.lineno, column=error.colno)
        reason = error.msg[:1].lower() + error.msg[1:]
        mend = "check quotes, commas and brackets here and on the line before"
        raise ScenarioError([place.problem("", f"not JSON: {reason}", why=_WHY_JSON, mend=mend)]) from None
    except RecursionError:
        pass  # too deep, which the reader of the tree tells with its place
    root, doubled = parse_document(_SURROGATE.sub("\\\\uFFFD", text.replace("\t", " ")), name)
    if not isinstance(root.value, Mapping):
        why = "a config.json is a mapping of keys to values"
        mend = "name the config.json of a model"
        raise ScenarioError([root.place.problem("", "the file holds no keys with values", why=why, mend=mend)])
    return root, doubled


def _refuse_family(keys: Keys, node: Node | None) -> None:
    known = ", ".join(FAMILIES)
    why = "each model_type has keys of its own, and defaults that the file does not say"
    if not keys.model_type:
        problem = "is missing" if node is None else "has no value"
        keys.refuse("model_type", problem, why=why, mend=f"write one of {known}")
        return
    guess = nearest(keys.model_type, FAMILIES)
    hint = f"did you mean {guess}? known are" if guess else "known are"
    mend = f"{hint} {known}; others can be written as a model YAML file"
    keys.refuse("model_type", f"{shortened(keys.model_type)!r} is not a known family", why=why, mend=mend)


def _model_name(path: Path) -> str:
    """Returns the name of the file; of its folder, or of the model in the library's cache, if it is `config.json`."""
    folder = path.resolve().parent
    if path.stem != "config" or not folder.name:
        return path.stem
    if folder.parent.name == "snapshots":  # models--OWNER--NAME/snapshots/COMMIT
        return folder.parent.parent.name.rpartition("--")[2] or folder.name
    return folder.name


def _tree(value: Any, root: Node, place: Place) -> Node:
    """Returns plain values as a tree; None is left out, so that it becomes the default."""
    if isinstance(value, Mapping):
        entries = {}
        for key, inner in value.items():
            if inner is not None:
                at = _place(root, key) or place
                entries[key] = Entry(key_place=at, node=_tree(inner, root, at))
        return _sized(Node(value=entries, place=place), [entry.node for entry in entries.values()])
    if isinstance(value, Sequence) and not isinstance(value, str):
        items = tuple(_tree(item, root, place) for item in value)
        return _sized(Node(value=items, place=place), items)
    return Node(value=str(value).lower() if isinstance(value, bool) else str(value), place=place)


def _sized(node: Node, children: Sequence[Node]) -> Node:
    size, depth = 1 + sum(each.size for each in children), 1 + max((each.depth for each in children), default=0)
    return Node(value=node.value, place=node.place, size=size, depth=depth)


def _place(root: Node, key: str) -> Place | None:
    """Returns where the value of a key of ours was written, at the top of the file or in a mapping of it."""
    inside = [entry.node for entry in root.value.values()] if isinstance(root.value, Mapping) else []
    for name in _WRITTEN_AS.get(key, ()):
        for node in (root, *inside):
            found = node.child(name) if isinstance(node.value, Mapping) else None
            if found is not None and found.value is not None:
                return found.place
    return None
