"""The moment at which the fullest rank holds most, and what it holds then."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from simulator.cost.allocation_trace import NO_LAYER, AllocationTrace
from simulator.cost.memory import Held
from simulator.cost.resident import OUTSIDE_ALLOCATOR
from simulator.lowering.step import LoweredStep
from simulator.report.result import HeldTensors, Peak
from simulator.schedule import PipelineSchedule

MAX_TENSORS = 8
"""Groups of tensors that are named; the rest is summed up."""
OF_STAGE = " of stage "
"""Resident states have one tensor a stage; here they are one kind."""
RESIDENT = "before the step"
"""The action of a peak that no pass exceeds."""


def peak_of(trace: AllocationTrace, step: LoweredStep, schedule: PipelineSchedule, class_number: int) -> Peak:
    """Returns when a rank class holds most, and its largest tensors then; all of them add up to its peak.

    Args:
        trace: what the class allocates and frees in a step.
        step: the program.
        schedule: says which stages lie on which pipeline rank.
        class_number: which class of the program.
    """
    rank = step.pipeline_ranks[class_number]
    event = int(trace.requested_level().argmax())
    tensor = int(trace.tensors[event])
    label, layer = trace.labels[trace.tensor_labels[tensor]], int(trace.tensor_layers[tensor])
    call = call_of_event(step, class_number, event)
    routine, microbatch = None, None
    if call is not None:
        number, microbatch = (int(value) for value in step.program.classes[class_number].calls[call])
        routine = step.routines[number]
    stage = None if routine is None or routine.chunk is None else schedule.model_stages_of(rank)[routine.chunk]
    groups = _groups(trace, event)
    for held in step.resident[rank]:
        if held.category in OUTSIDE_ALLOCATOR and held.bytes:
            groups[held.name, str(held.category)].append(int(held.bytes))
    sizes = sorted(groups.items(), key=lambda group: (-sum(group[1]), group[0]))
    shown, rest = sizes[:MAX_TENSORS], sizes[MAX_TENSORS:]
    return Peak(
        class_=step.program.classes[class_number].name,
        pipeline_rank=rank,
        action=RESIDENT if routine is None else routine.routine.name.rstrip(" 0123456789"),
        microbatch=None if stage is None else microbatch,
        stage=stage,
        layer=None if layer == NO_LAYER else layer,
        operator=label.operator,
        tensor=label.name,
        largest=tuple(
            HeldTensors(name=name, category=category, count=len(each), total_bytes=sum(each))
            for (name, category), each in shown
        ),
        others_count=sum(len(each) for _, each in rest),
        others_bytes=sum(sum(each) for _, each in rest),
    )


def call_of_event(step: LoweredStep, class_number: int, event: int) -> int | None:
    """Returns which call of a class's program an event of its trace belongs to; None: what is there before it."""
    resident = _num_with_bytes(step.resident[step.pipeline_ranks[class_number]])
    routines = step.program.classes[class_number].calls[:, 0]
    lengths = {
        int(number): sum(
            bool(at.swing.held[tensor].bytes) for at in step.routines[number].swings for tensor, _ in at.swing.events
        )
        for number in np.unique(routines)
    }
    ends = resident + np.cumsum([lengths[number] for number in routines.tolist()])
    return None if event < resident else int(np.searchsorted(ends, event, side="right"))


def _num_with_bytes(held: Sequence[Held]) -> int:
    return sum(bool(each.bytes) for each in held if each.category not in OUTSIDE_ALLOCATOR)


def _groups(trace: AllocationTrace, event: int) -> defaultdict[tuple[str, str], list[int]]:
    """Returns the sizes of the tensors that live after an event, by name and category."""
    balance = np.zeros(trace.num_tensors, dtype=np.int64)
    np.add.at(balance, trace.tensors[: event + 1], np.where(trace.allocates[: event + 1], 1, -1))
    groups: defaultdict[tuple[str, str], list[int]] = defaultdict(list)
    for tensor in np.flatnonzero(balance).tolist():
        label = trace.labels[trace.tensor_labels[tensor]]
        groups[label.name.partition(OF_STAGE)[0], str(label.category)].append(int(trace.tensor_bytes[tensor]))
    return groups
