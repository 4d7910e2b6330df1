"""Changes of a tree by dotted path, before it is validated: `--set layout.tp=8` and the `variants:` of a scenario."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from simulator.config.builder import MAX_DEPTH
from simulator.config.document import parse_document
from simulator.config.tree import Entry, Node, Path_, Place, dotted, entries_of
from simulator.config.wording import shortened
from simulator.errors import Problem, ScenarioError


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Override:
    """One value to put at one path."""

    path: Path_
    """Where the value goes."""
    node: Node
    """The value; a mapping is merged into a mapping that is there, anything else replaces what is there."""
    place: Place
    """Place of the key, for messages."""


def command_line_overrides(overrides: Mapping[str, str]) -> tuple[list[Override], list[Problem]]:
    """Returns the overrides of `--set KEY=VALUE`, and the problems of those that are not.

    Args:
        overrides: value by dotted key; values are YAML: `8`, `true`, `[1, 2]`, `{cpu: true}`.
    """
    found, problems = [], []
    for key, text in overrides.items():
        name = shortened(f"--set {key}={text}", 80)
        path = tuple(key.split("."))
        place = Place(file=name)
        try:
            node, doubled = parse_document(text, name) if text.strip() else (Node(value=None, place=place), [])
        except ScenarioError as error:
            problems += [problem for problem in error.problems if isinstance(problem, Problem)]
            continue
        problems += doubled
        found.append(Override(path=path, node=node, place=place))
    return found, problems


def variant_overrides(variant: Node) -> list[Override]:
    """Returns the overrides of one entry of `variants:`, a mapping of dotted path to value."""
    return [
        Override(path=tuple(key.split(".")), node=entry.node, place=entry.key_place)
        for key, entry in entries_of(variant)
    ]


def apply_override(root: Node, override: Override) -> tuple[Node, list[Problem]]:
    """Returns the tree with one override applied, or as it was with the problem why it cannot be."""
    if len(override.path) > MAX_DEPTH:
        mend = "use the keys that `shardsim schema scenario` prints"
        why = "no key of a scenario lies so deep"
        return root, [override.place.problem(dotted(override.path[:3]), "has too many dots", why=why, mend=mend)]
    try:
        return _put(root, override.path, 0, override), []
    except ScenarioError as error:
        return root, [problem for problem in error.problems if isinstance(problem, Problem)]


def _put(node: Node, path: Path_, at: int, override: Override) -> Node:
    if at == len(path):
        return _merged(node, override.node)
    part = str(path[at])
    if isinstance(node.value, tuple):
        inner = node.child(part)
        if inner is None:
            mend = f"give a position from 0 to {len(node.value) - 1}"
            raise _refused(override, at, f"is a list of {len(node.value)} items without item {shortened(part)}", mend)
        items = list(node.value)
        items[int(part)] = _put(inner, path, at + 1, override)
        return replace(node, value=tuple(items))
    if node.value is not None and not isinstance(node.value, Mapping):
        raise _refused(
            override, at, "is a single value here, without keys in it", f"set {dotted(path[:at])} as a whole"
        )
    entries = dict(node.value or {})
    entry = entries.get(part)
    if entry is None:
        inner = Node(value=None, place=override.place)
        if at + 1 < len(path):
            inner = Node(value={}, place=override.place)
        entry = Entry(key_place=override.place, node=inner)
    key_place = override.place if at + 1 == len(path) else entry.key_place
    entries[part] = Entry(key_place=key_place, node=_put(entry.node, path, at + 1, override))
    return replace(node, value=entries)


def _merged(old: Node, new: Node) -> Node:
    if not isinstance(old.value, Mapping) or not isinstance(new.value, Mapping):
        return new
    entries = dict(old.value)
    for key, entry in new.value.items():
        before = entries.get(key)
        entries[key] = entry if before is None else replace(entry, node=_merged(before.node, entry.node))
    return replace(new, value=entries)


def _refused(override: Override, at: int, what: str, mend: str) -> ScenarioError:
    why = "an override follows the keys of the scenario"
    path = dotted(override.path)
    subject = dotted(override.path[:at]) or "the scenario"
    return ScenarioError([override.place.problem(path, f"{subject} {what}", why=why, mend=mend)])
