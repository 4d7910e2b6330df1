"""How the time of a step spreads where something in it is random."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from simulator.engine.program import PICOSECONDS_PER_SECOND

MAX_SLOWEST = 8
"""Rank classes that are named as the slowest of a step; the others are few of many."""
MEDIAN, HIGH, HIGHEST = 50.0, 95.0, 99.0
"""Percentiles."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Draws:
    """Steps that were simulated with jitter."""

    makespans_ps: npt.NDArray[np.int64]
    """Time of each step."""
    slowest: tuple[str, ...]
    """Name of the slowest class of each step."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """Times of steps with jitter, every one simulated."""

    steps: int
    """How many."""
    mean_s: float
    """Mean."""
    std_error_s: float
    """Standard error of the mean: standard deviation over the root of the number of steps."""
    std_s: float
    """Standard deviation, of a sample."""
    p50_s: float
    """Median. Percentiles lie on the line between the two nearest steps."""
    p95_s: float
    """95th percentile."""
    p99_s: float
    """99th percentile."""
    min_s: float
    """Shortest."""
    max_s: float
    """Longest."""
    slowest: dict[str, int]
    """By rank class, in how many steps it idled least, most first; the first few."""


def spread_of(draws: Draws) -> Spread:
    """Returns what the times of drawn steps come to."""
    times_s = draws.makespans_ps / PICOSECONDS_PER_SECOND
    std_s = float(times_s.std(ddof=1))
    p50_s, p95_s, p99_s = np.percentile(times_s, (MEDIAN, HIGH, HIGHEST)).tolist()
    return Spread(
        steps=len(times_s),
        mean_s=float(times_s.mean()),
        std_error_s=std_s / len(times_s) ** 0.5,
        std_s=std_s,
        p50_s=p50_s,
        p95_s=p95_s,
        p99_s=p99_s,
        min_s=float(times_s.min()),
        max_s=float(times_s.max()),
        slowest=dict(Counter(draws.slowest).most_common(MAX_SLOWEST)),
    )
