"""The keys of a config.json, read as what they must be; what is wrong with them is collected, all of it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from simulator.config.phrases import got
from simulator.config.tree import Node, Path_, dotted
from simulator.config.wording import shortened
from simulator.errors import Problem
from simulator.model.spec import MAX_LAYERS, MAX_WIDTH

_WHOLE = re.compile(r"[+-]?\d{1,18}")
_REAL = re.compile(r"[+-]?\d{1,18}(\.\d*)?([eE][+-]?\d{1,2})?")
_STAND_IN = 1
"""What a size that cannot be read counts as, so that the rest of the file is still looked at."""


@dataclass(slots=True, kw_only=True, eq=False)
class Keys:
    """The keys of a config.json, or of a mapping in it, and the problems found on the way."""

    root: Node
    """The mapping."""
    model_type: str
    """The family, for messages."""
    problems: list[Problem] = field(default_factory=list)
    """What is wrong, in the order in which it was read; shared with the mappings inside."""
    above: Path_ = ()
    """Path of the mapping in the file."""
    defaults: Mapping[str, int] = field(default_factory=dict)
    """Sizes that the library fills in for this family where a file leaves them out."""

    def has(self, key: str) -> bool:
        """Returns whether the file has a key with a value; null is none."""
        node = self.root.child(key)
        return node is not None and node.value is not None

    def count(self, *names: str, default: int | None = None, least: int = 1, most: int = MAX_WIDTH) -> int:
        """Returns a size.

        Args:
            names: the key, and other names that the library takes for it; the first one that the file has counts.
            default: its value where the file has none; None: the key must be there.
            least: smallest value that has a meaning.
            most: largest one.
        """
        key = next((name for name in names if self.has(name)), names[0])
        node, fallback = self.root.child(key), self.defaults.get(key, default)
        if not self.has(key):
            if fallback is not None:
                return fallback
            self._tell_missing(key, node)
            return _STAND_IN
        text = node.value if node is not None and isinstance(node.value, str) else ""
        if not _WHOLE.fullmatch(text) and not text.lstrip("+-").isdecimal():
            self._tell_type(key, node, "a whole number")
            return _STAND_IN
        number = int(text) if _WHOLE.fullmatch(text) else most + 1
        if not least <= number <= most:
            limit = f"at least {least}" if number < least or text.startswith("-") else f"at most {most}"
            verdict = "too small" if "least" in limit else "too large"
            why = "outside these bounds the value has no meaning"
            self.refuse(key, f"{shortened(text)} is {verdict}; it must be {limit}", why=why, mend=f"give {limit}")
            return _STAND_IN
        return number

    def layers(self, *names: str, default: int | None = None) -> int:
        """Returns a number of layers."""
        return self.count(*names, default=default, most=MAX_LAYERS)

    def flag(self, key: str, *, default: bool) -> bool:
        """Returns a truth value."""
        node = self.root.child(key)
        if node is None or node.value is None:
            return default
        if node.value not in ("true", "false"):
            self._tell_type(key, node, "true or false")
            return default
        return node.value == "true"

    def positive(self, *names: str, default: float = 0.0) -> bool:
        """Returns whether any of these rates (of dropout) is more than 0; one that the file lacks is `default`."""
        found = False
        for key in names:
            node = self.root.child(key)
            if node is None or node.value is None:
                found |= default > 0
            elif isinstance(node.value, str) and _REAL.fullmatch(node.value):
                found |= float(node.value) > 0
            else:
                self._tell_type(key, node, "a number")
        return found

    def text(self, key: str) -> str:
        """Returns a name, empty if the file has none."""
        node = self.root.child(key)
        if node is None or node.value is None:
            return ""
        if not isinstance(node.value, str):
            self._tell_type(key, node, "text")
            return ""
        return node.value

    def texts(self, key: str) -> tuple[str, ...] | None:
        """Returns a list of names, None if the file has none."""
        node = self.root.child(key)
        if node is None or node.value is None:
            return None
        items = node.value if isinstance(node.value, tuple) else ()
        texts = tuple(item.value for item in items if isinstance(item.value, str))
        if not isinstance(node.value, tuple) or len(texts) < len(items):
            self._tell_type(key, node, "a list of names")
            return None
        return texts

    def counts(self, key: str) -> tuple[int, ...]:
        """Returns a list of whole numbers, empty if the file has none."""
        texts = self.texts(key) or ()
        if not all(_WHOLE.fullmatch(text) for text in texts):
            self._tell_type(key, self.root.child(key), "a list of whole numbers")
            return ()
        return tuple(int(text) for text in texts)

    def inner(self, key: str, *, defaults: Mapping[str, int] | None = None) -> Keys:
        """Returns the mapping at a key; an empty one if the file has none, where `defaults` says the rest."""
        node = self.root.child(key)
        if node is None or not isinstance(node.value, Mapping):
            if node is not None and node.value is not None:
                self._tell_type(key, node, "a mapping of keys")
            elif not defaults:
                self._tell_missing(key, node)
            node = Node(value={}, place=self.root.place)
        return Keys(
            root=node,
            model_type=self.model_type,
            problems=self.problems,
            above=(*self.above, key),
            defaults=defaults or {},
        )

    def refuse(self, key: str, problem: str, *, why: str, mend: str) -> None:
        """Notes what is wrong with the value of a key, or that it is not there."""
        node = self.root.child(key)
        place = self.root.place if node is None else node.place
        self.problems.append(place.problem(dotted((*self.above, key)), problem, why=why, mend=mend))

    def _tell_missing(self, key: str, node: Node | None) -> None:
        why = f"the size of a {self.model_type} model depends on it"
        if node is None:
            self.refuse(key, "is missing", why=why, mend=f'add `"{key}": ...`')
        else:
            self.refuse(key, "has no value", why=why, mend="write a value in place of null")

    def _tell_type(self, key: str, node: Node | None, expected: str) -> None:
        why = "the value must be of the type of its key"
        self.refuse(key, f"expected {expected}, got {got(node)}", why=why, mend=f"write {expected}")
