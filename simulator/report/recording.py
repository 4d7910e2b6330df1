"""The allocations of one rank class of a simulation, for PyTorch's memory viewer."""

from __future__ import annotations

from simulator.cost.allocator import run_allocator
from simulator.cost.allocator_settings import AllocatorSettings
from simulator.report.reserved import play
from simulator.report.simulated import Simulated, class_number
from simulator.report.snapshot import DEFAULT_MAX_ENTRIES, Recording, memory_snapshot_bytes

ENTRIES_PER_EVENT = 2
"""A block is freed in two entries."""


def record_class(simulated: Simulated, wanted: str | None = None) -> Recording:
    """Returns the allocations of a rank class over the step, and where they land.

    They land where the caching allocator puts them, without a limit if the class does not fit, so that the whole step
    is there to see. A device whose memory is planned ahead has other addresses, but the same tensors.

    Args:
        simulated: the simulation.
        wanted: name or number of the class; None: the one with the highest peak.

    Raises:
        ScenarioError: there is no such class.
    """
    trace, reservation = play(simulated, _class_number(simulated, wanted))
    settings = reservation.settings or AllocatorSettings()
    return Recording(trace=trace, run=reservation.run or run_allocator(trace, settings), settings=settings)


def snapshot_with_peak(recording: Recording, *, max_entries: int = DEFAULT_MAX_ENTRIES) -> bytes:
    """Returns the snapshot as a file's content: at the end of the step, or sooner if the history were without the peak.

    A viewer can draw only so many entries; of a longer history it is the last ones that a snapshot keeps.
    """
    last = recording.trace.num_events - 1
    after_peak = recording.run.allocated_peak_event + max_entries // (2 * ENTRIES_PER_EVENT)
    until = min(last, after_peak) if recording.trace.num_events * ENTRIES_PER_EVENT > max_entries else last
    return memory_snapshot_bytes(recording, until_event=until, max_entries=max_entries)


def _class_number(simulated: Simulated, wanted: str | None) -> int:
    if wanted is None:
        return simulated.fullest_class
    names = [rank_class.name for rank_class in simulated.step.program.classes]
    for known in (names, [f"pipeline rank {rank}" for rank in simulated.step.pipeline_ranks]):
        if wanted in known:
            return known.index(wanted)
    return class_number(names, wanted, option="--memory-class")
