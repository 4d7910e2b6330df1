"""How full the links are over the step, slice by slice.

The timeline knows when a transfer begins and ends, and its latency. Between them its bytes are taken to move at one
rate; where transfers share a link that is their mean rate, so the sum over a transfer is exact.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from simulator.engine.program import PICOSECONDS_PER_SECOND
from simulator.errors import SimulatorFault
from simulator.report.links import links_of
from simulator.report.simulated import Simulated

if TYPE_CHECKING:
    import polars as pl

SLICES = 100
"""Slices of a step, unless said."""
MAX_USE_SPANS = 20_000_000
"""Task executions that a table may need, 0.7 GB; of larger steps only some classes are recorded."""
Numbers = npt.NDArray[np.float64]


def tier_use_table(simulated: Simulated, slices: int = SLICES) -> pl.DataFrame:
    """Returns the share of the capacity of each kind of link that is in use, in equal slices of the step.

    Columns: `tier`, `link`, `direction`, `begin_s`, `end_s`, `use_fraction` (mean over the links of the classes that
    were recorded), `highest_use_fraction` (of the fullest link then), `class` (whose it is).

    Args:
        simulated: a simulated step, with spans.
        slices: how many.

    Raises:
        SimulatorFault: no spans were recorded.
    """
    import polars as pl

    if simulated.timeline.spans is None:
        raise SimulatorFault("a table of the tiers' use needs a timeline with spans; run the engine with record_spans")
    program = simulated.step.program
    moved = _moved_bytes(simulated, slices)
    width_s = simulated.timeline.makespan_ps / PICOSECONDS_PER_SECOND / slices
    recorded = set(np.unique(simulated.timeline.spans["class"]).tolist())
    frames = []
    for link in links_of(program, simulated.mesh, simulated.costs):
        known = [place for place, number in enumerate(link.classes) if number in recorded]
        resources = link.resources[known]
        capacity = np.array([program.resources[resource].bytes_per_s for resource in resources.tolist()])
        use = moved[resources] / (capacity[:, np.newaxis] * width_s)
        if use.any():
            names = [program.classes[link.classes[place]].name for place in known]
            frames.append(
                {
                    "tier": [link.tier] * slices,
                    "link": [link.link] * slices,
                    "direction": [link.direction] * slices,
                    "begin_s": (np.arange(slices) * width_s).tolist(),
                    "end_s": (np.arange(1, slices + 1) * width_s).tolist(),
                    "use_fraction": np.average(use, axis=0, weights=link.weights[known]).tolist(),
                    "highest_use_fraction": use.max(axis=0).tolist(),
                    "class": [names[place] for place in use.argmax(axis=0).tolist()],
                }
            )
    texts, numbers = ("tier", "link", "direction"), ("begin_s", "end_s", "use_fraction", "highest_use_fraction")
    schema = dict.fromkeys(texts, pl.String) | dict.fromkeys(numbers, pl.Float64) | {"class": pl.String}
    return pl.concat([pl.DataFrame(schema=schema), *(pl.DataFrame(frame, schema=schema) for frame in frames)])


def _moved_bytes(simulated: Simulated, slices: int) -> Numbers:
    """Returns the bytes that each resource moves in each slice, `[resource, slice]`, for the classes recorded."""
    program, spans = simulated.step.program, simulated.timeline.spans
    moved = np.zeros((len(program.resources), slices))
    if spans is None or not len(spans):
        return moved
    first = np.cumsum([0, *(len(routine.tasks) for routine in program.routines)])
    tasks = [task for routine in program.routines for task in routine.tasks]
    key = (first[spans["routine"]] + spans["task"]) * len(program.classes) + spans["class"]
    order = np.argsort(key, kind="stable")
    starts = np.flatnonzero(np.diff(key[order], prepend=-1))
    for rows in np.split(order, starts[1:]):
        number, own = divmod(int(key[rows[0]]), len(program.classes))
        task, rank_class = tasks[number], program.classes[own]
        if task.demands:
            end_ps = spans["end_ps"][rows].astype(np.float64)
            begin_ps = np.minimum(spans["begin_ps"][rows] + task.duration_ps, end_ps - 1)
            shares = _in_slices(begin_ps, end_ps, simulated.timeline.makespan_ps, slices)
            for demand in task.demands:
                sharers = rank_class.sharers[demand.resource] if rank_class.sharers else 1
                moved[rank_class.resources[demand.resource]] += sharers * demand.bytes * shares
    return moved


def _in_slices(begin_ps: Numbers, end_ps: Numbers, makespan_ps: int, slices: int) -> Numbers:
    """Returns how many of the transfers ran in each slice, each counted by the share of its time that lies there.

    What a transfer has done by a time t rises evenly from 0 at its begin to 1 at its end: the sums of all rise at the
    begins by 1/(end - begin) and stop to at the ends.
    """
    edges = np.linspace(0.0, float(makespan_ps), slices + 1)
    rate = 1.0 / (end_ps - begin_ps)
    done = np.zeros(slices + 1)
    for times, sign in ((begin_ps, 1.0), (end_ps, -1.0)):
        order = np.argsort(times, kind="stable")
        sorted_ps = times[order]
        rates = np.concatenate([[0.0], np.cumsum(rate[order])])
        moments = np.concatenate([[0.0], np.cumsum((rate * times)[order])])
        before = np.searchsorted(sorted_ps, edges, side="right")
        done += sign * (rates[before] * edges - moments[before])
    return np.maximum(np.diff(done), 0.0)  # rounded differences of nothing may lie below it
