"""Measures the compiled engine, which runs on one core, on steps of a pipeline.

Times are those that the process had a core; of the steps of 65,536 classes that on the wall is printed, too.

Run `python benchmarks/engine_throughput.py [part ...]`; without a part all run, each in a process of its own so that
the peak of memory is its own:

* `speed`: tasks a second on one core, 64 stages x 1,024 microbatches, layer-level tasks and communication streams.
* `others`: the same graph, smaller, in SimPy and on a plain-Python heap.
* `sends`, `meetings`: 65,536 rank classes, each call of each class with a pace of its own.
* `steady`: 10,000 microbatches, when they begin to repeat themselves, and what skipping them would save.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import time
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from pipeline_program import pipeline_step, uneven

from simulator.engine import Program, Timeline, run

STAGES = 64
MICROBATCHES = 1024
MICROBATCHES_OF_OTHERS = 256
MANY_RANKS, MICROBATCHES_OF_MANY = 1024, 128
LONG_STEP, STUDIED_STEP, LONGEST_PERIOD = 10_000, 1_500, 400
REPEATS = 3
"""Of which the fastest counts: other processes only ever slow one down."""


def main() -> None:
    """Run the parts that are named, or all of them in processes of their own."""
    wanted = sys.argv[1:]
    if len(wanted) == 1:
        PARTS[wanted[0]]()
        return
    for name in wanted or PARTS:
        print(f"== {name}", flush=True)
        subprocess.run([sys.executable, __file__, name], check=True)


def speed() -> None:
    """Tasks a second."""
    _timed("first call (imports numba, loads or fills its cache)", pipeline_step(2, 2, contended=True), repeats=1)
    _timed("uncontended", pipeline_step(STAGES, MICROBATCHES))
    _timed("uncontended, without counters", pipeline_step(STAGES, MICROBATCHES), record_counters=False)
    _timed("uncontended, each call with a pace of its own", pipeline_step(STAGES, MICROBATCHES, jitter=True))
    _timed("contended", pipeline_step(STAGES, MICROBATCHES, contended=True))
    _print_peak()


def others() -> None:
    """The same graph in other engines."""
    from plain_engines import heap_makespan_ps, simpy_makespan_ps, unfold

    run(pipeline_step(2, 2))
    program = pipeline_step(STAGES, MICROBATCHES_OF_OTHERS)
    timeline, own_s = _timed(f"this engine, {STAGES} stages x {MICROBATCHES_OF_OTHERS} microbatches", program)
    queues = unfold(program)
    participants = [each.participants for each in program.communicators]
    for name, makespan_ps in (("SimPy", simpy_makespan_ps), ("plain-Python heap", heap_makespan_ps)):
        begin_s = time.process_time()
        if makespan_ps(queues, participants) != timeline.makespan_ps:
            raise SystemExit(f"{name} found another makespan")
        other_s = time.process_time() - begin_s
        rate = timeline.events / other_s / 1e6
        print(f"{name}: {other_s:.2f} s, {rate:.2f} million tasks/s; this engine is {other_s / own_s:.0f} times faster")


def many(*, meets: bool) -> None:
    """A step of 65,536 classes, all of the process counted."""
    begin_s = time.perf_counter()
    program = pipeline_step(STAGES, MICROBATCHES_OF_MANY, ranks=MANY_RANKS, meets=meets, jitter=True)
    built_s = time.process_time()
    timeline = run(program, record_counters=False)
    end_s = time.perf_counter()
    print(
        f"{len(program.classes):,} classes x {MICROBATCHES_OF_MANY} microbatches, {timeline.events:,} tasks: "
        f"{end_s - begin_s:.1f} s on the wall, {time.process_time():.1f} s on the core, "
        f"of which {built_s:.1f} s until the program was built"
    )
    _print_peak()


def steady() -> None:
    """What a step of 10,000 microbatches takes, and how much of it is repetition."""
    run(pipeline_step(2, 2))
    for contended in (False, True):
        for name, change in (("equal stages", _unchanged), ("stages 1 % apart", _a_bit), ("stages 5 % apart", _more)):
            kind = f"{name}, {'contended' if contended else 'uncontended'}"
            repetition = _repetition(change(pipeline_step(STAGES, STUDIED_STEP, contended=contended)), STUDIED_STEP)
            begin_s = time.process_time()
            program = change(pipeline_step(STAGES, LONG_STEP, contended=contended))
            built_s = time.process_time() - begin_s
            _, run_s = _timed(f"{kind}, {LONG_STEP:,} microbatches", program, repeats=2)
            if repetition is None:
                print(f"  does not repeat itself within {STUDIED_STEP:,} microbatches")
                continue
            begin, period = repetition
            rest = (begin + 2 * period + 2 * STAGES) / LONG_STEP
            print(
                f"  repeats itself every {period} microbatches from number {begin} on: to skip that would save at most "
                f"{(1 - rest) * run_s:.2f} s of {built_s + run_s:.2f} s (building the program takes {built_s:.2f} s)"
            )
    _print_peak()


def _unchanged(program: Program) -> Program:
    return program


def _a_bit(program: Program) -> Program:
    return uneven(program, spread=10)


def _more(program: Program) -> Program:
    return uneven(program, spread=50)


def _repetition(program: Program, microbatches: int) -> tuple[int, int] | None:
    """Return from which microbatch on, and with which period, all tasks of all classes begin one constant later.

    Of all periods the one with which most could be skipped; None if there is none. The last microbatches, in which the
    pipeline runs empty, are left out.
    """
    spans = run(program, record_spans=True, record_counters=False).spans
    if spans is None:
        return None
    once = [number for number, routine in enumerate(program.routines) if routine.name == "end"]
    spans = spans[~np.isin(spans["routine"], once)]
    order = np.lexsort((spans["index"], spans["task"], spans["routine"], spans["class"]))
    begins: npt.NDArray[np.int64] = spans["begin_ps"][order].reshape(-1, microbatches)[:, : microbatches - 2 * STAGES]
    best: tuple[int, int] | None = None
    for period in range(1, LONGEST_PERIOD):
        later = begins[:, period:] - begins[:, :-period]
        if (later[:, -1] != later[0, -1]).any():
            continue
        begin = int(np.flatnonzero((later != later[0, -1]).any(axis=0)).max(initial=-1)) + 1
        if begin + period < later.shape[1] and (best is None or begin + period < sum(best)):
            best = begin, period
    return best


def _timed(
    name: str, program: Program, *, repeats: int = REPEATS, record_counters: bool = True
) -> tuple[Timeline, float]:
    """Print what a run of a program takes; return its timeline and the time on its core of the fastest of some runs."""
    times_s = []
    for _ in range(repeats):
        begin_s = time.process_time()
        timeline = run(program, record_counters=record_counters)
        times_s.append(time.process_time() - begin_s)
    time_s = min(times_s)
    rate = timeline.events / time_s / 1e6
    print(f"{name}: {timeline.events:,} tasks in {time_s:.3f} s, {rate:.1f} million tasks/s", flush=True)
    return timeline, time_s


def _print_peak() -> None:
    print(f"peak of the process: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB", flush=True)


PARTS: dict[str, Callable[[], None]] = {
    "speed": speed,
    "others": others,
    "sends": lambda: many(meets=False),
    "meetings": lambda: many(meets=True),
    "steady": steady,
}

if __name__ == "__main__":
    main()
