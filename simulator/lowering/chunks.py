"""The stages of a pipeline rank, and what an action of the schedule is to its stage."""

from __future__ import annotations

from dataclasses import dataclass

from simulator.cost.pricing import StageCost
from simulator.schedule import ActionKind


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """A virtual stage on its pipeline rank, with its neighbours."""

    number: int
    """Which chunk of its rank, from 0."""
    cost: StageCost
    """What it costs."""
    rank: int
    """Its pipeline rank."""
    previous: int | None
    """Pipeline rank of the stage before, if there is one."""
    next: int | None
    """Pipeline rank of the stage after, if there is one."""
    mirror: int | None = None
    """Pipeline rank that holds the same stage for the other direction, if there are two."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PassPlace:
    """Which pass of a stage an action is, and what is special about it in the step."""

    kind: ActionKind
    """Which pass."""
    first: bool
    """A forward: the stage's first, which waits for updated parameters; a backward (B, W): the first to make gradients
    of its weights."""
    completes_gradients: bool
    """A backward (B, W): the last to make gradients of the stage's weights."""
    last_parameters: bool
    """A backward (B, I): the last pass of the stage that needs its parameters."""


def gathered_event(chunk: Chunk, bucket: int) -> str:
    """Returns the name of the event after which the updated parameters of a bucket are there."""
    return f"parameters of bucket {bucket} of chunk {chunk.number} are gathered"


def reduced_event(chunk: Chunk) -> str:
    """Returns the name of the event after which all gradients of a stage are reduced."""
    return f"gradients of chunk {chunk.number} are reduced"
