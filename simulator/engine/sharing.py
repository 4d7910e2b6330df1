"""Compiled loops of max-min fair sharing: transfers that move over the same resources, and the heap of their ends.

`simulator.engine.reference.fair_rates` says in a few lines what rates are fair. Here only the transfers that are
linked, through shared resources, to one that has just begun or ended get new rates; the others' could not change. The
floating-point operations are the same in the same order, so both engines agree to the last bit.
"""

from __future__ import annotations

import math

import numba
import numpy as np

from simulator.engine.program import ENDING, PICOSECONDS_PER_SECOND, SPLIT
from simulator.engine.tables import (
    ALONE_RATE,
    ALONE_S,
    FLOW_BYTES,
    HEAP_SIZE,
    LEFT_BYTES,
    NOT_IN_HEAP,
    NUM_TOUCHED,
    RATE,
    TRANSFER_DEMANDS,
    TRANSFER_SINCE,
)

# Everything becomes one machine function: handing the bundles of arrays from function to function would cost more than
# the functions do. `_nrt=False`: no reference counts, which would double the time of a run; the caller of the loops
# holds all arrays.
inlined = numba.njit(forceinline=True, _nrt=False)  # type: ignore[call-overload]


@inlined
def join(plan, state, owner, now):  # type: ignore[no-untyped-def]
    """Let a transfer begin to move: it uses its resources from now on.

    Where nobody else does, it moves at its lone rate, which fair sharing would give it too; else `share` sets the rate.
    """
    first = plan.demand_begin[owner]
    last = first + state.transfers[owner, TRANSFER_DEMANDS]
    largest, is_alone = state.speeds[owner, FLOW_BYTES], True
    alone = np.inf
    for demand in range(first, last):
        resource = state.moved_resource[demand]
        share = float(state.moved_bytes[demand]) / largest
        state.moved_share[demand] = share
        alone = min(alone, plan.capacity[resource] / share)
        place = plan.user_begin[resource] + state.num_users[resource]
        while place > plan.user_begin[resource] and state.users[place - 1] > owner:
            state.users[place] = state.users[place - 1]
            place -= 1
        state.users[place] = owner
        if state.num_users[resource] == 0:
            state.in_use_since[resource] = now
        else:
            is_alone = False
        state.num_users[resource] += 1
    alone = alone * SPLIT - (alone * SPLIT - alone)
    state.transfers[owner, TRANSFER_SINCE] = now
    state.speeds[owner, LEFT_BYTES], state.speeds[owner, ALONE_RATE] = largest, alone
    if is_alone:
        state.speeds[owner, RATE] = alone
        moving = math.ceil(state.speeds[owner, ALONE_S] * ENDING)
        set_in_heap(state, owner, 2 * (now + max(1, moving)))
        return
    state.speeds[owner, RATE] = 0.0
    for demand in range(first, last):
        _touch(state, state.moved_resource[demand])


@inlined
def leave(plan, state, owner, now):  # type: ignore[no-untyped-def]
    """Take a transfer off its resources."""
    first = plan.demand_begin[owner]
    for demand in range(first, first + state.transfers[owner, TRANSFER_DEMANDS]):
        resource = state.moved_resource[demand]
        place = plan.user_begin[resource]
        while state.users[place] != owner:
            place += 1
        state.num_users[resource] -= 1
        last = plan.user_begin[resource] + state.num_users[resource]
        while place < last:
            state.users[place] = state.users[place + 1]
            place += 1
        if state.num_users[resource] == 0:
            state.resource_busy_ps[resource] += now - state.in_use_since[resource]
        else:
            _touch(state, resource)


@inlined
def _touch(state, resource):  # type: ignore[no-untyped-def]
    if not state.is_touched[resource]:
        state.is_touched[resource] = True
        state.touched[state.counts[NUM_TOUCHED]] = resource
        state.counts[NUM_TOUCHED] += 1


@inlined
def share(plan, state, now):  # type: ignore[no-untyped-def]
    """Set the rates of all transfers that are linked, through resources, to one that has just begun or ended.

    Returns how many these are.
    """
    counts, speeds, touched = state.counts, state.speeds, state.touched
    num_reached, place = 0, 0
    while place < counts[NUM_TOUCHED]:
        resource = touched[place]
        state.is_stale[resource] = True
        for user in range(plan.user_begin[resource], plan.user_begin[resource] + state.num_users[resource]):
            owner = state.users[user]
            if not state.is_reached[owner]:
                state.is_reached[owner] = True
                state.new_rate[owner] = -1.0
                state.reached[num_reached] = owner
                num_reached += 1
                first = plan.demand_begin[owner]
                for demand in range(first, first + state.transfers[owner, TRANSFER_DEMANDS]):
                    _touch(state, state.moved_resource[demand])
        place += 1
    _fill(plan, state, num_reached)
    for place in range(counts[NUM_TOUCHED]):
        state.is_touched[touched[place]] = False
    counts[NUM_TOUCHED] = 0
    for place in range(num_reached):
        owner = state.reached[place]
        state.is_reached[owner] = False
        rate = state.new_rate[owner]
        if rate == speeds[owner, RATE]:
            continue
        elapsed = now - state.transfers[owner, TRANSFER_SINCE]
        speeds[owner, LEFT_BYTES] -= elapsed * speeds[owner, RATE] / PICOSECONDS_PER_SECOND
        left_s = speeds[owner, LEFT_BYTES] / rate
        if speeds[owner, RATE] == 0.0 and rate == speeds[owner, ALONE_RATE]:
            left_s = speeds[owner, ALONE_S]
        speeds[owner, RATE] = rate
        state.transfers[owner, TRANSFER_SINCE] = now
        rest = math.ceil(left_s * ENDING)
        set_in_heap(state, owner, 2 * (now + max(1, rest)))
    return num_reached


@inlined
def _fill(plan, state, num_rising):  # type: ignore[no-untyped-def]
    """Progressive filling of the touched resources (`reference.fair_rates` says it in fewer words)."""
    reached = 0.0
    while num_rising > 0:
        lowest, tightest = np.inf, -1
        for place in range(state.counts[NUM_TOUCHED]):
            resource = state.touched[place]
            if state.is_stale[resource]:
                state.level[resource] = _level(plan, state, resource)
                state.is_stale[resource] = False
            level = state.level[resource]
            if level < lowest or (level == lowest and resource < tightest):
                lowest, tightest = level, resource
        reached = max(reached, lowest * SPLIT - (lowest * SPLIT - lowest))
        for user in range(plan.user_begin[tightest], plan.user_begin[tightest] + state.num_users[tightest]):
            owner = state.users[user]
            if state.new_rate[owner] < 0.0:
                state.new_rate[owner] = reached
                num_rising -= 1
                first = plan.demand_begin[owner]
                for demand in range(first, first + state.transfers[owner, TRANSFER_DEMANDS]):
                    state.is_stale[state.moved_resource[demand]] = True


@inlined
def _level(plan, state, resource):  # type: ignore[no-untyped-def]
    """Return the rate at which the rising transfers fill a resource, or infinity if none of its users rises."""
    used, rising = 0.0, 0.0
    for user in range(plan.user_begin[resource], plan.user_begin[resource] + state.num_users[resource]):
        owner = state.users[user]
        demand = plan.demand_begin[owner]
        while state.moved_resource[demand] != resource:
            demand += 1
        if state.new_rate[owner] < 0.0:
            rising += state.moved_share[demand]
        else:
            used += state.moved_share[demand] * state.new_rate[owner]
    if rising > 0.0:
        return (plan.capacity[resource] - used) / rising
    return np.inf


@inlined
def set_in_heap(state, owner, key):  # type: ignore[no-untyped-def]
    """Put a transfer into the heap, or move it to its new key."""
    place = state.heap_place[owner]
    if place == NOT_IN_HEAP:
        place = state.counts[HEAP_SIZE]
        state.counts[HEAP_SIZE] += 1
    _sift(state, place, owner, key)


@inlined
def pop_heap(state):  # type: ignore[no-untyped-def]
    """Take the first transfer out of the heap and return its owner."""
    owner = state.heap[0]
    state.heap_place[owner] = NOT_IN_HEAP
    state.counts[HEAP_SIZE] -= 1
    last = state.counts[HEAP_SIZE]
    if last > 0:
        _sift(state, 0, state.heap[last], state.heap_key[last])
    return owner


@inlined
def _sift(state, place, owner, key):  # type: ignore[no-untyped-def]
    """Put an owner at a place of the heap and move it up or down to where its key belongs."""
    heap, keys, places, size = state.heap, state.heap_key, state.heap_place, state.counts[HEAP_SIZE]
    while place > 0 and keys[(place - 1) // 2] > key:
        above = (place - 1) // 2
        heap[place], keys[place] = heap[above], keys[above]
        places[heap[place]] = place
        place = above
    while 2 * place + 1 < size:
        child = 2 * place + 1
        if child + 1 < size and keys[child + 1] < keys[child]:
            child += 1
        if keys[child] >= key:
            break
        heap[place], keys[place] = heap[child], keys[child]
        places[heap[place]] = place
        place = child
    heap[place], keys[place] = owner, key
    places[owner] = place
