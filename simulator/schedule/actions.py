"""What a pipeline schedule is made of: actions, their order on each rank, and the proof that the order can run.

An action is one pass (forward, whole backward, or one of its two halves) of one microbatch through one virtual
stage. A schedule is the order of actions on each pipeline rank. It is pure combinatorics: no seconds, no bytes.
Schedules are kept as integer arrays, because one of 512 ranks and 2,048 microbatches has two million actions.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

ActionArray = NDArray[np.int32]
"""Actions in order, shape [actions, 3]: kind code, virtual stage, microbatch."""


class ActionKind(StrEnum):
    """What an action computes."""

    FORWARD = "F"
    """The forward pass: keeps one activation."""
    BACKWARD = "B"
    """The whole backward pass: gradients of inputs and of weights; releases the activation."""
    BACKWARD_INPUT = "I"
    """The backward of inputs: makes the gradient that the previous stage waits for."""
    BACKWARD_WEIGHT = "W"
    """The backward of weights: no other stage waits for it; releases the activation."""

    @property
    def code(self) -> int:
        """Integer that stands for this kind in an `ActionArray`."""
        return _KINDS.index(self)


_KINDS = tuple(ActionKind)
FORWARD_CODE = ActionKind.FORWARD.code
BACKWARD_CODE = ActionKind.BACKWARD.code
BACKWARD_INPUT_CODE = ActionKind.BACKWARD_INPUT.code
BACKWARD_WEIGHT_CODE = ActionKind.BACKWARD_WEIGHT.code


@dataclass(frozen=True, slots=True)
class Action:
    """One pass of one microbatch through one virtual stage."""

    kind: ActionKind
    """Which pass."""
    stage: int
    """Virtual stage, from 0 (embedding) to pp * vpp - 1 (head); global, not per rank."""
    microbatch: int
    """Microbatch, from 0 to microbatches - 1."""

    def __str__(self) -> str:
        return f"{self.kind}{self.stage}.{self.microbatch}"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PipelineSchedule:
    """The order of work on each pipeline rank for one step."""

    name: str
    """Name in `SCHEDULES`."""
    pp: int
    """Pipeline ranks."""
    vpp: int
    """Virtual stages (model chunks) per pipeline rank."""
    microbatches: int
    """Microbatches in a step, per pipeline."""
    stage_to_rank: tuple[int, ...]
    """Pipeline rank that holds each virtual stage."""
    ranks: tuple[ActionArray, ...]
    """Per pipeline rank, its actions in order; read-only arrays of shape [actions, 3]."""

    @property
    def num_stages(self) -> int:
        """Virtual stages of the whole model."""
        return len(self.stage_to_rank)

    @property
    def num_actions(self) -> int:
        """Actions of all ranks in a step."""
        return sum(len(actions) for actions in self.ranks)

    def actions(self, rank: int) -> Iterator[Action]:
        """Yields the actions of one pipeline rank in order."""
        for kind, stage, microbatch in self.ranks[rank].tolist():
            yield Action(_KINDS[kind], stage, microbatch)

    def order(self, rank: int) -> str:
        """Returns the order of one rank as text: `F0.0 F0.1 B0.0 B0.1` (stage.microbatch)."""
        return " ".join(map(str, self.actions(rank)))

    def stages_of(self, rank: int) -> tuple[int, ...]:
        """Returns the virtual stages that a pipeline rank holds, first to last."""
        return tuple(stage for stage, holder in enumerate(self.stage_to_rank) if holder == rank)

    def in_flight_max(self) -> tuple[int, ...]:
        """Returns, per pipeline rank, the most activations of (virtual stage, microbatch) held at one time.

        A forward takes one from its start; the whole backward, or the backward of weights, gives it back at its
        end. So the peak of an order does not depend on durations: it is the highest prefix sum of +1 and -1.

        Source: equations.md E3.11.
        """
        change = np.zeros(len(_KINDS), dtype=np.int32)
        change[FORWARD_CODE] = 1
        change[[BACKWARD_CODE, BACKWARD_WEIGHT_CODE]] = -1
        return tuple(int(np.cumsum(change[actions[:, 0]]).max(initial=0)) for actions in self.ranks)

    def messages_sent(self) -> tuple[int, ...]:
        """Returns, per pipeline rank, the messages it sends to other ranks in a step, activations and gradients.

        A forward sends to the next stage and a backward (whole, or of inputs) to the previous one, unless the same
        rank holds it. Looped placement sums to 2 * microbatches * (pp * vpp - 1).

        Source: equations.md E5.5.
        """
        holder = np.asarray(self.stage_to_rank, dtype=np.int64)
        crosses = holder[:-1] != holder[1:]
        sends = np.zeros((len(_KINDS), self.num_stages), dtype=np.int64)
        sends[FORWARD_CODE, :-1] = crosses
        sends[[BACKWARD_CODE, BACKWARD_INPUT_CODE], 1:] = crosses
        return tuple(int(sends[actions[:, 0], actions[:, 1]].sum()) for actions in self.ranks)
