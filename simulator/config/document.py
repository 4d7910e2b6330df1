"""Reads a YAML file into a tree; what is wrong with the file or its text is refused with its place."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import yaml

from simulator.config.builder import TreeBuilder
from simulator.config.tree import Node, Place
from simulator.config.wording import nearest, shortened
from simulator.errors import Problem, ScenarioError

MAX_FILE_BYTES = 4 << 20
"""Largest file that is read; the largest real scenario is a few kilobytes."""
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_NOT_TEXT = re.compile("[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_LINE_BREAK = re.compile("\r\n|[\n\r\x85\u2028\u2029]")  # what YAML counts as the end of a line


def read_document(path: Path, *, shown: str | None = None) -> tuple[Node, list[Problem]]:
    """Returns the tree of a file, and the doubled keys found on the way.

    Args:
        path: the file.
        shown: its name in messages; default: `path` as it is.

    Raises:
        ScenarioError: the file cannot be read, is not YAML, or its top level is not a mapping.
    """
    name = str(path) if shown is None else shown
    node, problems = parse_document(read_text(path, name), name)
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
    builder = TreeBuilder(file=name)
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


def read_text(path: Path, name: str, *, max_bytes: int = MAX_FILE_BYTES) -> str:
    """Returns the text of a file.

    Args:
        path: the file.
        name: its name in messages.
        max_bytes: the largest file that is read.

    Raises:
        ScenarioError: the file cannot be read, is too large or not UTF-8.
    """
    place = Place(file=name)
    try:
        if path.is_dir():
            raise ScenarioError([_unreadable(place, "this is a directory", "name a file in it")])
        with path.open("rb") as file:
            data = file.read(max_bytes + 1)
    except FileNotFoundError:
        raise ScenarioError([_unreadable(place, "there is no such file", _similar_file(path))]) from None
    except (OSError, ValueError) as error:
        reason = f"the file cannot be read: {getattr(error, 'strerror', None) or error}"
        raise ScenarioError([_unreadable(place, reason, "check the name and the permissions")]) from None
    if len(data) > max_bytes:
        limit = f"the file is larger than {max_bytes >> 20} MiB"
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


def is_file(path: Path) -> bool:
    """Returns whether there is a file; false also where the path cannot be one."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False
