"""A YAML file as a tree of text with the place of each key and value; what is wrong with the text itself is refused.

Scalars stay text: what `1e9`, `no` or `1:30` mean is decided by the field that they are for, not by YAML 1.1. The tree
is built from parse events, so that nesting and aliases are counted before they are expanded.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from simulator.config.wording import nearest, shortened
from simulator.errors import Problem, ScenarioError, Violation

MAX_FILE_BYTES = 4 << 20
"""Largest file that is read; the largest real scenario is a few kilobytes."""
MAX_NODES = 100_000
"""Most values of a file, aliases expanded."""
MAX_DEPTH = 50
"""Deepest nesting of a file, aliases expanded."""
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_NULLS = frozenset({"", "~", "null", "Null", "NULL"})
_NOT_TEXT = re.compile("[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_LINE_BREAK = re.compile("\r\n|[\n\r\x85\u2028\u2029]")  # what YAML counts as the end of a line

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


def read_document(path: Path, *, shown: str | None = None) -> tuple[Node, list[Problem]]:
    """Returns the tree of a file, and the doubled keys found on the way.

    Args:
        path: the file.
        shown: its name in messages; default: `path` as it is.

    Raises:
        ScenarioError: the file cannot be read, is not YAML, or its top level is not a mapping.
    """
    name = str(path) if shown is None else shown
    node, problems = parse_document(_read_text(path, name), name)
    if not isinstance(node.value, Mapping):
        kind = "a list" if isinstance(node.value, tuple) else f"the text {shortened(str(node.value))!r}"
        refusal = node.place.problem(
            "",
            f"the file holds {kind}, not keys with values",
            why="a scenario, model or cluster file is a mapping of keys to values",
            mend="write lines such as `name: my-run`; `shardsim schema` prints all keys",
        )
        raise ScenarioError([*problems, refusal])
    return node, problems


def parse_document(text: str, name: str) -> tuple[Node, list[Problem]]:
    """Returns the tree of one YAML document of any kind, and the doubled keys found on the way.

    Args:
        text: the document.
        name: name of the file for messages.

    Raises:
        ScenarioError: `text` is empty, not YAML, holds several documents or tags, or explodes.
    """
    odd = _NOT_TEXT.search(text)
    if odd is not None:
        place = _place_at(text, odd.start(), name)
        reason = f"the character U+{ord(odd[0]):04X} is not text"
        raise ScenarioError([_unreadable(place, reason, "save the file as plain text in UTF-8")])
    builder = _Builder(file=name)
    try:
        for event in yaml.parse(text, Loader=_LOADER):
            builder.take(event)
    except yaml.MarkedYAMLError as error:
        raise ScenarioError([*builder.problems, _syntax_problem(error, name, text)]) from None
    except yaml.YAMLError as error:
        reason = f"not YAML: {shortened(str(error), 120)}"
        raise ScenarioError([_unreadable(Place(file=name), reason, "save the file as plain text in UTF-8")]) from None
    if builder.root is None or builder.root.value is None:
        refusal = Place(file=name).problem(
            "",
            "the file is empty",
            why="a scenario needs at least name, model, cluster, layout and training",
            mend="begin with a copy of a built-in one: `shardsim list scenarios`, `shardsim show scenarios NAME`",
        )
        raise ScenarioError([refusal])
    return builder.root, builder.problems


def _read_text(path: Path, name: str) -> str:
    place = Place(file=name)
    try:
        if path.is_dir():
            raise ScenarioError([_unreadable(place, "this is a directory", "name a file in it")])
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except FileNotFoundError:
        raise ScenarioError([_unreadable(place, "there is no such file", _similar_file(path))]) from None
    except (OSError, ValueError) as error:
        reason = f"the file cannot be read: {getattr(error, 'strerror', None) or error}"
        raise ScenarioError([_unreadable(place, reason, "check the name and the permissions")]) from None
    if len(data) > MAX_FILE_BYTES:
        limit = f"the file is larger than {MAX_FILE_BYTES >> 20} MiB"
        raise ScenarioError([_unreadable(place, limit, "name a scenario file; they are a few kilobytes")])
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = data[: error.start].decode("utf-8-sig", errors="replace")
        at = _place_at(before, len(before), name)
        reason = f"the byte 0x{data[error.start]:02X} is not UTF-8 text"
        raise ScenarioError([_unreadable(at, reason, "save the file as plain text in UTF-8")]) from None


def _similar_file(path: Path) -> str:
    try:
        names = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
    except OSError:
        names = []
    guess = nearest(path.name, names)
    return f"check the name; did you mean {path.parent / guess}?" if guess else "check the name"


def _unreadable(place: Place, problem: str, mend: str) -> Problem:
    return place.problem("", problem, why="input files are YAML text in UTF-8", mend=mend)


def _place_at(text: str, index: int, name: str) -> Place:
    breaks = [match.end() for match in _LINE_BREAK.finditer(text, 0, index)]
    return Place(file=name, line=len(breaks) + 1, column=index - (breaks[-1] if breaks else 0) + 1)


def _syntax_problem(error: yaml.MarkedYAMLError, name: str, text: str) -> Problem:
    mark = error.problem_mark or error.context_mark
    place = Place(file=name) if mark is None else Place(file=name, line=mark.line + 1, column=mark.column + 1)
    said = str(error.problem or error.context or error)
    mend = "check colons, quotes, brackets and indentation on this line and the one before"
    lines = text.splitlines()[place.line - 1 : place.line]
    if any("\t" in line[: len(line) - len(line.lstrip())] for line in lines):
        mend = "indent with spaces; YAML does not take tabs"
    return place.problem("", f"not YAML: {shortened(said, 120)}", why="input files are YAML text in UTF-8", mend=mend)


@dataclass(slots=True, kw_only=True)
class _Open:
    """A list or mapping whose end has not come yet."""

    place: Place
    anchor: str | None
    items: list[Node] = field(default_factory=list)
    entries: dict[str, Entry] | None = None
    key: tuple[str, Place] | None = None


@dataclass(slots=True, kw_only=True)
class _Builder:
    """Builds the tree from parse events; keeps count of size and depth."""

    file: str
    root: Node | None = None
    problems: list[Problem] = field(default_factory=list)
    stack: list[_Open] = field(default_factory=list)
    anchors: dict[str, Node | None] = field(default_factory=dict)

    def take(self, event: Any) -> None:
        """Takes one parse event."""
        place = Place(file=self.file, line=event.start_mark.line + 1, column=event.start_mark.column + 1)
        if getattr(event, "tag", None) is not None:
            mend = "remove the tag; types follow from the keys"
            self._refuse(place, f"the tag {shortened(event.tag)} is not known", "files hold plain values only", mend)
        match event:
            case yaml.DocumentStartEvent() if self.root is not None:
                why = "a file holds one scenario, model or cluster"
                self._refuse(place, "a second document begins here", why, "put it into a file of its own")
            case yaml.ScalarEvent():
                null = not event.style and event.value in _NULLS
                if self._is_key():
                    self._open_key(event.value, place)
                else:
                    self._add(Node(value=None if null else event.value, place=place), event.anchor)
            case yaml.AliasEvent():
                self._add_alias(event.anchor or "", place)
            case yaml.MappingStartEvent() | yaml.SequenceStartEvent():
                self._open(event, place)
            case yaml.MappingEndEvent() | yaml.SequenceEndEvent():
                self._close()
            case _:
                pass

    def _is_key(self) -> bool:
        return bool(self.stack) and self.stack[-1].entries is not None and self.stack[-1].key is None

    def _open_key(self, key: str, place: Place) -> None:
        top = self.stack[-1]
        top.key = (key, place)
        first = (top.entries or {}).get(key)
        if first is not None:
            self.problems.append(
                place.problem(
                    dotted(self._path()),
                    f"is given twice; first on line {first.key_place.line}, column {first.key_place.column}",
                    why="with two values it is open which one is meant",
                    mend="keep one of the two",
                )
            )

    def _open(self, event: Any, place: Place) -> None:
        if self._is_key():
            why = "keys are names"
            self._refuse(
                place, "a list or mapping stands where a key should", why, "write a plain name before the colon"
            )
        if len(self.stack) >= MAX_DEPTH:
            self._refuse_depth(place)
        if event.anchor is not None:
            self.anchors[event.anchor] = None
        mapping = isinstance(event, yaml.MappingStartEvent)
        self.stack.append(_Open(place=place, anchor=event.anchor, entries={} if mapping else None))

    def _close(self) -> None:
        top = self.stack.pop()
        children = top.items if top.entries is None else [entry.node for entry in top.entries.values()]
        value = tuple(top.items) if top.entries is None else top.entries
        size = 1 + sum(child.size for child in children)
        depth = 1 + max((child.depth for child in children), default=0)
        self._add(Node(value=value, place=top.place, size=size, depth=depth), top.anchor)

    def _add_alias(self, anchor: str, place: Place) -> None:
        mend = "write the value out"
        if self._is_key():
            self._refuse(place, f"the alias *{shortened(anchor)} stands where a key should", "keys are names", mend)
        node = self.anchors.get(anchor)
        if node is None:
            known = anchor in self.anchors
            what = "refers to a value that contains it" if known else "has no anchor before it"
            self._refuse(place, f"the alias *{shortened(anchor)} {what}", "an alias repeats an earlier value", mend)
        else:
            self._add(Node(value=node.value, place=place, size=node.size, depth=node.depth), None)

    def _add(self, node: Node, anchor: str | None) -> None:
        if node.size > MAX_NODES:
            why = "a file with more is a mistake, or aliases that explode"
            mend = "write the values out without aliases (* and &)"
            self._refuse(node.place, f"more than {MAX_NODES:,} values, aliases expanded", why, mend)
        if node.depth + len(self.stack) > MAX_DEPTH:
            self._refuse_depth(node.place)
        if anchor is not None:
            self.anchors[anchor] = node
        if not self.stack:
            self.root = node
            return
        top = self.stack[-1]
        if top.entries is None:
            top.items.append(node)
        elif top.key is not None:
            key, place = top.key
            top.key = None
            top.entries.setdefault(key, Entry(key_place=place, node=node))

    def _path(self) -> Path_:
        levels = (len(level.items) if level.entries is None else level.key and level.key[0] for level in self.stack)
        return tuple(part for part in levels if part is not None)

    def _refuse_depth(self, place: Place) -> None:
        problem = f"nested more than {MAX_DEPTH} levels deep"
        self._refuse(place, problem, "no key of a scenario lies so deep", "check brackets and indentation")

    def _refuse(self, place: Place, problem: str, why: str, mend: str) -> None:
        path = dotted(self._path()) if len(self.stack) < MAX_DEPTH else ""
        raise ScenarioError([*self.problems, place.problem(path, problem, why=why, mend=mend)])


def entries_of(node: Node) -> Iterator[tuple[str, Entry]]:
    """Yields the keys of a mapping with their entries; nothing for other values."""
    if isinstance(node.value, Mapping):
        yield from node.value.items()
