"""Measures the compiled engine on a pipeline step: tasks a second, with and without contention for the network card.

Run `python benchmarks/engine_throughput.py [stages] [microbatches]`; the default is 64 stages and 1,024 microbatches.
"""

from __future__ import annotations

import resource
import sys
import time

import numpy as np

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
    run,
)

LAYERS_PER_STAGE = 8
COMPUTE, TENSOR, SEND, RECEIVE = range(4)
FORWARD_PS, BACKWARD_PS, LATENCY_PS = 2_000_000_000, 4_000_000_000, 10_000_000
TENSOR_BYTES, ACTIVATION_BYTES, SAVED_BYTES = 64_000_000, 128_000_000, 500_000_000
SCALE_UP_BYTES_PER_S, NETWORK_BYTES_PER_S = 450e9, 50e9
SCALE_UP, NETWORK_OUT, NETWORK_IN = range(3)
FROM_BEFORE, TO_BEFORE, FROM_AFTER, TO_AFTER = range(4)
ARRIVED, GRADIENT_ARRIVED, READY, GRADIENT_READY, FIRST_LAYER_EVENT = range(5)


def layers(name: str, duration_ps: int, *, waits: int | None, records: int | None, contended: bool) -> list[Task]:
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
        last = layer == LAYERS_PER_STAGE - 1
        tasks.append(
            Task(
                name=f"layer {layer} all-reduce",
                stream=COMPUTE if contended else TENSOR,
                category=2,
                duration_ps=LATENCY_PS,
                demands=(Demand(resource=NETWORK_OUT if contended else SCALE_UP, bytes=TENSOR_BYTES),),
                waits=(computed,),
                records=records if last and records is not None else reduced,
            )
        )
    return tasks


def pipeline_step(stages: int, microbatches: int, *, contended: bool) -> Program:
    """Return the program of a one-forward-one-backward step.

    Args:
        stages: Number of pipeline stages, one class each.
        microbatches: Number of microbatches.
        contended: Whether the tensor-parallel traffic uses the network card that the sends use, too.

    Returns:
        The program.
    """

    def meet(name: str, stream: int, slot: int, *, waits: tuple[int, ...] = (), records: int | None = None) -> Task:
        demands = (Demand(resource=NETWORK_OUT if stream == SEND else NETWORK_IN, bytes=ACTIVATION_BYTES),)
        return Task(
            name=name,
            stream=stream,
            category=3,
            duration_ps=LATENCY_PS,
            demands=demands,
            communicator=slot,
            waits=waits,
            records=records,
        )

    routines = []
    for first, last in ((True, False), (False, False), (False, True)):
        forward: list[Task] = []
        if not first:
            forward.append(meet("receive activation", RECEIVE, FROM_BEFORE, records=ARRIVED))
        forward += layers("forward", FORWARD_PS, waits=None if first else ARRIVED, records=READY, contended=contended)
        if not last:
            forward.append(meet("send activation", SEND, TO_AFTER, waits=(READY,)))
        backward: list[Task] = []
        if not last:
            backward.append(meet("receive gradient", RECEIVE, FROM_AFTER, records=GRADIENT_ARRIVED))
        awaited = READY if last else GRADIENT_ARRIVED
        backward += layers("backward", BACKWARD_PS, waits=awaited, records=GRADIENT_READY, contended=contended)
        if not first:
            backward.append(meet("send gradient", SEND, TO_BEFORE, waits=(GRADIENT_READY,)))
        routines += [Routine(name="forward", tasks=tuple(forward)), Routine(name="backward", tasks=tuple(backward))]

    classes = []
    for stage in range(stages):
        warm_up = min(stages - stage - 1, microbatches)
        kind = 0 if stage == 0 else 2 if stage == stages - 1 else 1
        order = [(0, index) for index in range(warm_up)]
        for index in range(microbatches - warm_up):
            order += [(0, warm_up + index), (1, index)]
        order += [(1, index) for index in range(microbatches - warm_up, microbatches)]
        calls = np.array(order, dtype=np.int32) + np.array([2 * kind, 0], dtype=np.int32)
        classes.append(
            RankClass(
                name=f"pipeline rank {stage}",
                count=64,
                calls=calls,
                resources=(3 * stage, 3 * stage + 1, 3 * stage + 2),
                # Boundary b, before stage b, has activations (2b) and gradients (2b + 1); the outermost are unused.
                communicators=(2 * stage, 2 * stage + 1, 2 * stage + 3, 2 * stage + 2),
                initial=(0,),
            )
        )
    return Program(
        streams=("compute", "tensor", "send", "receive"),
        categories=("bubble", "compute", "tensor", "pipeline"),
        counters=("activations",),
        events=tuple(EventSlot(name=f"event {slot}") for slot in range(FIRST_LAYER_EVENT + 4 * LAYERS_PER_STAGE)),
        num_indices=microbatches,
        routines=tuple(routines),
        classes=tuple(classes),
        resources=tuple(
            Resource(
                name=f"{name} {stage}", bytes_per_s=SCALE_UP_BYTES_PER_S if name == "scale-up" else NETWORK_BYTES_PER_S
            )
            for stage in range(stages)
            for name in ("scale-up", "network out", "network in")
        ),
        communicators=tuple(
            Communicator(name=f"{what} {boundary}", participants=2)
            for boundary in range(stages + 1)
            for what in ("activations", "gradients")
        ),
    )


def measure(name: str, program: Program) -> None:
    """Print what one run of a program takes."""
    begin_s = time.perf_counter()
    timeline = run(program)
    wall_s = time.perf_counter() - begin_s
    peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(
        f"{name}: {timeline.events:,} tasks in {wall_s:.3f} s, {timeline.events / wall_s / 1e6:.1f} million tasks/s, "
        f"process peak {peak_mib:.0f} MiB, step {timeline.makespan_ps / 1e12:.6f} s"
    )


def main() -> None:
    """Measure a cold call, then the two variants."""
    stages = int(sys.argv[1]) if len(sys.argv) > 1 else 64
    microbatches = int(sys.argv[2]) if len(sys.argv) > 2 else 1024
    measure("first call (imports numba, loads or fills its cache)", pipeline_step(2, 2, contended=True))
    measure("uncontended", pipeline_step(stages, microbatches, contended=False))
    measure("contended", pipeline_step(stages, microbatches, contended=True))


if __name__ == "__main__":
    main()
