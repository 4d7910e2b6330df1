"""What an allocator asks of its device: segments allocated, freed, mapped and unmapped, in order."""

from __future__ import annotations

from enum import IntEnum

import numpy as np
import numpy.typing as npt

FIRST_ADDRESS = 1 << 45
"""Address of the first segment. Later ones lie above, none is used twice: of equal blocks the oldest serves."""
SEGMENT_EVENT = np.dtype([(name, np.int64) for name in ("event", "action", "address", "bytes", "stream", "small")])
"""A segment that comes or goes: during which event of the trace, `SegmentAction`, where, how large, in which pool."""
SEGMENT_RANGE = np.dtype([(name, np.int64) for name in ("address", "bytes", "stream", "small", "expandable")])
"""Memory that is there: a segment, or a mapped range of an expandable one."""


class SegmentAction(IntEnum):
    """What happens to memory of the device."""

    ALLOC = 0
    FREE = 1
    MAP = 2
    UNMAP = 3


COMES = (SegmentAction.ALLOC, SegmentAction.MAP)
"""Actions that bring memory; the others give it back."""


class SegmentLog:
    """The entries of one run, of type `SEGMENT_EVENT`."""

    def __init__(self) -> None:
        self.event = 0
        self._entries: list[tuple[int, ...]] = []

    def append(self, action: SegmentAction, address: int, size: int, *, stream: int, small: bool) -> None:
        """Adds an entry that happens during the current `event`."""
        self._entries.append((self.event, int(action), address, size, stream, int(small)))

    def to_array(self) -> npt.NDArray[np.void]:
        """Returns the entries so far."""
        return np.array(self._entries, dtype=SEGMENT_EVENT)


def signed_bytes(log: npt.NDArray[np.void]) -> npt.NDArray[np.int64]:
    """Returns the bytes that each entry brings, negative where it gives back."""
    return np.where(np.isin(log["action"], COMES), log["bytes"], -log["bytes"])


def present_ranges(log: npt.NDArray[np.void]) -> npt.NDArray[np.void]:
    """Returns the memory that is there after a log, of type `SEGMENT_RANGE`, by address."""
    ranges = np.concatenate([_whole_segments(log), _mapped_ranges(log)])
    return ranges[np.argsort(ranges["address"])]


def _whole_segments(log: npt.NDArray[np.void]) -> npt.NDArray[np.void]:
    """Returns the segments that are allocated and not freed; no address is used twice."""
    allocated = log[log["action"] == SegmentAction.ALLOC]
    freed = log["address"][log["action"] == SegmentAction.FREE]
    return _ranges(allocated[~np.isin(allocated["address"], freed)], expandable=False)


def _mapped_ranges(log: npt.NDArray[np.void]) -> npt.NDArray[np.void]:
    """Returns the mapped ranges of expandable segments, neighbours joined."""
    entries = log[(log["action"] == SegmentAction.MAP) | (log["action"] == SegmentAction.UNMAP)]
    signs = np.where(entries["action"] == SegmentAction.MAP, 1, -1)
    borders = np.concatenate([entries["address"], entries["address"] + entries["bytes"]])
    edges, at = np.unique(borders, return_inverse=True)
    steps = np.zeros(len(edges), dtype=np.int64)
    np.add.at(steps, at, np.concatenate([signs, -signs]))
    begins, ends = edges[steps == 1], edges[steps == -1]
    # The last entry at or below the begin of a range lies in the same segment, so it knows the pool.
    entries = entries[np.argsort(entries["address"], kind="stable")]
    ranges = _ranges(entries[np.searchsorted(entries["address"], begins, side="right") - 1], expandable=True)
    ranges["address"], ranges["bytes"] = begins, ends - begins
    return ranges


def _ranges(entries: npt.NDArray[np.void], *, expandable: bool) -> npt.NDArray[np.void]:
    ranges = np.empty(len(entries), dtype=SEGMENT_RANGE)
    for name in ("address", "bytes", "stream", "small"):
        ranges[name] = entries[name]
    ranges["expandable"] = expandable
    return ranges
