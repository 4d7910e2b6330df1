"""What each kind of pydantic error is called in a message, why it is one, and how to mend it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from simulator.config.tree import Node, Path_, dotted
from simulator.config.wording import alternatives, listed, nearest, shortened
from simulator.errors import Violation

_MAPPING, _LIST = "a mapping of keys", "a list"
_TYPES = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "string": "text",
    "model": _MAPPING,
    "dict": _MAPPING,
    "tuple": _LIST,
    "list": _LIST,
    "frozen_set": _LIST,
    "set": _LIST,
}
_CHOICES = ("enum", "literal_error")
MISMATCHES = frozenset(
    [f"{name}_{ending}" for name in _TYPES for ending in ("type", "parsing", "from_float", "attributes_type")]
    + ["none_required", *_CHOICES]
)
"""Pydantic's error types that say: not a value of this type at all."""
_BOUNDS = {
    "greater_than_equal": ("ge", "too small", "at least"),
    "greater_than": ("gt", "too small", "more than"),
    "less_than_equal": ("le", "too large", "at most"),
    "less_than": ("lt", "too large", "less than"),
    "multiple_of": ("multiple_of", "not possible", "a multiple of"),
}
_LENGTHS = {
    "too_short": ("min_length", "at least", "items"),
    "too_long": ("max_length", "at most", "items"),
    "string_too_short": ("min_length", "at least", "characters"),
    "string_too_long": ("max_length", "at most", "characters"),
}
_WHY = "the value must be of the type of its key"
WHY_WHOLE = "the values of one mapping must agree with each other"
_WHY_BOUND = "outside these bounds the value has no meaning"
_QUOTED = re.compile(r"'([^']*)'")
_NEXT_STEP = re.compile(r"; (?=write|give|use|set|known|add|choose|remove|name)")


def absurd(path: Path_, text: str) -> Violation:
    """Returns the violation of a number beyond all use."""
    return Violation(
        path=dotted(path),
        problem=f"{shortened(text)} is beyond the numbers that can be meant here",
        why="such a number is a slip of the keyboard, and no computation would survive it",
        mend="check the number of digits and the exponent",
    )


def got(node: Node | None) -> str:
    """Returns what stands in the file, as a phrase."""
    if node is None or node.value is None:
        return "nothing"
    if isinstance(node.value, Mapping):
        return "a mapping"
    return "a list" if isinstance(node.value, tuple) else f"'{shortened(node.value)}'"


def choices_of(errors: Sequence[ErrorDetails]) -> list[str]:
    """Returns the names that enumerations and literals among the failed types accept."""
    return [
        name
        for error in errors
        if error["type"] in _CHOICES
        for name in _QUOTED.findall(str(error.get("ctx", {}).get("expected", "")))
    ]


def expected_of(errors: Sequence[ErrorDetails]) -> str:
    """Returns the types that would do, as a phrase: `a whole number or auto`."""
    kinds = [_TYPES[name] for error in errors if (name := _type_name(error["type"])) in _TYPES]
    scalars = [kind for kind in kinds if kind not in (_MAPPING, _LIST)]
    return alternatives([*scalars, *choices_of(errors), *(kind for kind in kinds if kind not in scalars)])


def _type_name(kind: str) -> str:
    return re.sub(r"_(type|parsing|from_float|attributes_type)$", "", kind.replace("_attributes_type", "_type"))


def describe(
    path: Path_,
    errors: Sequence[ErrorDetails],
    *,
    found: str,
    text: str,
    field: FieldInfo | None,
    siblings: Mapping[str, FieldInfo],
    elsewhere: Sequence[str],
) -> Violation:
    """Returns the violation that pydantic's errors at one path amount to.

    Args:
        path: where the fault is.
        errors: one error, or one of each branch of a union.
        found: what stands there, as a phrase.
        text: the scalar that stands there, empty if it is none.
        field: the field that it is for.
        siblings: the keys that the mapping around it may have.
        elsewhere: dotted paths of all keys, for a key that stands in the wrong mapping.
    """
    error, key = errors[0], str(path[-1]) if path else ""
    kind = error["type"]
    if kind == "extra_forbidden":
        return _unknown_key(path, key, siblings, elsewhere)
    if kind == "missing":
        about = _about(siblings.get(key))
        mend = f"add `{key}: ...`" + (f" ({about})" if about else "")
        return _violation(path, "is missing", f"{key} has no default", mend)
    about = _about(field)
    why = f"{key} is: {about}" if about else _WHY
    if found == "nothing":
        default = ", or delete the line to get the default" if field is not None and not field.is_required() else ""
        mend = f"write {expected_of(errors) or 'a value'} after the colon{default}"
        return _violation(path, "has no value", why, mend)
    if kind in MISMATCHES:
        return _mismatch(path, errors, found=found, text=text, why=why)
    if kind in _BOUNDS:
        name, verdict, relation = _BOUNDS[kind]
        limit = f"{relation} {error.get('ctx', {}).get(name)}"
        problem = f"{shortened(text)} is {verdict}; it must be {limit}"
        return _violation(path, problem, why if about else _WHY_BOUND, f"give {limit}")
    if kind in _LENGTHS:
        name, relation, unit = _LENGTHS[kind]
        limit = f"{relation} {error.get('ctx', {}).get(name)} {unit}"
        return _violation(path, f"{found} does not have {limit}", why if about else _WHY_BOUND, f"give {limit}")
    problem, mend = _split(_message(error))
    return _violation(path, problem, _reason(problem, why), mend or "change the value so that this holds")


def _violation(path: Path_, problem: str, why: str, mend: str) -> Violation:
    return Violation(path=dotted(path), problem=problem, why=why.rstrip("."), mend=mend)


def _about(field: FieldInfo | None) -> str:
    return "" if field is None or not field.description else field.description.rstrip(".")


def _unknown_key(path: Path_, key: str, siblings: Mapping[str, FieldInfo], elsewhere: Sequence[str]) -> Violation:
    guess = nearest(key, siblings)
    moved = [each for each in elsewhere if each.rpartition(".")[2] == key]
    if guess is not None:
        mend = f"did you mean {guess}?"
    elif moved:
        mend = f"did you mean {moved[0]}?"
    else:
        mend = f"remove it; known keys are {listed(list(siblings))}"
    return _violation(path, "unknown key", "a key that nothing reads would change nothing, without a word", mend)


def _mismatch(path: Path_, errors: Sequence[ErrorDetails], *, found: str, text: str, why: str) -> Violation:
    expected, choices = expected_of(errors), choices_of(errors)
    if choices and text:
        guess = nearest(text, choices)
        only_names = all(error["type"] in _CHOICES for error in errors)
        problem = f"{found} is not one of {listed(choices)}" if only_names else f"expected {expected}, got {found}"
        return _violation(path, problem, why, f"did you mean {guess}?" if guess else f"write {expected}")
    return _violation(path, f"expected {expected}, got {found}", why, f"write {expected}")


def _message(error: ErrorDetails) -> str:
    raised: Any = error.get("ctx", {}).get("error")
    text = str(raised) if raised is not None else error["msg"]
    return text if len(text) <= 400 else f"{text[:400]}…"


def _split(message: str) -> tuple[str, str]:
    problem, *rest = _NEXT_STEP.split(message, maxsplit=1)
    return problem, rest[0] if rest else ""


def _reason(problem: str, why: str) -> str:
    if "has no unit" in problem or "with a unit" in problem:
        return "without its unit a quantity could mean GB or GiB, bytes or bits"
    if "not a unit" in problem:
        return "prefixes and units are read exactly: GB is 10^9 bytes, GiB is 2^30, Gb is bits"
    return why
