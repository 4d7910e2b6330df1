"""What communication of sharded parameters hides under compute, event by event (E4.16)."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np

from simulator.cost.collectives import Collective
from simulator.engine import Program, Task, run
from simulator.engine.program import PICOSECONDS_PER_SECOND
from simulator.lowering.builder import COMPUTE_STREAM
from simulator.lowering.data import DATA_STREAM
from simulator.simulate import run_steps
from tests.oracles import Record, each
from tests.system.jobs import tiny, tiny_model


@each("overlap", "overlap.fsdp_forward.")
def test_gathers_of_a_forward_pass_hide_under_the_layer_before(record: Record) -> None:
    assert record.agrees_with(_pass_s("forward", **record.inputs))


@each("overlap", "overlap.fsdp_backward.")
def test_gathers_and_reductions_of_a_backward_pass_take_turns_on_one_stream(record: Record) -> None:
    assert record.agrees_with(_pass_s("backward", **record.inputs))


def _pass_s(name: str, *, layers: int, gather_s: int, compute_s: int, reduce_s: int = 0) -> float:
    """Returns the seconds of one pass of a stage of equal layers in the middle of a pipeline, as it is lowered."""
    step = run_steps(tiny(model=tiny_model(layers=3 * layers), pp=3, dp=2, zero=3)).step.program
    called = dict.fromkeys(step.classes[1].calls[:, 0].tolist())
    routine = next(step.routines[number] for number in called if step.routines[number].name == name)
    seconds = {COMPUTE_STREAM: compute_s, Collective.ALL_GATHER: gather_s, Collective.REDUCE_SCATTER: reduce_s}
    kept: list[Task] = []
    counted: Counter[str] = Counter()
    recorded = {task.records for task in routine.tasks if step.streams[task.stream] in (COMPUTE_STREAM, DATA_STREAM)}
    for task in routine.tasks:
        stream = step.streams[task.stream]
        if stream not in (COMPUTE_STREAM, DATA_STREAM):
            continue  # messages to and from other stages
        kind = stream if stream == COMPUTE_STREAM else task.name.split()[0]
        works = kind != COMPUTE_STREAM or task.duration_ps > 0
        counted[kind] += works
        waits = tuple(event for event in task.waits if event in recorded)
        changes: dict[str, Any] = {"demands": (), "communicator": None, "waits": waits, "at_start": (), "at_end": ()}
        kept.append(replace(task, duration_ps=works * seconds[kind] * PICOSECONDS_PER_SECOND, **changes))
    assert set(counted.values()) == {layers}
    alone = replace(
        step.classes[1], calls=np.array([[0, 0]], dtype=np.int32), resources=(), communicators=(), initial=()
    )
    program = Program(
        streams=step.streams,
        categories=step.categories,
        counters=(),
        events=step.events,
        num_indices=1,
        routines=(replace(routine, tasks=tuple(kept)),),
        classes=(alone,),
    )
    return run(program).makespan_ps / PICOSECONDS_PER_SECOND
