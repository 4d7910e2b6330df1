"""Settings and sizes of PyTorch's CUDA caching allocator: how a request is rounded, and what a segment measures.

Source of everything here: PyTorch 2.10, `c10/core/AllocatorConfig.h` and `c10/cuda/CUDACachingAllocator.cpp`; the
settings' meaning also in PyTorch's documentation, "CUDA semantics", section "Optimizing memory usage with
PYTORCH_CUDA_ALLOC_CONF".
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from simulator.errors import SimulatorFault

IntArray = npt.NDArray[np.int64]

MEBIBYTE = 1 << 20
MIN_BLOCK_BYTES = 512
"""Every block is a multiple of it (kMinBlockSize)."""
MAX_SMALL_BYTES = MEBIBYTE
"""Largest request of the small pool, after rounding (kSmallSize)."""
SMALL_SEGMENT_BYTES = 2 * MEBIBYTE
"""A segment of the small pool (kSmallBuffer)."""
MIN_OWN_SEGMENT_BYTES = 10 * MEBIBYTE
"""Requests from here on get a segment of their own size (kMinLargeAlloc)."""
LARGE_SEGMENT_BYTES = 20 * MEBIBYTE
"""A segment for requests below that, and the step of a large expandable segment (kLargeBuffer)."""
SEGMENT_STEP_BYTES = 2 * MEBIBYTE
"""Segments of their own size are multiples of it (kRoundLarge)."""
UNLIMITED_BYTES = 1 << 53
"""Stands for a device without end: 8 PiB."""
NEVER = -1
"""`AllocatorSettings.collect_beyond_bytes` where garbage is not collected."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AllocatorSettings:
    """`PYTORCH_CUDA_ALLOC_CONF` and the room that the device leaves; the defaults are PyTorch's."""

    capacity_bytes: int | None = None
    """Device memory left to the allocator's segments (without context, NCCL and other processes); None: no end."""
    limit_bytes: int | None = None
    """`torch.cuda.set_per_process_memory_fraction` times the device's memory; None: not set, or a fraction of 1."""
    expandable_segments: bool = False
    """One growing segment for each pool and stream, instead of one segment for each request that finds no block."""
    roundup_power2_divisions: int = 0
    """Requests are rounded up to this many steps between powers of two: 2, 4, 8...; 0 for none."""
    max_split_size_bytes: int | None = None
    """Larger blocks are not split, and serve only requests of about their size; None: all are split."""
    max_non_split_rounding_bytes: int = LARGE_SEGMENT_BYTES
    """How much larger than its request a block beyond `max_split_size_bytes` may be."""
    garbage_collection_threshold: float = 0.0
    """Share of `limit_bytes` beyond which idle blocks are given back before a new segment; 0 for never."""

    def __post_init__(self) -> None:
        """Checks each setting as PyTorch does.

        Raises:
            SimulatorFault: a setting that PyTorch refuses, or a threshold that nothing measures.
        """
        problem = self._problem()
        if problem:
            raise SimulatorFault(f"allocator settings: {problem}")

    @property
    def collect_beyond_bytes(self) -> int:
        """Reserved bytes beyond which idle blocks are given back before a new segment, or `NEVER`."""
        if self.limit_bytes is None or not self.garbage_collection_threshold:
            return NEVER
        return int(self.garbage_collection_threshold * self.limit_bytes)

    def _problem(self) -> str | None:
        divisions = self.roundup_power2_divisions
        if divisions < 0 or divisions == 1 or divisions & (divisions - 1):
            return f"roundup_power2_divisions must be 0 or a power of two from 2, not {divisions}"
        if self.max_split_size_bytes is not None and self.max_split_size_bytes <= LARGE_SEGMENT_BYTES:
            return f"max_split_size_bytes must exceed {LARGE_SEGMENT_BYTES}, not {self.max_split_size_bytes}"
        if self.max_non_split_rounding_bytes < LARGE_SEGMENT_BYTES:
            return f"max_non_split_rounding_bytes must be at least {LARGE_SEGMENT_BYTES}"
        if not 0 <= self.garbage_collection_threshold < 1:
            return f"garbage_collection_threshold must be in [0, 1), not {self.garbage_collection_threshold}"
        if self.garbage_collection_threshold and self.limit_bytes is None:
            return "garbage_collection_threshold is a share of limit_bytes, which is not set"
        return None


def rounded_bytes(requested_bytes: npt.ArrayLike, *, power2_divisions: int = 0) -> IntArray:
    """Returns the smallest block that serves each request; nothing for requests of nothing.

    The next multiple of 512 B: 1,025 B become 1,536 B. With d divisions, requests beyond 512 d bytes become the next of
    the d steps between two powers of two: 5 MiB + 1 B with 4 divisions become 6 MiB.
    """
    requested = np.asarray(requested_bytes, dtype=np.int64)
    step = np.full(requested.shape, MIN_BLOCK_BYTES, dtype=np.int64)
    if power2_divisions:
        # frexp gives m 2^e with 1/2 <= m < 1: the power of two at or below is 2^(e - 1).
        power = np.int64(1) << np.maximum(np.frexp(requested)[1] - 1, 0).astype(np.int64)
        step = np.where(requested > MIN_BLOCK_BYTES * power2_divisions, power // power2_divisions, step)
    return -(-requested // step) * step


def segment_bytes(block_bytes: int) -> int:
    """Returns the size of the segment that the allocator asks the device for when no block fits (not expandable).

    Up to 1 MiB: 2 MiB. Below 10 MiB: 20 MiB. Else the next multiple of 2 MiB: 10,485,761 B become 12 MiB.
    """
    if block_bytes <= MAX_SMALL_BYTES:
        return SMALL_SEGMENT_BYTES
    if block_bytes < MIN_OWN_SEGMENT_BYTES:
        return LARGE_SEGMENT_BYTES
    return -(-block_bytes // SEGMENT_STEP_BYTES) * SEGMENT_STEP_BYTES


def page_bytes(*, small: bool) -> int:
    """Returns the step in which an expandable segment grows: 2 MiB in the small pool, 20 MiB in the large one."""
    return SMALL_SEGMENT_BYTES if small else LARGE_SEGMENT_BYTES


def reserved_address_bytes(settings: AllocatorSettings, *, small: bool) -> int:
    """Returns the address range of an expandable segment: 9/8 of the device's memory in whole pages."""
    capacity = UNLIMITED_BYTES if settings.capacity_bytes is None else settings.capacity_bytes
    page = page_bytes(small=small)
    return -(-(capacity + capacity // 8) // page) * page
