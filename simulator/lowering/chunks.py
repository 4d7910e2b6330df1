"""The stages of a pipeline rank, and what an action of the schedule is to its stage."""

from __future__ import annotations

from dataclasses import dataclass

from simulator.cost.pass_memory import OF_WEIGHTS, Turn
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
class ChunkPass:
    """One action of a schedule: a pass of a microbatch through a chunk."""

    chunk: Chunk
    """The stage."""
    kind: ActionKind
    """Which pass."""
    turn: Turn
    """What sets it apart from others of its stage."""

    @property
    def name(self) -> str:
        """Name in traces; of the first chunk of a rank without its number."""
        return f"{_TITLES[self.kind]} {self.chunk.number}" if self.chunk.number else _TITLES[self.kind]

    @property
    def completes_gradients(self) -> bool:
        """Whether it is the last pass of its stage that makes gradients of weights."""
        return self.kind in OF_WEIGHTS and self.turn.last_gradients


_TITLES = {
    ActionKind.FORWARD: "forward",
    ActionKind.BACKWARD: "backward",
    ActionKind.BACKWARD_INPUT: "backward of inputs",
    ActionKind.BACKWARD_WEIGHT: "backward of weights",
}


def gathered_event(chunk: Chunk, bucket: int) -> str:
    """Returns the name of the event after which the updated parameters of a bucket are there."""
    return f"parameters of bucket {bucket} of chunk {chunk.number} are gathered"


def reduced_event(chunk: Chunk) -> str:
    """Returns the name of the event after which all gradients of a stage are reduced."""
    return f"gradients of chunk {chunk.number} are reduced"
