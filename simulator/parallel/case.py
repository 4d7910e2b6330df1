"""What a rule of validity looks at, and what it finds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from simulator.cluster import Cluster
from simulator.model.spec import ModelSpec
from simulator.parallel.degrees import Degrees
from simulator.parallel.layout import Layout
from simulator.parallel.training import Training

MAX_LISTED = 12
MAX_DIVISOR = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """What the rules look at."""

    model: ModelSpec
    """The architecture."""
    cluster: Cluster
    """The machine."""
    devices: int
    """Devices of the job."""
    layout: Layout
    """The layout as written."""
    degrees: Degrees
    """Its degrees, numbers or arrays of candidates."""
    schedule: str
    """Name of the pipeline schedule."""
    joins_passes: bool
    """Whether some of its passes run overlapped."""
    training: Training
    """The recipe."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """What a rule found."""

    holds: Any
    """Truth value, or mask over candidates."""
    path: str
    """Key at fault."""
    problem: Callable[[], str]
    """What is wrong, made only when needed."""
    why: str
    """Reason for the rule."""
    mend: Callable[[], str]
    """What to change."""


def divisors(number: int) -> str:
    """Returns the divisors of a number for a message, the first few if there are many."""
    found = [divisor for divisor in range(1, min(number, MAX_DIVISOR) + 1) if number % divisor == 0]
    shown = found if len(found) <= MAX_LISTED else [*found[: MAX_LISTED - 1], "…"]
    return ", ".join(map(str, shown))
