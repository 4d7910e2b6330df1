"""What PyTorch's CUDA caching allocator makes of a trace: peaks as `torch.cuda` counts them, retries, out of memory."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from simulator.cost.allocation_trace import AllocationTrace
from simulator.cost.allocator_settings import AllocatorSettings, rounded_bytes
from simulator.cost.caching_allocator import Block, CachingAllocator
from simulator.cost.segment_log import present_ranges, signed_bytes

IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class OutOfMemory:
    """A request that the device could not serve, even after all idle memory was given back."""

    event: int
    """Event of the trace at which it happens; nothing after it was played."""
    tensor: int
    """Number of the tensor."""
    requested_bytes: int
    """What the tensor asked for."""
    allocated_bytes: int
    """Blocks in use at that moment."""
    reserved_bytes: int
    """Segments at that moment."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class AllocatorRun:
    """What happened to one trace under one setting."""

    addresses: IntArray
    """Address of each event's block, shape [events played]; 0 for tensors without bytes."""
    block_bytes: IntArray
    """Size of each event's block, shape [events played]."""
    segment_events: npt.NDArray[np.void]
    """Segments that came and went, of type `SEGMENT_EVENT`."""
    allocated_peak_bytes: int
    """Most bytes of blocks in use: `torch.cuda.max_memory_allocated()`."""
    allocated_peak_event: int
    """First event after which that many are in use; 0 for an empty trace."""
    requested_peak_bytes: int
    """Most bytes that live tensors asked for: `requested_bytes.all.peak` of `torch.cuda.memory_stats()`."""
    reserved_peak_bytes: int
    """Most bytes of segments: `torch.cuda.max_memory_reserved()`."""
    reserved_peak_event: int
    """First event during which that many are reserved; 0 for an empty trace."""
    num_segments_at_peak: int
    """Segments (mapped ranges, where segments expand) at the reserved peak."""
    num_retries: int
    """`num_alloc_retries`: how often all idle memory was given back to serve a request. Each stops the device."""
    out_of_memory: OutOfMemory | None
    """The request that could not be served, or None."""

    @property
    def fragmentation_fraction(self) -> float:
        """Share of the reserved peak that the allocated peak leaves unused, 0 to 1."""
        return 1 - self.allocated_peak_bytes / self.reserved_peak_bytes if self.reserved_peak_bytes else 0.0


def run_allocator(trace: AllocationTrace, settings: AllocatorSettings) -> AllocatorRun:
    """Returns what the allocator does with a trace; it stops at the first request that finds no memory.

    Args:
        trace: what one rank allocates and frees.
        settings: `PYTORCH_CUDA_ALLOC_CONF` and the memory there is.
    """
    allocator = CachingAllocator(settings)
    places = _play(trace, settings, allocator)
    events = slice(0, len(places))
    signs = np.where(trace.allocates[events], 1, -1)
    allocated = np.cumsum(signs * places[:, 1])
    requested = np.cumsum(signs * trace.tensor_bytes[trace.tensors[events]])
    log = allocator.log.to_array()
    reserved = np.cumsum(signed_bytes(log))
    out_of_memory = None
    if len(places) < trace.num_events:
        tensor = int(trace.tensors[len(places)])
        out_of_memory = OutOfMemory(
            event=len(places),
            tensor=tensor,
            requested_bytes=int(trace.tensor_bytes[tensor]),
            allocated_bytes=int(allocated[-1]) if len(allocated) else 0,
            reserved_bytes=int(reserved[-1]) if len(reserved) else 0,
        )
    peak = int(reserved.argmax()) if len(reserved) else 0
    return AllocatorRun(
        addresses=places[:, 0],
        block_bytes=places[:, 1],
        segment_events=log,
        allocated_peak_bytes=int(allocated.max(initial=0)),
        allocated_peak_event=int(allocated.argmax()) if len(allocated) else 0,
        requested_peak_bytes=int(requested.max(initial=0)),
        reserved_peak_bytes=int(reserved.max(initial=0)),
        reserved_peak_event=int(log["event"][peak]) if len(log) else 0,
        num_segments_at_peak=len(present_ranges(log[: peak + 1])),
        num_retries=allocator.num_retries,
        out_of_memory=out_of_memory,
    )


def _play(trace: AllocationTrace, settings: AllocatorSettings, allocator: CachingAllocator) -> IntArray:
    """Returns the address and the size of each event's block, shape [events played, 2]."""
    sizes = rounded_bytes(trace.tensor_bytes, power2_divisions=settings.roundup_power2_divisions).tolist()
    streams = trace.tensor_streams.tolist()
    blocks: dict[int, Block] = {}
    places: list[tuple[int, int]] = []
    for event, (tensor, allocates) in enumerate(zip(trace.tensors.tolist(), trace.allocates.tolist(), strict=True)):
        if not sizes[tensor]:
            places.append((0, 0))
        elif allocates:
            allocator.log.event = event
            block = allocator.allocate(sizes[tensor], stream=streams[tensor])
            if block is None:
                break
            blocks[tensor] = block
            places.append((block.address, block.size))
        else:
            block = blocks.pop(tensor)
            places.append((block.address, block.size))
            allocator.free(block)
    return np.array(places, dtype=np.int64).reshape(-1, 2)
