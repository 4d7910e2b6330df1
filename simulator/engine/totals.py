"""Sums over a run that do not depend on when things ran: constants of each routine, times the number of its calls."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from simulator.engine.arrays import FlatProgram
from simulator.engine.kinds import Kind
from simulator.engine.program import OWN_PACE, Program
from simulator.engine.segments import SegmentedRoutine
from simulator.engine.tables import BLOCK_END, BUSY_SINCE, CALL_BLOCK, FREE, SEG_CATEGORY, State

IntArray = npt.NDArray[np.int64]
CLASSES_AT_ONCE = 4096
"""Whose paces are summed at once, to keep what is in memory small."""


def add_fixed_tasks(flat: FlatProgram, state: State) -> None:
    """Add the times of fixed tasks to those that the loops have added up."""
    num_categories = state.time_ps.shape[1]
    own_time = _sums(flat, lambda routine: routine.compute_ps, num_categories)
    unit_time = _sums(flat, lambda routine: routine.compute_units, num_categories)
    own_busy = _sums(flat, lambda routine: routine.busy_ps, num_categories)
    unit_busy = _sums(flat, lambda routine: routine.busy_units, num_categories)
    for kind, calls, variant_of_call in zip(flat.kinds, flat.calls_of_variant, flat.variant_of_call, strict=True):
        state.time_ps[kind.classes] += calls @ own_time
        state.busy_ps[kind.classes] += calls @ own_busy
        for slot, time_ps in _sums_by_slot(flat, calls, lambda routine: routine.resource_busy_ps).items():
            np.add.at(state.resource_busy_ps, _resources(flat, kind, slot), time_ps)
        paced = kind.classes[flat.plan.pace_begin[kind.classes] >= 0]
        units_of_call = unit_time[variant_of_call], unit_busy[variant_of_call]
        for first in range(0, len(paced), CLASSES_AT_ONCE):
            classes = paced[first : first + CLASSES_AT_ONCE]
            places = flat.plan.pace_begin[classes][:, None] + np.arange(len(kind.calls))
            slower = flat.plan.pace[places].astype(np.int64) - OWN_PACE
            state.time_ps[classes] += slower @ units_of_call[0]
            state.busy_ps[classes] += slower @ units_of_call[1]


def resource_bytes(program: Program, flat: FlatProgram) -> IntArray:
    """Return the bytes moved over each resource."""
    total = np.zeros(len(program.resources), dtype=np.int64)
    for kind, calls in zip(flat.kinds, flat.calls_of_variant, strict=True):
        for slot, size in _sums_by_slot(flat, calls, lambda routine: routine.resource_bytes).items():
            np.add.at(total, _resources(flat, kind, slot), size)
    return total


def add_tails(flat: FlatProgram, state: State, *, end_ps: IntArray, makespan_ps: int) -> None:
    """Account the compute streams' time after their last task (`Timeline`, third point)."""
    plan, num_classes = flat.plan, len(end_ps)
    if not num_classes:
        return
    free = state.streams[:, FREE].reshape(num_classes, plan.num_streams)
    last_stream = np.arange(num_classes) * plan.num_streams + np.argmax(free, axis=1)
    gap_ps = end_ps - free[:, 0]
    has_gap = np.flatnonzero(gap_ps > 0)
    last_block = plan.calls[plan.calls_end[last_stream[has_gap]] - 1, CALL_BLOCK]
    category = plan.segments[plan.blocks[last_block, BLOCK_END] - 1, SEG_CATEGORY]
    exposed_ps = np.zeros(num_classes, dtype=np.int64)
    busy_ps = end_ps[has_gap] - state.streams[last_stream[has_gap], BUSY_SINCE]
    exposed_ps[has_gap] = np.minimum(gap_ps[has_gap], busy_ps)
    state.time_ps[has_gap, category] += exposed_ps[has_gap]
    state.time_ps[:, 0] += makespan_ps - free[:, 0] - exposed_ps


def _sums(flat: FlatProgram, of: Callable[[SegmentedRoutine], dict[int, int]], num_columns: int) -> IntArray:
    """Return `[variant, column]`: what one call of each variant adds."""
    sums = np.zeros((len(flat.routines), num_columns), dtype=np.int64)
    for row, routine in zip(sums, flat.routines, strict=True):
        for column, value in of(routine).items():
            row[column] = value
    return sums


def _sums_by_slot(
    flat: FlatProgram, calls: IntArray, of: Callable[[SegmentedRoutine], dict[int, int]]
) -> dict[int, int]:
    """Return what all calls of a class add, by resource slot."""
    sums: dict[int, int] = {}
    for variant in np.flatnonzero(calls).tolist():
        for slot, value in of(flat.routines[variant]).items():
            sums[slot] = sums.get(slot, 0) + value * int(calls[variant])
    return sums


def _resources(flat: FlatProgram, kind: Kind, slot: int) -> npt.NDArray[np.int32]:
    """Return what a resource slot stands for in each class of a kind."""
    resources: npt.NDArray[np.int32] = flat.plan.resources[flat.plan.resource_begin[kind.classes] + slot]
    return resources
