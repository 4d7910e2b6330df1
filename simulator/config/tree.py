"""The tree of a YAML file: text with the place of each key and value.

Scalars stay text: what `1e9`, `no` or `1:30` mean is decided by the field that they are for, not by YAML 1.1.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from simulator.config.wording import shortened
from simulator.errors import Problem, Violation

Path_ = tuple[str | int, ...]
"""Keys and list positions from the top of a file to a value."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A place in a file."""

    file: str
    """Name of the file as the user gave it."""
    line: int = 1
    """Line, from 1."""
    column: int = 1
    """Column, from 1."""

    def problem(self, path: str, problem: str, *, why: str, mend: str) -> Problem:
        """Returns the problem of `path` at this place."""
        violation = Violation(path=path, problem=problem, why=why, mend=mend)
        return Problem(violation=violation, file=self.file, line=self.line, column=self.column)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Node:
    """A value of a file: text, nothing, a list or a mapping."""

    value: str | tuple[Node, ...] | Mapping[str, Entry] | None
    """The text of a scalar, None for a null, the items of a list, the entries of a mapping."""
    place: Place
    """Where the value begins."""
    size: int = 1
    """Values in this one, itself included, aliases expanded."""
    depth: int = 1
    """Levels of nesting in this one, itself included."""

    def child(self, part: str | int) -> Node | None:
        """Returns the value at a key or list position, None if there is none."""
        if isinstance(self.value, Mapping):
            entry = self.value.get(str(part))
            return None if entry is None else entry.node
        if isinstance(self.value, tuple):
            index = int(part) if str(part).isdecimal() and len(str(part)) < 10 else len(self.value)
            return self.value[index] if index < len(self.value) else None
        return None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Entry:
    """A key of a mapping with its value."""

    key_place: Place
    """Where the key begins."""
    node: Node
    """The value."""


def dotted(path: Path_) -> str:
    """Returns the path as the user writes it: `layout.tp`."""
    return ".".join(shortened(str(part)) for part in path)


def entries_of(node: Node) -> Iterator[tuple[str, Entry]]:
    """Yields the keys of a mapping with their entries; nothing for other values."""
    if isinstance(node.value, Mapping):
        yield from node.value.items()
