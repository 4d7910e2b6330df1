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
from simulator.lowering.resources import NUM_DIRECTIONS
from simulator.lowering.uplinks import shared_uplinks
from simulator.report.links import link_name
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

    Of the uplinks of an oversubscribed tier it is the share of what falls to each rank when all send; one that sends
    while others do not may use more.

    Columns: `tier`, `link`, `direction`, `begin_s`, `end_s`, `use_fraction` (mean over the ranks of the classes that
    were recorded), `highest_use_fraction` (of the class that uses its link most), `class` (which that is).

    Args:
        simulated: a simulated step, with spans.
        slices: how many.

    Raises:
        SimulatorFault: no spans were recorded.
    """
    import polars as pl

    if simulated.timeline.spans is None:
        raise SimulatorFault("a table of the tiers' use needs a timeline with spans; run the engine with record_spans")
    classes, counts, use = _use(simulated, slices)
    names = [rank_class.name for rank_class in simulated.step.program.classes]
    width_s = simulated.timeline.makespan_ps / PICOSECONDS_PER_SECOND / slices
    cluster, ports = simulated.mesh.cluster, simulated.costs.ports
    frames = []
    for number, port in enumerate(ports):
        for direction, way in enumerate(("out", "in")):
            here = use[:, NUM_DIRECTIONS * number + direction]
            if here.any():
                frames.append(
                    {
                        "tier": [cluster.tiers[port.tier].name] * slices,
                        "link": [link_name(cluster, port)] * slices,
                        "direction": [way] * slices,
                        "begin_s": (np.arange(slices) * width_s).tolist(),
                        "end_s": (np.arange(1, slices + 1) * width_s).tolist(),
                        "use_fraction": np.average(here, axis=0, weights=counts).tolist(),
                        "highest_use_fraction": here.max(axis=0).tolist(),
                        "class": [names[classes[place]] for place in here.argmax(axis=0).tolist()],
                    }
                )
    texts, numbers = ("tier", "link", "direction"), ("begin_s", "end_s", "use_fraction", "highest_use_fraction")
    schema = dict.fromkeys(texts, pl.String) | dict.fromkeys(numbers, pl.Float64) | {"class": pl.String}
    return pl.concat([pl.DataFrame(schema=schema), *(pl.DataFrame(frame, schema=schema) for frame in frames)])


def _use(simulated: Simulated, slices: int) -> tuple[list[int], Numbers, Numbers]:
    """Returns the recorded classes, their ranks, and `[class, slot, slice]`: share of each port's capacity in use."""
    program, timeline = simulated.step.program, simulated.timeline
    spans = timeline.spans
    if spans is None:
        raise SimulatorFault("no spans were recorded")
    num_slots = NUM_DIRECTIONS * len(simulated.costs.ports)
    classes: list[int] = np.unique(spans["class"]).tolist()
    moved = np.zeros((len(classes), num_slots, slices))
    place = np.searchsorted(classes, spans["class"])
    key = np.cumsum([0, *(len(routine.tasks) for routine in program.routines)])[spans["routine"]] + spans["task"]
    by_task = np.argsort(key, kind="stable")
    starts = np.flatnonzero(np.diff(key[by_task], prepend=-1))
    tasks = [task for routine in program.routines for task in routine.tasks]
    for rows in np.split(by_task, starts[1:]) if len(spans) else ():
        task = tasks[key[rows[0]]]
        demands = [demand for demand in task.demands if demand.resource < num_slots]
        if not demands:
            continue
        end_ps = spans["end_ps"][rows].astype(np.float64)
        begin_ps = np.minimum(spans["begin_ps"][rows] + task.duration_ps, end_ps - 1)
        for own in np.unique(place[rows]).tolist():
            mine = place[rows] == own
            shares = _in_slices(begin_ps[mine], end_ps[mine], timeline.makespan_ps, slices)
            for demand in demands:
                moved[own, demand.resource] += demand.bytes * shares
    slots = np.array([program.classes[number].resources[:num_slots] for number in classes], dtype=np.int64)
    capacity = np.array([resource.bytes_per_s for resource in program.resources])[slots.reshape(len(classes), -1)]
    for link in shared_uplinks(simulated.mesh, simulated.costs.ports):
        here = slice(NUM_DIRECTIONS * link.port, NUM_DIRECTIONS * (link.port + 1))
        capacity[:, here] *= simulated.costs.ports[link.port].bytes_per_s / link.port_bytes_per_s
    slice_s = timeline.makespan_ps / PICOSECONDS_PER_SECOND / slices
    counts = np.array([program.classes[number].count for number in classes], dtype=np.float64)
    return classes, counts, moved / (capacity[:, :, np.newaxis] * slice_s)


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
