"""What a schedule builder may know of the stages: how long their passes take and what they keep in memory."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Amounts = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class StageProfile:
    """Times and memory of the virtual stages, in any one unit of time and any one of memory."""

    forward: Amounts
    """Time of a forward, [stages]."""
    backward_input: Amounts
    """Time of a backward of inputs, [stages]."""
    backward_weight: Amounts
    """Time of a backward of weights, [stages]."""
    hop: float
    """Time of a message from one rank to another."""
    activation: Amounts
    """What a microbatch holds from the start of its forward, [stages]."""
    freed_by_input: Amounts
    """Share of it that the backward of inputs frees, 0 to 1, [stages]; the backward of weights frees the rest."""
    limit: Amounts
    """Room for activations on each rank, [pp]."""
