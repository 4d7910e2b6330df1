"""The loop behind the automatic zero-bubble schedule: in order of time, ranks choose what to run next.

Compiled, because the search plays the same step through a hundred times. A rank chooses when it is free, among

- the backward of inputs of its oldest microbatch, if the gradient is there;
- the next forward, if its input is there and there is room for its activation;
- a backward of weights that waits, which nobody else waits for: it fills gaps and makes room.

It knows when messages arrive whose action has begun, and nothing of those whose action has not.
"""

from __future__ import annotations

from typing import NamedTuple

import numba
import numpy as np
from numpy.typing import NDArray

from simulator.schedule.actions import BACKWARD_INPUT_CODE, BACKWARD_WEIGHT_CODE, FORWARD_CODE

Reals = NDArray[np.float64]
Integers = NDArray[np.int64]

NEVER = np.inf
ROUNDING = 1e-9
"""Relative error that sums of times and of memory may have."""
_NONE = -1

# One machine function without reference counts, which would treble the time of a play; its caller holds all arrays.
_inlined = numba.njit(forceinline=True, _nrt=False)  # type: ignore[call-overload]


class Step(NamedTuple):
    """What is to be done. A named tuple, which compiled code can read."""

    stages_of: Integers
    """Stages of each rank, [pp, vpp], first to last."""
    rank_of: Integers
    """Rank of each stage, [stages]."""
    durations: Reals
    """Time of an action by kind code and stage, [4, stages]."""
    hop: float
    """Time of a message between ranks."""
    activation: Reals
    """Memory of a microbatch from the start of its forward, [stages]."""
    kept_for_weight: Reals
    """What of it stays until the end of its backward of weights, [stages]."""
    limit: Reals
    """Room of each rank, [pp]."""
    microbatches: int
    """Microbatches in a step."""


class Habit(NamedTuple):
    """How ranks choose."""

    most_in_flight: Integers
    """Microbatches of a stage between their forward and their backward of inputs, at most, [stages]."""
    input_first: bool
    """Whether a backward of inputs goes before a forward when both can run; else they take turns."""
    forward_margin: float
    """Part of a forward that must fit before the next gradient arrives."""
    weight_margin: float
    """Part of a backward of weights that must fit before the next message arrives; negative: all of it, or else the gap
    must be about to make this rank the one that has idled most."""


class State(NamedTuple):
    """How far a step has come."""

    input_at: Reals
    """When the input of a forward arrives, [stages, microbatches]."""
    gradient_at: Reals
    """When the gradient for a backward of inputs arrives, [stages, microbatches]."""
    done: Integers
    """Actions that have begun, by kind code and stage, [4, stages]."""
    free_at: Reals
    """When each rank has finished what it runs, [pp]."""
    moment: Reals
    """When each rank chooses next: it becomes free, or the message comes that it waits for, [leaves >= pp]."""
    earliest: Integers
    """Binary tree, root at 1: the rank below each node whose moment is earliest, [2 * leaves]."""
    begin: Reals
    """When each rank began its first action, [pp]."""
    idle: Reals
    """How long it has waited since then, [pp]."""
    left: Reals
    """Time of its actions that have not begun, [pp]."""
    last_kind: Integers
    """Kind of its last action, -1 before the first, [pp]."""
    written: Integers
    """Actions of each rank that have begun, [pp]."""


def begin_step(step: Step) -> State:
    """Returns the state before the first action."""
    num_stages, pp, shape = len(step.rank_of), len(step.limit), (len(step.rank_of), step.microbatches)
    leaves = 1 << (pp - 1).bit_length()
    state = State(
        input_at=np.full(shape, NEVER),
        gradient_at=np.full(shape, NEVER),
        done=np.zeros((len(step.durations), num_stages), np.int64),
        free_at=np.zeros(pp),
        moment=np.where(np.arange(leaves) < pp, 0.0, NEVER),
        earliest=np.zeros(2 * leaves, np.int64),
        begin=np.zeros(pp),
        idle=np.zeros(pp),
        left=step.microbatches * step.durations.sum(axis=0)[step.stages_of].sum(axis=1),
        last_kind=np.full(pp, _NONE),
        written=np.zeros(pp, np.int64),
    )
    state.input_at[0] = 0.0
    state.earliest[leaves:] = np.arange(leaves)
    for node in range(leaves - 1, 0, -1):
        state.earliest[node] = state.earliest[2 * node]
    return state


@_inlined
def _choose_at(state, rank, moment):  # type: ignore[no-untyped-def]
    """Set when a rank chooses next."""
    state.moment[rank] = moment
    node = (rank + len(state.moment)) // 2
    while node > 0:
        left, right = state.earliest[2 * node], state.earliest[2 * node + 1]
        state.earliest[node] = left if state.moment[left] <= state.moment[right] else right
        node //= 2


@_inlined
def _longest(times):  # type: ignore[no-untyped-def]
    longest = 0.0
    for time in times:
        longest = max(longest, time)
    return longest


@_inlined
def _held(step, state, stage):  # type: ignore[no-untyped-def]
    """Return what a stage holds. From counts, so that rounding does not add up."""
    forwards, inputs = state.done[FORWARD_CODE, stage], state.done[BACKWARD_INPUT_CODE, stage]
    weights = state.done[BACKWARD_WEIGHT_CODE, stage]
    return step.activation[stage] * (forwards - inputs) + step.kept_for_weight[stage] * (inputs - weights)


@_inlined
def _choose(step, habit, state, rank, now):  # type: ignore[no-untyped-def]
    """Return the kind and the stage of what a rank runs next; no kind if it waits."""
    held = 0.0
    for chunk in range(step.stages_of.shape[1]):
        held += _held(step, state, step.stages_of[rank, chunk])
    forward, forward_at = _NONE, NEVER
    backward, backward_at = _NONE, NEVER
    weight = _NONE
    lacks_room = False
    # Stages leave room for a microbatch of those after them on their rank, or they could fill the memory with what
    # waits for those for ever.
    reserved = 0.0
    for chunk in range(step.stages_of.shape[1] - 1, -1, -1):
        stage = step.stages_of[rank, chunk]
        forwards, inputs = state.done[FORWARD_CODE, stage], state.done[BACKWARD_INPUT_CODE, stage]
        in_flight = forwards - inputs
        if in_flight > 0 and max(now, state.gradient_at[stage, inputs]) < backward_at:
            backward, backward_at = stage, max(now, state.gradient_at[stage, inputs])
        if forwards < step.microbatches and in_flight < habit.most_in_flight[stage]:
            arrives = max(now, state.input_at[stage, forwards])
            if held + step.activation[stage] + reserved > step.limit[rank] * (1 + ROUNDING):
                lacks_room = lacks_room or arrives <= now
            elif arrives < forward_at:
                forward, forward_at = stage, arrives
        if weight == _NONE and state.done[BACKWARD_WEIGHT_CODE, stage] < inputs:
            weight = stage
        reserved += max(0.0, step.activation[stage] - _held(step, state, stage))
    turn = habit.input_first or state.last_kind[rank] == FORWARD_CODE
    if backward_at <= now and (turn or forward_at > now):
        return BACKWARD_INPUT_CODE, backward
    wait = backward_at - now
    if forward_at <= now and (wait <= 0.0 or wait >= habit.forward_margin * step.durations[FORWARD_CODE, forward]):
        return FORWARD_CODE, forward
    next_at = backward_at if forward_at <= now else min(backward_at, forward_at)
    gap = next_at - now
    if weight != _NONE:
        fills = gap >= abs(habit.weight_margin) * step.durations[BACKWARD_WEIGHT_CODE, weight]
        if lacks_room or fills or (habit.weight_margin < 0.0 and state.idle[rank] + gap > _longest(state.idle)):
            return BACKWARD_WEIGHT_CODE, weight
    _choose_at(state, rank, next_at)
    return _NONE, _NONE


@_inlined
def _begin(step, state, rank, now, kind, stage):  # type: ignore[no-untyped-def]
    """Let a rank begin an action: its result arrives somewhere at a time that is now known. Return when it ends."""
    microbatch = state.done[kind, stage]
    end = now + step.durations[kind, stage]
    if state.last_kind[rank] == _NONE:
        state.begin[rank] = now
    else:
        state.idle[rank] += now - state.free_at[rank]
    state.done[kind, stage] += 1
    state.left[rank] -= step.durations[kind, stage]
    state.last_kind[rank] = kind
    state.free_at[rank] = end
    _choose_at(state, rank, end)
    target, arrives = rank, end
    if kind == FORWARD_CODE and stage + 1 < len(step.rank_of):
        target = step.rank_of[stage + 1]
        arrives += step.hop if target != rank else 0.0
        state.input_at[stage + 1, microbatch] = arrives
    elif kind == FORWARD_CODE:
        state.gradient_at[stage, microbatch] = arrives
    elif kind == BACKWARD_INPUT_CODE and stage > 0:
        target = step.rank_of[stage - 1]
        arrives += step.hop if target != rank else 0.0
        state.gradient_at[stage - 1, microbatch] = arrives
    if target != rank and state.free_at[target] < state.moment[target] and arrives < state.moment[target]:
        _choose_at(state, target, arrives)
    return end


@numba.njit(cache=True, _nrt=False)  # type: ignore[call-overload]
def play(step, habit, state, longest_makespan, longest_span, orders):  # type: ignore[no-untyped-def]
    """Play one step and write the order of every rank; return its makespan and the longest span of a rank.

    Both are infinite if one would be longer than asked for, when the play ends at once; or if ranks wait for ever.

    Args:
        step: What is to be done.
        habit: How ranks choose.
        state: The beginning; it is used up.
        longest_makespan: Longest makespan of use.
        longest_span: Longest span of use.
        orders: Written: (kind, stage, microbatch, 0) in order, [pp, 3 * vpp * microbatches, 4].
    """
    makespan = span = 0.0
    while True:
        rank = state.earliest[1]
        now = state.moment[rank]
        if now == NEVER:
            break
        kind, stage = _choose(step, habit, state, rank, now)
        if kind == _NONE:
            continue
        place = state.written[rank]
        orders[rank, place, 0] = kind
        orders[rank, place, 1] = stage
        orders[rank, place, 2] = state.done[kind, stage]
        orders[rank, place, 3] = 0
        state.written[rank] = place + 1
        end = _begin(step, state, rank, now, kind, stage)
        makespan, span = max(makespan, end), max(span, end - state.begin[rank])
        earliest = end + state.left[rank]
        if earliest > longest_makespan * (1 + ROUNDING) or earliest - state.begin[rank] > longest_span * (1 + ROUNDING):
            return NEVER, NEVER
    for rank in range(len(state.written)):
        if state.written[rank] < orders.shape[1]:
            return NEVER, NEVER
    return makespan, span
