"""Checks a tree against a pydantic model; every error becomes a problem with its place, reason and mend."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from simulator.config.phrases import MISMATCHES, WHY_WHOLE, absurd, describe, got
from simulator.config.scalars import Shape, field_at, fields_of, key_paths, shape_at, shape_of, typed
from simulator.config.tree import Entry, Node, Path_, Place, dotted
from simulator.config.wording import nearest
from simulator.errors import Problem, Violation

Form = TypeVar("Form", bound=BaseModel)
MAX_PROBLEMS = 1000
"""Most form errors of a file that are told; a file with more is not a scenario."""
_MAX_COUNT = 1 << 62
_MAX_REAL = 1e30

_Located = list[tuple[tuple[str | int, ...], ErrorDetails]]


@dataclass(frozen=True, slots=True)
class _Finding:
    """What is wrong at one path; several errors are the branches of a union that all failed."""

    path: Path_
    errors: tuple[ErrorDetails, ...]

    @property
    def kind(self) -> str:
        """Pydantic's name of the first error."""
        return self.errors[0]["type"]

    @property
    def mismatch(self) -> bool:
        """Whether the value is of no type that the field accepts."""
        return all(error["type"] in MISMATCHES for error in self.errors)


def check_form(
    root: Node, form: type[Form], *, unresolved: frozenset[str] = frozenset()
) -> tuple[Form | None, list[Problem]]:
    """Returns the form filled with the tree's values, or None and every problem.

    Args:
        root: the tree of a file.
        form: the pydantic model that it must fit.
        unresolved: top-level keys that already have a problem of their own; nothing more is said about them.
    """
    shape = shape_of(form)
    data, absurd_paths = typed(root, shape)
    problems = [_absurd(root, path) for path in absurd_paths]
    try:
        filled = form.model_validate(data)
    except ValidationError as error:
        located: _Located = [(each["loc"], each) for each in error.errors(include_url=False)[:MAX_PROBLEMS]]
        findings = [
            finding
            for finding in _sorted_out(root, (), located)
            if finding.path not in absurd_paths and not (finding.path and finding.path[0] in unresolved)
        ]
        elsewhere = key_paths(shape)
        misspelt = _misspelt(shape, findings)
        problems += [
            _problem(root, shape, finding, elsewhere)
            for finding in findings
            if not (finding.kind == "missing" and finding.path in misspelt) and not _follows(root, finding)
        ]
        return None, problems
    problems += [_absurd(root, path) for path in _beyond(filled, ())]
    return (None if problems or unresolved else filled), problems


def _misspelt(shape: Shape, findings: list[_Finding]) -> set[Path_]:
    """Returns the paths that unknown keys were meant to be: that they are missing need not be told as well."""
    found: set[Path_] = set()
    for finding in findings:
        if finding.kind == "extra_forbidden":
            parent = finding.path[:-1]
            guess = nearest(str(finding.path[-1]), fields_of(shape_at(shape, parent)))
            found |= {(*parent, guess)} if guess else set()
    return found


def _follows(root: Node, finding: _Finding) -> bool:
    """Returns whether pydantic calls a list too short only because some of its items are wrong."""
    node = node_at(root, finding.path)
    wanted = finding.errors[0].get("ctx", {}).get("min_length", 0)
    return finding.kind == "too_short" and node is not None and len(node.value or ()) >= wanted


def place_of(root: Node, path: Path_, *, key: bool = False) -> Place:
    """Returns the place of the value (or key) at a path, of the nearest key above it if it is not in the tree."""
    node, key_place = root, None
    for part in path:
        inner = node.child(part)
        if inner is None:
            return _above(key_place, node)
        key_place = node.value[str(part)].key_place if isinstance(node.value, Mapping) else None
        node = inner
    # A mapping below its key is pointed at by the key; a scalar, or a mapping on one line, by itself.
    return _above(key_place, node) if key or isinstance(node.value, Mapping) else node.place


def _above(key_place: Place | None, node: Node) -> Place:
    """The key of a mapping, unless the mapping is a file of its own that the key refers to."""
    return key_place if key_place is not None and key_place.file == node.place.file else node.place


def node_at(root: Node, path: Path_) -> Node | None:
    """Returns the value at a path, None if it is not in the tree."""
    node: Node | None = root
    for part in path:
        node = node.child(part) if node else None
    return node


def _absurd(root: Node, path: Path_) -> Problem:
    node = node_at(root, path)
    text = node.value if node and isinstance(node.value, str) else "the number"
    return placed(absurd(path, text), place_of(root, path))


def placed(violation: Violation, place: Place) -> Problem:
    """Returns the violation with its place."""
    return Problem(violation=violation, file=place.file, line=place.line, column=place.column)


def _sorted_out(node: Node, path: Path_, errors: _Located) -> Iterator[_Finding]:
    """Yields one finding for each fault: follows the tree down, and picks the branch of a union that was meant."""
    here: list[ErrorDetails] = []
    below: dict[str | int, _Located] = {}
    branches: dict[str | int, _Located] = {}
    for rest, error in errors:
        if not rest:
            here.append(error)
        elif node.child(rest[0]) is not None:
            below.setdefault(rest[0], []).append((rest[1:], error))
        elif len(rest) == 1 and error["type"] == "missing":
            yield _Finding((*path, rest[0]), (error,))
        else:
            branches.setdefault(rest[0], []).append((rest[1:], error))
    for error in here:
        yield _Finding(path, (error,))
    for part, inner in below.items():
        child = node.child(part)
        if child is not None:
            yield from _sorted_out(child, (*path, part), inner)
    if branches:
        yield from _meant([list(_sorted_out(node, path, inner)) for inner in branches.values()], path)


def _meant(branches: list[list[_Finding]], path: Path_) -> list[_Finding]:
    near = [found for found in branches if not all(each.path == path and each.mismatch for each in found)]
    if near:
        return min(near, key=len)
    return [_Finding(path, tuple(error for found in branches for each in found for error in each.errors))]


def _problem(root: Node, shape: Shape, finding: _Finding, elsewhere: list[str]) -> Problem:
    path, kind = finding.path, finding.kind
    node = node_at(root, path)
    of_whole = kind == "value_error" and node is not None and isinstance(node.value, Mapping)
    violation = describe(
        path,
        finding.errors,
        found=got(node),
        text=node.value if node and isinstance(node.value, str) else "",
        field=None if of_whole else field_at(shape, path),
        siblings=fields_of(shape_at(shape, path[:-1])),
        elsewhere=elsewhere,
    )
    if kind == "missing":
        return placed(violation, place_of(root, path[:-1], key=True))
    if of_whole and node is not None and isinstance(node.value, Mapping):
        violation, path = _about_key(replace(violation, why=WHY_WHOLE), path, node.value)
    return placed(violation, place_of(root, path, key=kind == "extra_forbidden"))


def _about_key(violation: Violation, path: Path_, entries: Mapping[str, Entry]) -> tuple[Violation, Path_]:
    """Returns a violation of a whole mapping as one of the key that its text begins with: `heads is 7, which ...`."""
    subject, _, rest = violation.problem.partition(" ")
    if subject.rstrip(":") not in entries:
        return violation, path
    path = (*path, subject.rstrip(":"))
    problem = rest.removeprefix("is ").replace(", which does", " does", 1)
    return replace(violation, path=dotted(path), problem=problem), path


def _beyond(value: Any, path: Path_) -> Iterator[Path_]:
    """Yields the paths of numbers that no field bounds and no computation here would survive."""
    if isinstance(value, BaseModel):
        for name, field in type(value).model_fields.items():
            yield from _beyond(getattr(value, name), (*path, field.alias or name))
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _beyond(inner, (*path, str(key)))
    elif isinstance(value, tuple | list):
        for index, inner in enumerate(value):
            yield from _beyond(inner, (*path, index))
    elif isinstance(value, int | float) and not abs(value) <= (_MAX_COUNT if isinstance(value, int) else _MAX_REAL):
        yield path
