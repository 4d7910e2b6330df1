"""From YAML parse events to a tree: nesting and aliases are counted before they are expanded."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import yaml

from simulator.config.tree import Entry, Node, Path_, Place, dotted
from simulator.config.wording import shortened
from simulator.errors import Problem, ScenarioError

MAX_NODES = 100_000
"""Most values of a file, aliases expanded."""
MAX_DEPTH = 50
"""Deepest nesting of a file, aliases expanded."""
_NULLS = frozenset({"", "~", "null", "Null", "NULL"})


@dataclass(slots=True, kw_only=True)
class _Open:
    """A list or mapping whose end has not come yet."""

    place: Place
    anchor: str | None
    items: list[Node] = field(default_factory=list)
    entries: dict[str, Entry] | None = None
    key: tuple[str, Place] | None = None


@dataclass(slots=True, kw_only=True)
class TreeBuilder:
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
