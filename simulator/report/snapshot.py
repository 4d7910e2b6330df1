"""A memory snapshot as `torch.cuda.memory._dump_snapshot` writes it, for PyTorch's viewer (pytorch.org/memory_viz).

The frames of an entry say, from the inside out, which tensor of which operator it is, in which layer and action, and
what for: `attention.qkv:0:query`, `layer:12:forward 3`, `category:0:activations`.

Source: PyTorch 2.13, `torch/cuda/memory.py` (`_snapshot`, with its types) and `torch/cuda/_memory_viz.py`; what the
page itself needs is in `torch/utils/viz/MemoryViz.js` and noted where it matters.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from simulator.cost.allocation_trace import NO_LAYER, AllocationTrace
from simulator.cost.allocator import AllocatorRun
from simulator.cost.allocator_settings import UNLIMITED_BYTES, AllocatorSettings
from simulator.cost.segment_log import SegmentAction, present_ranges
from simulator.errors import SimulatorFault

IntArray = npt.NDArray[np.int64]
Entry = dict[str, Any]

DEFAULT_MAX_ENTRIES = 200_000
"""As many as the viewer draws in seconds."""
PICKLE_PROTOCOL = 4
"""The page reads pickles of the protocols 2 to 4."""
UNKNOWN = "unknown"
"""The page fails if entries have categories and none has this one."""
_DEFAULT_POOL = (0, 0)
_ACTION_NAMES = {
    SegmentAction.ALLOC: "segment_alloc",
    SegmentAction.FREE: "segment_free",
    SegmentAction.MAP: "segment_map",
    SegmentAction.UNMAP: "segment_unmap",
}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Recording:
    """What a snapshot is made of."""

    trace: AllocationTrace
    """What the rank allocates and frees."""
    run: AllocatorRun
    """Where it lands."""
    settings: AllocatorSettings
    """The settings of that run."""
    times_us: IntArray | None = None
    """Time of each event in microseconds, shape [events]; None: the events' numbers."""


def memory_snapshot_bytes(
    recording: Recording, *, until_event: int | None = None, max_entries: int = DEFAULT_MAX_ENTRIES
) -> bytes:
    """Returns `memory_snapshot` as a file's content."""
    return pickle.dumps(
        memory_snapshot(recording, until_event=until_event, max_entries=max_entries), protocol=PICKLE_PROTOCOL
    )


def memory_snapshot(
    recording: Recording, *, until_event: int | None = None, max_entries: int = DEFAULT_MAX_ENTRIES
) -> dict[str, Any]:
    """Returns what `torch.cuda.memory._snapshot()` would, taken after an event of the trace.

    As in PyTorch, the sizes in the history are what was asked for, the sizes of blocks what was given.

    Args:
        recording: the trace and its run.
        until_event: number of the last event to show; None for all that were played, with the request that failed.
        max_entries: how much history to keep: as in PyTorch, the last so many entries.

    Raises:
        SimulatorFault: `until_event` was not played, or `times_us` has not one time for each event.
    """
    num_played = len(recording.run.addresses)
    if until_event is not None and not 0 <= until_event < num_played:
        raise SimulatorFault(f"a snapshot until event {until_event} of {num_played} events")
    if recording.times_us is not None and len(recording.times_us) != recording.trace.num_events:
        raise SimulatorFault(f"{len(recording.times_us)} times for {recording.trace.num_events} events")
    end = min(recording.trace.num_events, num_played + 1) if until_event is None else until_event + 1
    frames = _Frames(recording.trace)
    log = recording.run.segment_events[recording.run.segment_events["event"] < end]
    segments = _segments(recording, frames, log=log, end=min(end, num_played))
    begin = _first_event(recording, log=log, end=end, max_entries=max_entries)
    history = [*_entries(recording, frames, log=log, events=range(begin, end)), _taken(recording, segments, end=end)]
    return {
        "segments": segments,
        "device_traces": [history],
        "allocator_settings": _settings(recording.settings),
        "external_annotations": [],
    }


class _Frames:
    """The frames of tensors; equal ones are one object, so that the pickle holds them once."""

    def __init__(self, trace: AllocationTrace) -> None:
        self._trace = trace
        self._known: dict[tuple[int, int, int], list[Entry]] = {}

    def of(self, tensor: int) -> list[Entry]:
        """Returns the frames of a tensor, the innermost first."""
        trace = self._trace
        key = (
            int(trace.tensor_labels[tensor]),
            int(trace.tensor_layers[tensor]),
            int(trace.tensor_actions[tensor]),
        )
        if key not in self._known:
            label, layer, action = trace.labels[key[0]], key[1], trace.actions[key[2]]
            place = ("step", 0) if layer == NO_LAYER else ("layer", layer)
            self._known[key] = [
                {"filename": label.operator, "line": 0, "name": label.name},
                {"filename": place[0], "line": place[1], "name": action},
                {"filename": "category", "line": 0, "name": str(label.category)},
            ]
        return self._known[key]


def _first_event(recording: Recording, *, log: npt.NDArray[np.void], end: int, max_entries: int) -> int:
    """Returns the first event whose entries, and those of all after it, stay within `max_entries`."""
    counts = np.bincount(log["event"], minlength=end)[:end]
    played = min(end, len(recording.run.addresses))
    has_block = recording.run.block_bytes[:played] > 0
    counts[:played] += np.where(has_block, np.where(recording.trace.allocates[:played], 1, 2), 0)
    # One entry is for the snapshot itself.
    from_here = np.cumsum(counts[::-1])[::-1]
    return int(np.count_nonzero(from_here > max_entries - 1))


def _entries(recording: Recording, frames: _Frames, *, log: npt.NDArray[np.void], events: range) -> Iterator[Entry]:
    """Yields the history of some events, each after the segments that came and went for it."""
    trace, run = recording.trace, recording.run
    num_played = len(run.addresses)
    next_segment = int(np.searchsorted(log["event"], events.start))
    for event in events:
        time_us = _time_us(recording, event)
        while next_segment < len(log) and log["event"][next_segment] == event:
            yield _segment_entry(log[next_segment], time_us=time_us)
            next_segment += 1
        if event == num_played:
            yield _out_of_memory_entry(recording, frames, time_us=time_us)
            return
        if run.block_bytes[event]:
            tensor = int(trace.tensors[event])
            for action in ("alloc",) if trace.allocates[event] else ("free_requested", "free_completed"):
                yield _entry(
                    action,
                    size=int(trace.tensor_bytes[tensor]),
                    stream=int(trace.tensor_streams[tensor]),
                    time_us=time_us,
                    frames=frames.of(tensor),
                    category=str(trace.labels[trace.tensor_labels[tensor]].category),
                ) | {"addr": int(run.addresses[event])}


def _entry(action: str, *, size: int, stream: int, time_us: int, frames: list[Entry], category: str = UNKNOWN) -> Entry:
    return {
        "action": action,
        "size": size,
        "stream": stream,
        "time_us": time_us,
        "frames": frames,
        "category": category,
        "compile_context": "N/A",
        "user_metadata": "",
        "pool_id": _DEFAULT_POOL,
    }


def _segment_entry(segment: np.void, *, time_us: int) -> Entry:
    name = _ACTION_NAMES[SegmentAction(int(segment["action"]))]
    size, stream = int(segment["bytes"]), int(segment["stream"])
    return _entry(name, size=size, stream=stream, time_us=time_us, frames=[]) | {"addr": int(segment["address"])}


def _out_of_memory_entry(recording: Recording, frames: _Frames, *, time_us: int) -> Entry:
    failure = recording.run.out_of_memory
    if failure is None:
        raise SimulatorFault("a run that did not play all events, and did not run out of memory")
    capacity = recording.settings.capacity_bytes
    free = (UNLIMITED_BYTES if capacity is None else capacity) - failure.reserved_bytes
    stream = int(recording.trace.tensor_streams[failure.tensor])
    return _entry(
        "oom", size=failure.requested_bytes, stream=stream, time_us=time_us, frames=frames.of(failure.tensor)
    ) | {"device_free": free}


def _taken(recording: Recording, segments: list[Entry], *, end: int) -> Entry:
    """Returns the entry of the snapshot itself, which PyTorch writes too; here it also has the unknown category."""
    active = sum(segment["active_size"] for segment in segments)
    time_us = _time_us(recording, end - 1) if end else 0
    return _entry("snapshot", size=active, stream=0, time_us=time_us, frames=[]) | {"addr": 0}


def _time_us(recording: Recording, event: int) -> int:
    return event if recording.times_us is None else int(recording.times_us[event])


def _segments(recording: Recording, frames: _Frames, *, log: npt.NDArray[np.void], end: int) -> list[Entry]:
    """Returns the segments after the first `end` events, by address."""
    live = _live_allocations(recording, end=end)
    ranges = present_ranges(log)
    bounds = [*np.searchsorted(recording.run.addresses[live], ranges["address"]).tolist(), len(live)]
    segments = []
    for number, (address, size, stream, small, expandable) in enumerate(ranges.tolist()):
        inside = live[bounds[number] : bounds[number + 1]]
        allocated = int(recording.run.block_bytes[inside].sum())
        segments.append(
            {
                "device": 0,
                "address": address,
                "total_size": size,
                "allocated_size": allocated,
                "active_size": allocated,
                "requested_size": int(recording.trace.tensor_bytes[recording.trace.tensors[inside]].sum()),
                "stream": stream,
                "segment_type": "small" if small else "large",
                "segment_pool_id": _DEFAULT_POOL,
                "is_expandable": bool(expandable),
                "frames": [],
                "blocks": list(_blocks(recording, frames, inside.tolist(), address=address, size=size)),
            }
        )
    return segments


def _live_allocations(recording: Recording, *, end: int) -> IntArray:
    """Returns the events that allocated what is in use after the first `end` events, by address."""
    trace, run = recording.trace, recording.run
    last_event = np.full(trace.num_tensors, -1, dtype=np.int64)
    last_event[trace.tensors[:end]] = np.arange(end)
    events = last_event[last_event >= 0]
    live = events[trace.allocates[events] & (run.block_bytes[events] > 0)]
    return live[np.argsort(run.addresses[live])]


def _blocks(
    recording: Recording, frames: _Frames, allocations: list[int], *, address: int, size: int
) -> Iterator[Entry]:
    """Yields the blocks that tile a segment: those in use, and what is free between them."""
    trace, run = recording.trace, recording.run
    at = address
    for event in allocations:
        begin, tensor = int(run.addresses[event]), int(trace.tensors[event])
        if begin > at:
            yield _free_block(at, begin - at)
        yield {
            "address": begin,
            "size": int(run.block_bytes[event]),
            "requested_size": int(trace.tensor_bytes[tensor]),
            "state": "active_allocated",
            "frames": frames.of(tensor),
        }
        at = begin + int(run.block_bytes[event])
    if address + size > at:
        yield _free_block(at, address + size - at)


def _free_block(address: int, size: int) -> Entry:
    return {"address": address, "size": size, "requested_size": 0, "state": "inactive", "frames": []}


def _settings(settings: AllocatorSettings) -> Entry:
    """Returns the settings under PyTorch's names; -1 stands for no limit, as there."""
    return {
        "expandable_segments": settings.expandable_segments,
        "garbage_collection_threshold": settings.garbage_collection_threshold,
        "max_split_size": -1 if settings.max_split_size_bytes is None else settings.max_split_size_bytes,
        "roundup_power2_divisions": settings.roundup_power2_divisions,
    }
