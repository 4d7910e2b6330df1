"""The memory of the rank classes: those of a pipeline rank that hold the same are listed once."""

from __future__ import annotations

from collections import Counter, defaultdict

from simulator.cost.memory import MEMORY
from simulator.engine.program import PICOSECONDS_PER_SECOND
from simulator.report.reserved import Reservation
from simulator.report.result import ClassMemory
from simulator.report.simulated import Simulated


def memory_by_class(simulated: Simulated, reservation: Reservation, fullest: int) -> tuple[list[ClassMemory], int]:
    """Returns the memory of all classes, and which entry is that of the fullest.

    Ranks that differ in pace hold the same bytes, only at other times: the time of the peak is the earliest of them.

    Args:
        simulated: the simulation.
        reservation: what the allocator makes of the fullest class.
        fullest: number of that class.
    """
    classes, peaks = simulated.step.program.classes, simulated.timeline.counter_peaks
    alike: defaultdict[tuple[object, ...], list[int]] = defaultdict(list)
    for number, rank_class in enumerate(classes):
        key = (simulated.step.pipeline_ranks[number], peaks[number].at_peak, rank_class.initial)
        alike[key].append(number)
    kinds = Counter(simulated.step.pipeline_ranks[numbers[0]] for numbers in alike.values())
    found = []
    for numbers in alike.values():
        first, peak = classes[numbers[0]], peaks[numbers[0]]
        rank = simulated.step.pipeline_ranks[numbers[0]]
        found.append(
            ClassMemory(
                class_=f"pipeline rank {rank}" if kinds[rank] == 1 else first.name,
                pipeline_rank=rank,
                count=sum(classes[number].count for number in numbers),
                peak_bytes=peak.total,
                reserved_peak_bytes=reservation.total_bytes
                if fullest in numbers
                else reservation.reserved_of(peak.total),
                peak_time_s=min(peaks[number].time_ps for number in numbers) / PICOSECONDS_PER_SECOND,
                at_peak={str(name): level for name, level in zip(MEMORY, peak.at_peak, strict=True)},
                steady={str(name): level for name, level in zip(MEMORY, first.initial, strict=True)},
            )
        )
    return found, next(at for at, numbers in enumerate(alike.values()) if fullest in numbers)
