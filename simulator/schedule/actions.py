"""What a pipeline schedule is made of: actions, their order on each rank, and the proof that the order can run.

An action is one pass (forward, whole backward, or one of its two halves) of one microbatch through one virtual
stage. A schedule is the order of actions on each pipeline rank. It is pure combinatorics: no seconds, no bytes.
Schedules are kept as integer arrays, because one of 512 ranks and 2,048 microbatches has two million actions.

Two actions in a row may be joined: they run overlapped (`F3.1&B0.2`), beginning when the inputs of both are there and
ending together, so that the communication of each hides behind the computation of the other (DualPipe).

A bidirectional schedule has two directions. Its virtual stages are two chains of model stages, one behind the other:
stage d * chain + k is model stage k of direction d, and each direction numbers its own microbatches.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

ActionArray = NDArray[np.int32]
"""Actions in order, shape [actions, 4]: kind code, virtual stage, microbatch, 1 if joined with the next action."""


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
    """Virtual stage; global, not per rank."""
    microbatch: int
    """Microbatch of the stage's direction, from 0."""
    joined: bool = False
    """Whether it runs overlapped with the next action of its rank."""

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
    """Microbatches in a step, per pipeline; of all directions together."""
    stage_to_rank: tuple[int, ...]
    """Pipeline rank that holds each virtual stage."""
    ranks: tuple[ActionArray, ...]
    """Per pipeline rank, its actions in order; read-only arrays of shape [actions, 4]."""
    directions: int = 1
    """Chains of stages that microbatches go through: 2 if they enter at both ends of the pipeline."""

    @property
    def num_stages(self) -> int:
        """Virtual stages of all directions."""
        return len(self.stage_to_rank)

    @property
    def chain(self) -> int:
        """Virtual stages of one direction: those of the whole model."""
        return self.num_stages // self.directions

    @property
    def microbatches_per_direction(self) -> int:
        """Microbatches that go through one chain of stages in a step."""
        return self.microbatches // self.directions

    @property
    def ends(self) -> tuple[int, int]:
        """Pipeline ranks of the first and the last stage of the model; of two directions those of the first."""
        return self.stage_to_rank[0], self.stage_to_rank[self.chain - 1]

    @property
    def joins_passes(self) -> bool:
        """Whether some actions run overlapped."""
        return any(bool(actions[:, 3].any()) for actions in self.ranks)

    def previous(self, stage: int) -> int | None:
        """Returns the stage that a stage gets its activations from; None for the first of a chain."""
        return stage - 1 if stage % self.chain else None

    def next(self, stage: int) -> int | None:
        """Returns the stage that a stage sends its activations to; None for the last of a chain."""
        return stage + 1 if (stage + 1) % self.chain else None

    @property
    def num_actions(self) -> int:
        """Actions of all ranks in a step."""
        return sum(len(actions) for actions in self.ranks)

    def actions(self, rank: int) -> Iterator[Action]:
        """Yields the actions of one pipeline rank in order."""
        for kind, stage, microbatch, joined in self.ranks[rank].tolist():
            yield Action(_KINDS[kind], stage, microbatch, bool(joined))

    def order(self, rank: int) -> str:
        """Returns the order of one rank as text: `F0.0 F0.1 F1.0&B0.0 B0.1` (stage.microbatch, & joins two)."""
        return "".join(f"{action}{'&' if action.joined else ' '}" for action in self.actions(rank)).rstrip()

    def stages_of(self, rank: int) -> tuple[int, ...]:
        """Returns the virtual stages that a pipeline rank holds, first to last."""
        return tuple(stage for stage, holder in enumerate(self.stage_to_rank) if holder == rank)

    def model_stages_of(self, rank: int) -> tuple[int, ...]:
        """Returns the stages of the model that a pipeline rank holds, in the order of `stages_of`."""
        return tuple(stage % self.chain for stage in self.stages_of(rank))

    def in_flight_max(self) -> tuple[int, ...]:
        """Returns, per pipeline rank, the most activations of (virtual stage, microbatch) held at one time.

        A forward takes one from its start; the whole backward, or the backward of weights, gives it back at its
        end. So the peak of an order does not depend on durations: it is the highest prefix sum of +1 and -1. A
        joined pair holds both of its activations.

        Source: equations.md E3.11.
        """
        return tuple(int(peak) for peak in self.in_flight_peak(0.0))

    def in_flight_peak(self, freed_by_input: float) -> tuple[float, ...]:
        """Returns the most activations held at one time if the backward of inputs frees a part of each.

        Args:
            freed_by_input: Share of an activation that the backward of inputs frees at its end, 0 to 1; the backward
                of weights frees the rest. With 0 it is `in_flight_max`.

        Returns:
            Per pipeline rank, activations of (virtual stage, microbatch).

        Source: equations.md E3.11.
        """
        change = np.zeros(len(_KINDS))
        change[FORWARD_CODE] = 1.0
        change[BACKWARD_CODE] = -1.0
        change[BACKWARD_INPUT_CODE] = -freed_by_input
        change[BACKWARD_WEIGHT_CODE] = freed_by_input - 1.0
        return tuple(float(np.cumsum(_takes_first(change[order[:, 0]], order)).max(initial=0)) for order in self.ranks)

    def messages_sent(self) -> tuple[int, ...]:
        """Returns, per pipeline rank, the messages it sends to other ranks in a step, activations and gradients.

        A forward sends to the next stage and a backward (whole, or of inputs) to the previous one, unless the same
        rank holds it. Looped placement sums to 2 * microbatches * (pp * vpp - 1).

        Source: equations.md E5.5.
        """
        holder = np.asarray(self.stage_to_rank, dtype=np.int64)
        crosses = holder[:-1] != holder[1:]
        crosses[self.chain - 1 :: self.chain] = False
        sends = np.zeros((len(_KINDS), self.num_stages), dtype=np.int64)
        sends[FORWARD_CODE, :-1] = crosses
        sends[[BACKWARD_CODE, BACKWARD_INPUT_CODE], 1:] = crosses
        return tuple(int(sends[actions[:, 0], actions[:, 1]].sum()) for actions in self.ranks)

    def firsts_and_lasts(self, rank: int) -> FirstsAndLasts:
        """Returns which actions of a rank are the first or the last of their stage, in the order of the rank."""
        kinds, stages = self.ranks[rank][:, 0], self.ranks[rank][:, 1]
        forward = kinds == FORWARD_CODE
        gradients = (kinds == BACKWARD_CODE) | (kinds == BACKWARD_WEIGHT_CODE)
        parameters = (kinds == BACKWARD_CODE) | (kinds == BACKWARD_INPUT_CODE)
        return FirstsAndLasts(
            first_forward=_firsts(forward, stages),
            first_backward=_firsts(parameters, stages),
            first_gradients=_firsts(gradients, stages),
            last_gradients=_firsts(gradients[::-1], stages[::-1])[::-1],
            last_parameters=_firsts(parameters[::-1], stages[::-1])[::-1],
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FirstsAndLasts:
    """Which actions of a rank do more than others of their stage; boolean arrays of shape [actions]."""

    first_forward: NDArray[np.bool_]
    """The stage's first forward of the step."""
    first_backward: NDArray[np.bool_]
    """Its first backward, whole or of inputs."""
    first_gradients: NDArray[np.bool_]
    """The first action that makes gradients of its weights: a whole backward, or one of weights."""
    last_gradients: NDArray[np.bool_]
    """The last such action, after which its gradients are complete."""
    last_parameters: NDArray[np.bool_]
    """The last action that needs its parameters: a whole backward, or one of inputs."""


def _firsts(chosen: NDArray[np.bool_], stages: NDArray[np.int32]) -> NDArray[np.bool_]:
    """Marks the first chosen action of every stage."""
    places = np.flatnonzero(chosen)
    _, first = np.unique(stages[places], return_index=True)
    marks = np.zeros(len(stages), dtype=np.bool_)
    marks[places[first]] = True
    return marks


def _takes_first(changes: NDArray[np.float64], order: ActionArray) -> NDArray[np.float64]:
    """Puts what a joined pair takes at its start before what it gives back at its end."""
    first = np.flatnonzero(order[:, 3])
    pairs = np.sort([changes[first + 1], changes[first]], axis=0)
    changes[first], changes[first + 1] = pairs[1], pairs[0]
    return changes
