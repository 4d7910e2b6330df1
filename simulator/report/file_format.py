"""Which kind of file the ending of a name asks for."""

from __future__ import annotations

from enum import StrEnum
from pathlib import PurePath
from typing import TypeVar

from simulator.errors import ScenarioError, Violation

Format = TypeVar("Format", bound=StrEnum)


def format_of(name: str, formats: type[Format], *, option: str, what: str, mend: str) -> Format:
    """Returns the format that the ending of a file's name asks for.

    Args:
        name: the file.
        formats: endings without their dot.
        option: the option that names the file, for messages.
        what: what is written, for example `picture`.
        mend: which names are right.

    Raises:
        ScenarioError: it is none of them.
    """
    ending = PurePath(name).suffix.lower().removeprefix(".")
    if ending in tuple(formats):
        return formats(ending)
    violation = Violation(
        path=f"{option} {name[:80]}",
        problem=f"ends in {'.' + ending if ending else 'nothing'}, which is no kind of {what}",
        why=f"the ending of the name chooses how the {what} is written",
        mend=mend,
    )
    raise ScenarioError([violation])
