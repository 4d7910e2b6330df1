"""Automatic zero bubble: an order found for the times, the hop and the memory of the stages at hand.

Zero Bubble's order by hand (zb-h1, zb-h2, zb-v) is made for equal times. This one tries many ways of choosing what a
rank runs next and keeps the best: it runs as many forwards to warm up as memory allows, takes a forward and a backward
of inputs in turn, and fills gaps with backwards of weights, or makes room with them.

With `vpp: 2` a rank holds stages r and 2p - 1 - r (the V placement), which needs half the memory for the same bubble.
"""

from __future__ import annotations

from enum import StrEnum
from itertools import islice, product

import numpy as np
from numpy.typing import NDArray

from simulator.errors import ScenarioError, SimulatorFault, Violation
from simulator.schedule.actions import (
    BACKWARD_INPUT_CODE,
    BACKWARD_WEIGHT_CODE,
    FORWARD_CODE,
    ActionKind,
    PipelineSchedule,
)
from simulator.schedule.profile import Amounts, StageProfile
from simulator.schedule.proof import verify
from simulator.schedule.rules import ScheduleRule
from simulator.schedule.timing import time_schedule
from simulator.schedule.zero_bubble import zb_h1, zb_h2
from simulator.schedule.zero_bubble_v import zb_v

NAME = "zb-auto"

ONE_STAGE_OR_A_V = ScheduleRule(
    path="layout.vpp",
    broken=lambda _pp, vpp, _m: vpp > 2,
    problem=lambda name, _pp, vpp, _m: f"{vpp} model chunks per pipeline rank, but schedule {name} runs one or two",
    why="with two chunks a rank holds one of each half of the model (V placement); the search knows no other placement",
    mend=lambda _pp, _vpp, _m: "set layout.vpp to 1 or 2",
)
RULES: tuple[ScheduleRule, ...] = (ONE_STAGE_OR_A_V,)

FORWARD_MARGINS = (0.0, 0.25, 0.5)
"""How much of a forward must fit before the next backward of inputs; 0: it may delay it."""
WEIGHT_MARGINS = (-1.0, 0.5, 0.75, 0.25, 1.0, 0.0)
"""How much of a backward of weights must fit into a gap; negative: the paper's rule."""
MOST_ACTIONS_PLAYED = 20_000_000
"""Actions after which no other way is tried, a few seconds: of 64 ranks and 256 microbatches all ways are."""
UNLIMITED = 1 << 40
ROUNDING = 1e-9
"""Relative error of sums of times and of memory."""


class Shortest(StrEnum):
    """What the search makes as short as possible."""

    MAKESPAN = "makespan"
    """First start to last end of all ranks: the step, if its update waits for all ranks (a norm of all gradients)."""
    SPAN = "span"
    """First start to last end of the busiest rank: the step, if no rank's update waits for others."""


def auto_zero_bubble(
    pp: int, vpp: int, microbatches: int, profile: StageProfile, *, shortest: Shortest = Shortest.MAKESPAN
) -> PipelineSchedule:
    """Returns the shortest of many orders that never hold more than the limit.

    Args:
        pp: Pipeline ranks.
        vpp: 1, or 2 for the V placement.
        microbatches: Microbatches in a step.
        profile: Times and memory of the stages, and the room of each rank.
        shortest: What is made as short as possible; the other one decides between equals.

    Raises:
        ScenarioError: a rank has no room for one microbatch.

    Source: Qi et al. 2024, arXiv:2401.10241, sections 3.1 and 6; the limit on forwards, the margins and who goes first
    are tried in all combinations, where the paper has two binary choices. Left out: its integer program.
    """
    stages_of = placement(pp, vpp)
    if violations := room_violations(profile, stages_of):
        raise ScenarioError(violations)
    # Imported here because it imports numba, which costs a third of a second.
    from simulator.schedule.list_scheduling import Habit, Step, begin_step, play

    durations = np.zeros((len(ActionKind), pp * vpp))
    durations[FORWARD_CODE] = profile.forward
    durations[BACKWARD_INPUT_CODE] = profile.backward_input
    durations[BACKWARD_WEIGHT_CODE] = profile.backward_weight
    holders = _holders(stages_of)
    step = Step(
        stages_of=stages_of,
        rank_of=holders,
        durations=durations,
        hop=float(profile.hop),
        activation=profile.activation,
        kept_for_weight=profile.activation * (1 - profile.freed_by_input),
        limit=profile.limit,
        microbatches=microbatches,
    )
    by_span = shortest is Shortest.SPAN
    best, found = _shortest_by_hand(stages_of, microbatches, profile, by_span=by_span)
    orders = np.empty_like(best)
    least = _bounds(profile, stages_of, microbatches, by_span=by_span)
    ways = product(FORWARD_MARGINS, WEIGHT_MARGINS, _limits_of_forwards(profile, stages_of), (False, True))
    tries = max(1, MOST_ACTIONS_PLAYED // (3 * microbatches * pp * vpp))
    for forward_margin, weight_margin, most, input_first in islice(ways, tries):
        # Once the first length is as short as can be, only a shorter second one is of use.
        longest = (found[0], found[1] if found[0] <= least[0] * (1 + ROUNDING) else np.inf)
        if (np.array(found) <= np.array(least) * (1 + ROUNDING)).all():
            break
        habit = Habit(most, input_first, forward_margin, weight_margin)
        lengths = play(step, habit, begin_step(step), *longest[:: -1 if by_span else 1], orders)
        if (length := lengths[:: -1 if by_span else 1]) < found:
            found = length
            best, orders = orders, best
    if not np.isfinite(found[0]):
        raise SimulatorFault(f"{NAME}: no way of choosing came to the end of the step")
    best.flags.writeable = False
    schedule = PipelineSchedule(
        name=NAME,
        pp=pp,
        vpp=vpp,
        microbatches=microbatches,
        stage_to_rank=tuple(holders.tolist()),
        ranks=tuple(best),
    )
    return verify(schedule)


def _shortest_by_hand(
    stages_of: NDArray[np.int64], microbatches: int, profile: StageProfile, *, by_span: bool
) -> tuple[NDArray[np.int32], tuple[float, float]]:
    """Returns the shortest of the orders made by hand that keep to the limits, and its two lengths; both infinite, if
    none does."""
    pp, vpp = stages_of.shape
    best, found = np.empty((pp, 3 * vpp * microbatches, 4), dtype=np.int32), (np.inf, np.inf)
    for build in (zb_h1, zb_h2) if vpp == 1 else (zb_v,):
        schedule = build(pp, vpp, microbatches)
        if (peak_activations(schedule, profile) > profile.limit * (1 + ROUNDING)).any():
            continue
        timing = time_schedule(schedule, profile)
        length = (timing.makespan, timing.longest_span)
        length = length[::-1] if by_span else length
        if length < found:
            best, found = np.stack(schedule.ranks), length
    return best, found


def placement(pp: int, vpp: int) -> NDArray[np.int64]:
    """Returns the stages of each rank, [pp, vpp]: r, and with two also 2p - 1 - r."""
    ranks = np.arange(pp, dtype=np.int64)
    return np.stack([ranks, 2 * pp - 1 - ranks][:vpp], axis=1)


def _holders(stages_of: NDArray[np.int64]) -> NDArray[np.int64]:
    holders = np.empty(stages_of.size, dtype=np.int64)
    holders[stages_of] = np.arange(len(stages_of))[:, None]
    return holders


def room_violations(profile: StageProfile, stages_of: NDArray[np.int64]) -> tuple[Violation, ...]:
    """Returns what is wrong with limits under which not one microbatch fits; empty if it fits on every rank."""
    needed = profile.activation[stages_of].sum(axis=1)
    short = np.flatnonzero(needed > profile.limit * (1 + ROUNDING))
    if not short.size:
        return ()
    rank = int(short[0])
    return (
        Violation(
            path="schedule",
            problem=f"pipeline rank {rank} has room for {profile.limit[rank]:.4g} of activations, but one microbatch "
            f"needs {needed[rank]:.4g}",
            why=f"{NAME} keeps to its limit, and every rank holds the activations of at least one microbatch",
            mend="raise the limit of schedule, lower training.micro_batch, or set training.recompute",
        ),
    )


def peak_activations(schedule: PipelineSchedule, profile: StageProfile) -> Amounts:
    """Returns the most memory for activations that each rank holds at one time, [pp].

    A forward takes an activation from its start. The end of a backward of inputs frees a share of it, that of weights
    the rest, a whole backward all of it. The peak of an order does not depend on durations.
    """
    change = np.zeros((len(ActionKind), schedule.num_stages))
    change[FORWARD_CODE] = profile.activation
    change[ActionKind.BACKWARD.code] = -profile.activation
    change[BACKWARD_INPUT_CODE] = -profile.activation * profile.freed_by_input
    change[BACKWARD_WEIGHT_CODE] = -profile.activation * (1 - profile.freed_by_input)
    return np.array([np.cumsum(change[actions[:, 0], actions[:, 1]]).max(initial=0.0) for actions in schedule.ranks])


def _bounds(
    profile: StageProfile, stages_of: NDArray[np.int64], microbatches: int, *, by_span: bool
) -> tuple[float, float]:
    """Returns the makespan and the longest span that no order undercuts; the span first, if asked for.

    A rank works for m (F + I + W), and begins when the first microbatch has come to its first stage. Derived.
    """
    work = microbatches * (profile.forward + profile.backward_input + profile.backward_weight)[stages_of].sum(axis=1)
    first = stages_of[:, 0]
    reached = np.concatenate([[0.0], np.cumsum(profile.forward[first] + profile.hop)[:-1]])
    makespan, span = float((reached + work).max()), float(work.max())
    return (span, makespan) if by_span else (makespan, span)


def _limits_of_forwards(profile: StageProfile, stages_of: NDArray[np.int64]) -> tuple[NDArray[np.int64], ...]:
    """Returns limits on the microbatches of each stage between forward and backward of inputs, [stages].

    As many forwards as fit before the first gradient can be back; two more than the next stage has (zb-h2); none but
    memory; one more than the next stage has (1F1B, zb-h1).
    """
    num_stages = stages_of.size
    holders = _holders(stages_of)
    hops = np.concatenate([profile.hop * (holders[1:] != holders[:-1]), [0.0]])
    onward = (profile.forward + 2 * hops)[::-1].cumsum()[::-1]
    back = np.concatenate([profile.backward_input[::-1].cumsum()[::-1][1:], [0.0]])
    with np.errstate(divide="ignore", invalid="ignore"):
        fitting = np.floor((onward + back) / profile.forward * (1 + ROUNDING))
    fitting = np.clip(np.nan_to_num(fitting, nan=1, posinf=UNLIMITED), 1, UNLIMITED).astype(np.int64)
    ahead = np.arange(num_stages, 0, -1)
    return fitting, 2 * ahead - 1, np.full(num_stages, UNLIMITED), ahead
