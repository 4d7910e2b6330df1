"""Compiled loop that runs the order of every rank and finds when each action begins and ends.

Nothing is in time order: a rank runs its actions until one needs a result that is not there yet; whoever makes a result
for another rank lets that rank try again. So each action is looked at about once, and the ranks that are left when
nobody can go on are deadlocked.
"""

from __future__ import annotations

import numba
import numpy as np

from simulator.schedule.actions import BACKWARD_WEIGHT_CODE, FORWARD_CODE

_ABSENT = -1.0


@numba.njit(cache=True)
def _ready_at(action, rank, done, holder, previous, following, hop):  # type: ignore[no-untyped-def]
    """Return when the inputs of an action are there; negative if one is not made yet."""
    kind, stage, microbatch = action[0], action[1], action[2]
    if kind == BACKWARD_WEIGHT_CODE:
        return done[1, stage, microbatch]
    source = previous[stage] if kind == FORWARD_CODE else following[stage]
    ready = 0.0
    if source >= 0:
        ready = done[0 if kind == FORWARD_CODE else 1, source, microbatch]
        if ready < 0.0:
            return _ABSENT
        if holder[source] != rank:
            ready += hop
    if kind != FORWARD_CODE:
        kept = done[0, stage, microbatch]
        if kept < 0.0:
            return _ABSENT
        ready = max(ready, kept)
    return ready


@numba.njit(cache=True)
def run_ranks(  # type: ignore[no-untyped-def]
    actions, first, holder, previous, following, num_microbatches, seconds, joined_seconds, hop, begins, ends, reached
):
    """Write begins and ends of all actions that can run, and where each rank stops.

    Args:
        actions: Actions of all ranks, [actions, 4].
        first: Where the actions of each rank begin, and the end of the last one's, [pp + 1].
        holder: Rank of each stage, [stages].
        previous: Stage before each stage, -1 for none, [stages].
        following: Stage after each stage, -1 for none, [stages].
        num_microbatches: Microbatches of a direction.
        seconds: Duration by kind code and stage, [4, stages].
        joined_seconds: Duration of a joined pair; negative for the sum of its two.
        hop: Time of a message from rank to rank.
        begins: Written: begin of each action, [actions].
        ends: Written: end of each action, [actions].
        reached: Written: index in `actions` of the first action of each rank that did not run, [pp].
    """
    num_ranks, num_stages = len(first) - 1, len(holder)
    done = np.full((2, num_stages, num_microbatches), _ABSENT)
    free = np.zeros(num_ranks)
    waiting = np.arange(num_ranks)[::-1].copy()
    is_waiting = np.ones(num_ranks, dtype=np.bool_)
    num_waiting = num_ranks
    reached[:] = first[:-1]
    while num_waiting > 0:
        num_waiting -= 1
        rank = waiting[num_waiting]
        is_waiting[rank] = False
        place, now = reached[rank], free[rank]
        while place < first[rank + 1]:
            ready = _ready_at(actions[place], rank, done, holder, previous, following, hop)
            last = place
            if ready >= 0.0 and actions[place, 3] == 1:
                last = place + 1
                other = _ready_at(actions[last], rank, done, holder, previous, following, hop)
                ready = max(ready, other) if other >= 0.0 else _ABSENT
            if ready < 0.0:
                break
            begin = max(now, ready)
            now = begin + seconds[actions[place, 0], actions[place, 1]]
            if last > place:
                now += seconds[actions[last, 0], actions[last, 1]]
                if joined_seconds >= 0.0:
                    now = begin + joined_seconds
            for ran in range(place, last + 1):
                begins[ran], ends[ran] = begin, now
                kind, stage = actions[ran, 0], actions[ran, 1]
                if kind == BACKWARD_WEIGHT_CODE:
                    continue
                is_forward = kind == FORWARD_CODE
                done[0 if is_forward else 1, stage, actions[ran, 2]] = now
                target = following[stage] if is_forward else previous[stage]
                if target >= 0 and holder[target] != rank and not is_waiting[holder[target]]:
                    waiting[num_waiting] = holder[target]
                    is_waiting[holder[target]] = True
                    num_waiting += 1
            place = last + 1
        reached[rank], free[rank] = place, now
