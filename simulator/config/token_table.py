"""The table of tokens that a scenario names as a CSV file, put into the tree in its place."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from simulator.config.document import is_file, read_text
from simulator.config.library import shown_path
from simulator.config.tree import Entry, Node, Place
from simulator.errors import Problem, ScenarioError

_PATH = ("variability", "tokens")
_WHY = "a table of tokens is a CSV file of whole numbers: a row a replica, a column a microbatch, no header"


def with_token_table(root: Node, folder: Path) -> tuple[Node, list[Problem]]:
    """Returns the tree with `variability.tokens.file` read into `variability.tokens.table`, and what is wrong with it.

    Args:
        root: the tree of a scenario.
        folder: where the scenario's file lies.
    """
    tokens: Node | None = root
    for part in _PATH:
        tokens = tokens.child(part) if tokens is not None else None
    if tokens is None or not isinstance(tokens.value, Mapping):
        return root, []
    entry = tokens.value.get("file")
    if entry is None or not isinstance(entry.node.value, str):
        return root, []
    name, place = entry.node.value, entry.node.place
    if "table" in tokens.value:
        problem = place.problem(
            "variability.tokens.file",
            "stands beside table",
            why="the file is the table",
            mend="keep one of the two",
        )
        return root, [problem]
    beside = folder / name
    path = beside if is_file(beside) else Path(name)
    try:
        table = _table(read_text(path, shown_path(path)), shown_path(path))
    except ScenarioError as error:
        found = [each for each in error.problems if isinstance(each, Problem)]
        return root, [replace(each, violation=replace(each.violation, why=_WHY)) for each in found]
    filled = replace(tokens, value={**tokens.value, "table": Entry(key_place=entry.key_place, node=table)})
    return _replaced(root, _PATH, filled), []


def _table(text: str, name: str) -> Node:
    """Returns the rows of a CSV file as lists, each number with its place; empty lines are skipped."""
    rows = []
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        cells, column = [], 1
        for cell in line.split(","):
            place = Place(file=name, line=number, column=column + len(cell) - len(cell.lstrip()))
            cells.append(Node(value=cell.strip(), place=place))
            column += len(cell) + 1
        rows.append(Node(value=tuple(cells), place=Place(file=name, line=number)))
    return Node(value=tuple(rows), place=Place(file=name))


def _replaced(root: Node, path: tuple[str, ...], node: Node) -> Node:
    """Returns the tree with another value at a path of keys."""
    if not path or not isinstance(root.value, Mapping):
        return node
    entry = root.value[path[0]]
    inner = _replaced(entry.node, path[1:], node)
    return replace(root, value={**root.value, path[0]: Entry(key_place=entry.key_place, node=inner)})
