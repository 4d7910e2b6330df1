"""The records of worked values beside this file, as parameters of a test."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@dataclass(frozen=True)
class Record:
    """One worked value."""

    id: str
    inputs: dict[str, Any]
    expected: Any
    tolerance: dict[str, float]

    def agrees_with(self, value: float) -> bool:
        """Returns whether a value meets the record: exactly, or within its relative tolerance."""
        if "abs" in self.tolerance:
            return bool(abs(value - self.expected) <= self.tolerance["abs"])
        return bool(abs(value - self.expected) <= self.tolerance["rel"] * abs(self.expected))


@cache
def read(name: str) -> dict[str, Any]:
    """Returns the content of one YAML file of this folder."""
    content: dict[str, Any] = yaml.load(
        Path(__file__).with_name(f"{name}.yaml").read_text(encoding="utf-8"), Loader=_LOADER
    )
    return content


@cache
def records(name: str, *beginnings: str) -> tuple[Record, ...]:
    """Returns the records of a file whose ids begin with one of `beginnings`; all of them if none is given.

    Raises:
        LookupError: a beginning that fits no record, which would be a test of nothing.
    """
    found = tuple(
        Record(row["id"], row["inputs"], row["expected"], row["tolerance"])
        for row in read(name)["records"]
        if not beginnings or row["id"].startswith(beginnings)
    )
    for beginning in beginnings:
        if not any(record.id.startswith(beginning) for record in found):
            raise LookupError(f"no record of {name}.yaml begins with {beginning}")
    return found


def each(name: str, *beginnings: str) -> pytest.MarkDecorator:
    """Returns the decorator that runs a test once for each of these records, with its id."""
    return pytest.mark.parametrize("record", [pytest.param(row, id=row.id) for row in records(name, *beginnings)])
