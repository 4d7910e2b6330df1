"""What can go wrong, as values and as exceptions.

```
SimulatorError
├── ScenarioError    the user's file is wrong: every problem, with its place, reason and mend (exit 2)
└── SimulatorFault   the program is wrong: please report it (exit 1)
```

A rule that a scenario breaks is a `Violation`, a value: reading a file turns violations into one
`ScenarioError` with line numbers, a search counts them as reasons. "Does not fit" is neither: it is a
field of the report.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Violation:
    """One broken rule, in the user's words."""

    path: str
    """Dotted path of the key at fault, for example `layout.tp`."""
    problem: str
    """What is wrong, without the path: `6 does not divide model.heads, which is 64`."""
    why: str
    """The reason for the rule."""
    mend: str
    """What the user can do: a value to set, the nearest valid name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """A violation with its place in a file."""

    violation: Violation
    """The rule that is broken."""
    file: str
    """Name of the file as the user gave it."""
    line: int
    """Line of the key or value, from 1."""
    column: int
    """Column of the key or value, from 1."""

    def __str__(self) -> str:
        violation = self.violation
        path = f"{violation.path}: " if violation.path else ""
        return (
            f"{self.file}:{self.line}:{self.column}: {path}{violation.problem}\n"
            f"  why:  {violation.why}\n"
            f"  mend: {violation.mend}"
        )


class SimulatorError(Exception):
    """Base of all errors that this package raises on purpose."""


class ScenarioError(SimulatorError):
    """The user's input is wrong; holds every problem found, in file order."""

    def __init__(self, problems: Sequence[Problem | Violation]) -> None:
        self.problems: tuple[Problem | Violation, ...] = tuple(problems)
        super().__init__("\n".join(_describe(problem) for problem in self.problems))


class SimulatorFault(SimulatorError):  # noqa: N818  (the name that the design gives it)
    """The program broke one of its own invariants."""


def _describe(problem: Problem | Violation) -> str:
    if isinstance(problem, Problem):
        return str(problem)
    path = f"{problem.path}: " if problem.path else ""
    return f"{path}{problem.problem}\n  why:  {problem.why}\n  mend: {problem.mend}"
