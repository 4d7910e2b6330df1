"""The engine: rank classes that run programs of tasks on in-order streams and share resources.

It knows no word of transformers. `program` is its language, `timeline` its answer, `run` the way from one to the
other. `reference` says in plain Python what a program means.
"""

from simulator.engine.check import ProgramError
from simulator.engine.compiled import run_compiled
from simulator.engine.deadlock import DeadlockError
from simulator.engine.program import (
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
from simulator.engine.timeline import CounterPeak, Timeline, counter_track

run = run_compiled

__all__ = [
    "Communicator",
    "CounterChange",
    "CounterPeak",
    "DeadlockError",
    "Demand",
    "EventSlot",
    "Program",
    "ProgramError",
    "RankClass",
    "Resource",
    "Routine",
    "Task",
    "Timeline",
    "counter_track",
    "run",
]
