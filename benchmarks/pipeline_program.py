"""A pipeline step as a program for the engine, with layer-level tasks and communication streams, for the benchmarks."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from simulator.engine import (
    Communicator,
    CounterChange,
    Demand,
    EventSlot,
    Program,
    RankClass,
    Resource,
    Routine,
    Task,
)

LAYERS_PER_STAGE = 8
TENSOR_GROUP = 8
"""Ranks of a stage that meet in every layer."""
COMPUTE, TENSOR, SEND, RECEIVE = range(4)
FORWARD_PS, BACKWARD_PS, LATENCY_PS = 2_000_000_000, 4_000_000_000, 10_000_000
TENSOR_BYTES, ACTIVATION_BYTES, SAVED_BYTES, GRADIENT_BYTES = 64_000_000, 128_000_000, 500_000_000, 4_000_000_000
SCALE_UP_BYTES_PER_S, NETWORK_BYTES_PER_S = 450e9, 50e9
SCALE_UP, NETWORK_OUT, NETWORK_IN = range(3)
NUM_RESOURCES = 3
FROM_BEFORE, TO_BEFORE, FROM_AFTER, TO_AFTER, TENSOR_RANKS, STAGE_RANKS = range(6)
ARRIVED, GRADIENT_ARRIVED, READY, GRADIENT_READY, FIRST_LAYER_EVENT = range(5)
FORWARD, BACKWARD, END = range(3)
"""Routines of the first, the middle and the last stages: three of each."""
OWN_PACE, SPREAD_OF_PACE = 1024, 30


def pipeline_step(
    stages: int,
    microbatches: int,
    *,
    contended: bool = False,
    ranks: int = 1,
    meets: bool = False,
    jitter: bool = False,
) -> Program:
    """Return the program of a one-forward-one-backward step.

    Args:
        stages: Number of pipeline stages.
        microbatches: Number of microbatches.
        contended: Whether the tensor-parallel traffic uses the network card that the sends use, too, and its tasks
            stand on the compute stream; else the tensor stream has them.
        ranks: Rank classes of each stage.
        meets: Whether the ranks of a stage meet, in groups of eight in every layer and all together at the end; else
            tensor-parallel traffic is a task of each class alone.
        jitter: Whether each call of each class has a pace of its own.

    Returns:
        The program.
    """
    routines = [routine for place in range(3) for routine in _routines(place, contended=contended, meets=meets)]
    dice = np.random.default_rng(0)
    classes = []
    groups = -(-ranks // TENSOR_GROUP)
    boundaries = 2 * (stages + 1) * ranks
    for stage in range(stages):
        calls = _calls(stage, stages, microbatches)
        for rank in range(ranks):
            number = stage * ranks + rank
            # Boundary b, before stage b, has activations (2b) and gradients (2b + 1); the outermost are unused.
            before, after = 2 * (stage * ranks + rank), 2 * ((stage + 1) * ranks + rank)
            met = (boundaries + stage * groups + rank // TENSOR_GROUP, boundaries + stages * groups + stage)
            pace = OWN_PACE + SPREAD_OF_PACE * dice.standard_normal(len(calls), dtype=np.float32)
            classes.append(
                RankClass(
                    name=f"pipeline rank {stage}" if ranks == 1 else f"rank {number}",
                    count=64 if ranks == 1 else 1,
                    calls=calls,
                    resources=tuple(range(NUM_RESOURCES * number, NUM_RESOURCES * (number + 1))),
                    communicators=(before, before + 1, after + 1, after, *(met if meets else ())),
                    initial=(0,),
                    pace=np.maximum(pace, 1).astype(np.int32) if jitter else None,
                )
            )
    resources = (("scale-up", SCALE_UP_BYTES_PER_S), ("out", NETWORK_BYTES_PER_S), ("in", NETWORK_BYTES_PER_S))
    communicators = [Communicator(name=f"boundary {number}", participants=2) for number in range(boundaries)]
    if meets:
        sizes = [min(TENSOR_GROUP, ranks - first) for first in range(0, ranks, TENSOR_GROUP)] * stages
        communicators += [Communicator(name=f"tensor {n}", participants=size) for n, size in enumerate(sizes)]
        communicators += [Communicator(name=f"stage {stage}", participants=ranks) for stage in range(stages)]
    return Program(
        streams=("compute", "tensor", "send", "receive"),
        categories=("bubble", "compute", "tensor", "pipeline"),
        counters=("activations",),
        events=tuple(EventSlot(name=f"event {slot}") for slot in range(FIRST_LAYER_EVENT + 4 * LAYERS_PER_STAGE)),
        num_indices=microbatches,
        routines=tuple(routines),
        classes=tuple(classes),
        resources=tuple(
            Resource(name=f"{name} {number}", bytes_per_s=speed)
            for number in range(len(classes))
            for name, speed in resources
        ),
        communicators=tuple(communicators),
    )


def _calls(stage: int, stages: int, microbatches: int) -> npt.NDArray[np.int32]:
    """Return the order of a stage: forwards until the pipeline is full, then one backward after each forward."""
    warm_up = min(stages - stage - 1, microbatches)
    order = [(FORWARD, index) for index in range(warm_up)]
    for index in range(microbatches - warm_up):
        order += [(FORWARD, warm_up + index), (BACKWARD, index)]
    order += [(BACKWARD, index) for index in range(microbatches - warm_up, microbatches)]
    order.append((END, 0))
    place = 0 if stage == 0 else 2 if stage == stages - 1 else 1
    return np.array(order, dtype=np.int32) + np.array([3 * place, 0], dtype=np.int32)


def _routines(place: int, *, contended: bool, meets: bool) -> list[Routine]:
    """Return forward, backward and end of the first (0), a middle (1) or the last (2) stage."""
    first, last = place == 0, place == 2
    forward: list[Task] = []
    if not first:
        forward.append(_meet("receive activation", RECEIVE, FROM_BEFORE, records=ARRIVED))
    waits = None if first else ARRIVED
    forward += _layers("forward", FORWARD_PS, waits=waits, records=READY, contended=contended, meets=meets)
    if not last:
        forward.append(_meet("send activation", SEND, TO_AFTER, waits=(READY,)))
    backward: list[Task] = []
    if not last:
        backward.append(_meet("receive gradient", RECEIVE, FROM_AFTER, records=GRADIENT_ARRIVED))
    waits = READY if last else GRADIENT_ARRIVED
    backward += _layers("backward", BACKWARD_PS, waits=waits, records=GRADIENT_READY, contended=contended, meets=meets)
    if not first:
        backward.append(_meet("send gradient", SEND, TO_BEFORE, waits=(GRADIENT_READY,)))
    end = [Task(name="optimizer", stream=COMPUTE, category=1, duration_ps=FORWARD_PS)]
    if meets:
        end.insert(0, _collective("gradients", COMPUTE, NETWORK_OUT, GRADIENT_BYTES, communicator=STAGE_RANKS))
    return [
        Routine(name="forward", tasks=tuple(forward)),
        Routine(name="backward", tasks=tuple(backward)),
        Routine(name="end", tasks=tuple(end)),
    ]


def _layers(
    name: str, duration_ps: int, *, waits: int | None, records: int, contended: bool, meets: bool
) -> list[Task]:
    """Return compute and tensor-parallel communication of the layers of a stage, each waiting for the other."""
    tasks = []
    for layer in range(LAYERS_PER_STAGE):
        computed, reduced = FIRST_LAYER_EVENT + 2 * layer, FIRST_LAYER_EVENT + 2 * layer + 1
        if name == "backward":
            computed, reduced = computed + 2 * LAYERS_PER_STAGE, reduced + 2 * LAYERS_PER_STAGE
        before = waits if layer == 0 else reduced - 2
        saved = SAVED_BYTES // LAYERS_PER_STAGE
        tasks.append(
            Task(
                name=f"layer {layer} {name}",
                stream=COMPUTE,
                category=1,
                duration_ps=duration_ps // LAYERS_PER_STAGE,
                waits=() if before is None else (before,),
                records=computed,
                at_start=(CounterChange(counter=0, delta=saved),) if name == "forward" else (),
                at_end=() if name == "forward" else (CounterChange(counter=0, delta=-saved),),
            )
        )
        tasks.append(
            _collective(
                f"layer {layer} all-reduce",
                COMPUTE if contended else TENSOR,
                NETWORK_OUT if contended else SCALE_UP,
                TENSOR_BYTES,
                communicator=TENSOR_RANKS if meets else None,
                waits=(computed,),
                records=records if layer == LAYERS_PER_STAGE - 1 else reduced,
            )
        )
    return tasks


def _meet(name: str, stream: int, slot: int, *, waits: tuple[int, ...] = (), records: int | None = None) -> Task:
    """Return a send or a receive, which meets the other stage's."""
    return Task(
        name=name,
        stream=stream,
        category=3,
        duration_ps=LATENCY_PS,
        demands=(Demand(resource=NETWORK_OUT if stream == SEND else NETWORK_IN, bytes=ACTIVATION_BYTES),),
        communicator=slot,
        waits=waits,
        records=records,
    )


def _collective(
    name: str,
    stream: int,
    resource: int,
    size: int,
    *,
    communicator: int | None,
    waits: tuple[int, ...] = (),
    records: int | None = None,
) -> Task:
    return Task(
        name=name,
        stream=stream,
        category=2,
        duration_ps=LATENCY_PS,
        demands=(Demand(resource=resource, bytes=size),),
        communicator=communicator,
        waits=waits,
        records=records,
    )


def uneven(program: Program, *, spread: float) -> Program:
    """Return a program whose classes have a pace of their own, the same for all calls.

    Args:
        program: Any program.
        spread: Standard deviation of the pace.
    """
    dice = np.random.default_rng(1)
    paces = np.maximum(dice.normal(OWN_PACE, spread, len(program.classes)), 1).astype(np.int32)
    classes = [
        replace(each, pace=np.full(len(each.calls), pace, dtype=np.int32))
        for each, pace in zip(program.classes, paces, strict=True)
    ]
    return replace(program, classes=tuple(classes))
