"""The rules of PyTorch's CUDA caching allocator.

A pool holds the free blocks of one size class (small, large) and one stream. A request takes the smallest free block
that is large enough, at the lowest address among equals; what remains of it is split off if it is worth keeping. If
there is none, the device is asked for a segment; if that fails, idle memory is given back and it is asked again. A
freed block merges with free neighbours of its segment and stays in its pool.

Source: PyTorch 2.10, `c10/cuda/CUDACachingAllocator.cpp` (`DeviceCachingAllocator`). Left out: private pools of CUDA
graphs, `record_stream` (the trace frees such a tensor when the other stream is done) and a device shared with others.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator
from dataclasses import dataclass, field

from simulator.cost.allocator_settings import (
    MAX_SMALL_BYTES,
    MIN_BLOCK_BYTES,
    NEVER,
    SEGMENT_STEP_BYTES,
    UNLIMITED_BYTES,
    AllocatorSettings,
    page_bytes,
    reserved_address_bytes,
    segment_bytes,
)
from simulator.cost.segment_log import COMES, FIRST_ADDRESS, SegmentAction, SegmentLog


@dataclass(slots=True, eq=False)
class Block:
    """A part of a segment: in use, free, or (in an expandable segment) address space without memory."""

    pool: Pool
    address: int
    size: int
    in_use: bool = False
    mapped: bool = True
    range_bytes: int = 0
    """Address space of its expandable segment; 0 in any other segment."""
    base: int = 0
    """First address of its expandable segment."""
    born: int = 0
    """Searches of the size class when the block became free."""
    before: Block | None = None
    after: Block | None = None

    @property
    def is_split(self) -> bool:
        """Whether the block shares its segment."""
        return self.before is not None or self.after is not None

    @property
    def expandable_size(self) -> int:
        """Bytes up to the next block in use: unmapped space after the block counts, as it can be mapped."""
        after = self.after
        return self.size + (after.size if after is not None and not after.mapped else 0)


@dataclass(slots=True, eq=False)
class SizeClass:
    """What the pools of all streams for small, or for large, requests share."""

    small: bool
    searches: int = 0
    """Searches for a free block, counted only where garbage collection is on."""


@dataclass(slots=True, eq=False)
class Pool:
    """Free blocks of one size class and stream."""

    size_class: SizeClass
    stream: int
    free: list[tuple[int, int, Block]] = field(default_factory=list)
    """(size, address, block), ascending."""
    unmapped: list[tuple[int, Block]] = field(default_factory=list)
    """(address, block), ascending: the unmapped space of expandable segments."""

    def insert(self, block: Block) -> None:
        """Adds a free block."""
        block.born = self.size_class.searches
        insort(self.free, (block.size, block.address, block))

    def remove(self, block: Block) -> None:
        """Takes out a block that is free or unmapped."""
        if block.mapped:
            del self.free[bisect_left(self.free, (block.size, block.address))]
        else:
            del self.unmapped[bisect_left(self.unmapped, (block.address,))]


class CachingAllocator:
    """The allocator of one device."""

    def __init__(self, settings: AllocatorSettings) -> None:
        self.log = SegmentLog()
        self.reserved_bytes = 0
        self.num_retries = 0
        self._settings = settings
        self._classes = (SizeClass(small=False), SizeClass(small=True))
        self._pools: dict[tuple[bool, int], Pool] = {}
        self._next_address = FIRST_ADDRESS
        self._max_split = UNLIMITED_BYTES if settings.max_split_size_bytes is None else settings.max_split_size_bytes
        self._capacity = UNLIMITED_BYTES if settings.capacity_bytes is None else settings.capacity_bytes
        self._limit = UNLIMITED_BYTES if settings.limit_bytes is None else settings.limit_bytes
        self._collects = settings.collect_beyond_bytes != NEVER

    def allocate(self, size: int, *, stream: int) -> Block | None:
        """Returns the block that serves a request of `rounded_bytes`, or None if the device has no memory for it."""
        pool = self._pool(small=size <= MAX_SMALL_BYTES, stream=stream)
        block = self._best_fit(pool, size)
        if block is None:
            if self._collects:
                self._collect_garbage()
            block = self._obtain(pool, size)
            if block is None and self._release_oversize(pool, size):
                block = self._obtain(pool, size)
            if block is None:
                self.empty_cache()
                self.num_retries += 1
                block = self._obtain(pool, size)
            if block is None:
                return None
        return self._take(block, size)

    def free(self, block: Block) -> None:
        """Puts a block back into its pool, merged with its free neighbours."""
        block.in_use = False
        _merge(block, block.before)
        _merge(block, block.after)
        block.pool.insert(block)

    def empty_cache(self) -> None:
        """Gives back every segment without a block in use, and every free page of expandable segments."""
        for small in (False, True):
            for pool in self._pools_of(small=small):
                blocks = [block for _, _, block in pool.free]
                for block in blocks:
                    if not block.range_bytes and not block.is_split:
                        self._release(block)
                for block in blocks:
                    if block.range_bytes:
                        self._unmap(block)

    def _pool(self, *, small: bool, stream: int) -> Pool:
        key = (small, stream)
        if key not in self._pools:
            self._pools[key] = Pool(self._classes[small], stream)
        return self._pools[key]

    def _pools_of(self, *, small: bool) -> Iterator[Pool]:
        return (self._pools[key] for key in sorted(self._pools) if key[0] == small)

    def _best_fit(self, pool: Pool, size: int) -> Block | None:
        """Takes the smallest free block that is large enough out of the pool."""
        if self._collects:
            pool.size_class.searches += 1
        at = bisect_left(pool.free, (size,))
        if at == len(pool.free):
            return None
        block = pool.free[at][2]
        if block.range_bytes:
            # The end of a growing segment is as large as it can become: any block before that is a better fit.
            while at + 1 < len(pool.free) and pool.free[at + 1][2].expandable_size < block.expandable_size:
                at += 1
                block = pool.free[at][2]
        if size < self._max_split <= block.size:
            return None
        if size >= self._max_split and block.size >= size + self._settings.max_non_split_rounding_bytes:
            return None
        pool.remove(block)
        return block

    def _take(self, block: Block, size: int) -> Block:
        """Marks a block as in use; its end, if worth keeping, becomes a free block."""
        block.in_use = True
        remaining = block.size - size
        if block.pool.size_class.small or block.range_bytes:
            splits = remaining >= MIN_BLOCK_BYTES
        else:
            splits = size < self._max_split and remaining > MAX_SMALL_BYTES
        if splits:
            block.pool.insert(_cut(block, size))
        return block

    def _obtain(self, pool: Pool, size: int) -> Block | None:
        """Asks the device for memory, within the limit; returns a free block that is in no list."""
        segment = segment_bytes(size)
        if self.reserved_bytes + segment > self._limit:
            return None
        if self._settings.expandable_segments:
            return self._expand(pool, size)
        if self.reserved_bytes + segment > self._capacity:
            return None
        block = Block(pool, self._new_addresses(segment), segment)
        self._reserve(SegmentAction.ALLOC, block)
        return block

    def _new_addresses(self, size: int) -> int:
        address = self._next_address
        self._next_address += -(-size // SEGMENT_STEP_BYTES) * SEGMENT_STEP_BYTES
        return address

    def _reserve(self, action: SegmentAction, block: Block) -> None:
        """Counts and logs a segment, or a part of one, that comes from the device or goes back to it."""
        self.reserved_bytes += block.size if action in COMES else -block.size
        self.log.append(action, block.address, block.size, stream=block.pool.stream, small=block.pool.size_class.small)

    def _release(self, block: Block) -> None:
        """Gives a free block, which is a whole segment, back to the device."""
        block.pool.remove(block)
        self._reserve(SegmentAction.FREE, block)

    def _release_oversize(self, pool: Pool, size: int) -> bool:
        """Gives back blocks beyond `max_split_size_bytes`, until they have freed enough; returns whether they have."""
        if self._settings.max_split_size_bytes is None:
            return False
        wanted = max(size, self._max_split)
        at = bisect_left(pool.free, (wanted,))
        if at < len(pool.free) and not pool.free[at][2].range_bytes:
            self._release(pool.free[at][2])
            return True
        if self._settings.expandable_segments:
            return False
        released = 0
        while released < wanted and pool.free and pool.free[-1][0] >= self._max_split:
            released += pool.free[-1][0]
            self._release(pool.free[-1][2])
        return released >= wanted

    def _collect_garbage(self) -> None:
        """Gives back the large segments that have been idle longer than their average, until below the threshold."""
        target = self.reserved_bytes - self._settings.collect_beyond_bytes
        if target <= 0:
            return
        searches = self._classes[False].searches
        idle = [
            block
            for pool in self._pools_of(small=False)
            for _, _, block in pool.free
            if not block.is_split and not block.range_bytes
        ]
        total_age = sum(searches - block.born for block in idle)
        reclaimed, released = 0, True
        while reclaimed < target and released and idle:
            age_threshold = total_age / len(idle)
            old = [block for block in idle if searches - block.born >= age_threshold]
            idle = [block for block in idle if searches - block.born < age_threshold]
            released = bool(old)
            for block in old:
                total_age -= searches - block.born
                reclaimed += block.size
                self._release(block)

    def _expand(self, pool: Pool, size: int) -> Block | None:
        """Maps memory at the lowest address of the pool's expandable segments where the request fits."""
        block = self._expandable_space(pool, size)
        if not block.mapped and not self._map(block, min(block.size, size)):
            return None
        while block.size < size:
            after = block.after
            if after is None or not self._map(after, min(size - block.size, after.size)):
                return None
            block = after
        pool.remove(block)
        return block

    def _expandable_space(self, pool: Pool, size: int) -> Block:
        """Returns the first of a row of free or unmapped blocks that together are large enough."""
        for _, unmapped in pool.unmapped:
            first = unmapped
            if unmapped.before is not None and not unmapped.before.in_use:
                first = unmapped.before
            if _space_from(first, at_least=size):
                return first
        range_bytes = reserved_address_bytes(self._settings, small=pool.size_class.small)
        base = self._new_addresses(range_bytes)
        space = Block(pool, base, range_bytes, mapped=False, range_bytes=range_bytes, base=base)
        pool.unmapped.append((base, space))
        return space

    def _map(self, block: Block, size: int) -> bool:
        """Backs the first bytes of an unmapped block with whole pages; returns whether the device had them."""
        page = page_bytes(small=block.pool.size_class.small)
        mapped_bytes = -(-size // page) * page
        if self.reserved_bytes + mapped_bytes > self._capacity:
            return False
        pool = block.pool
        pool.remove(block)
        block.mapped = True
        if mapped_bytes < block.size:
            rest = _cut(block, mapped_bytes)
            rest.mapped = False
            insort(pool.unmapped, (rest.address, rest))
        self._reserve(SegmentAction.MAP, block)
        _merge(block, block.before)
        _merge(block, block.after)
        pool.insert(block)
        return True

    def _unmap(self, block: Block) -> None:
        """Gives back the whole pages in a free block of an expandable segment."""
        page = page_bytes(small=block.pool.size_class.small)
        begin = block.base + -(-(block.address - block.base) // page) * page
        end = block.base + (block.address + block.size - block.base) // page * page
        if begin >= end:
            return
        pool = block.pool
        pool.remove(block)
        if begin > block.address:
            front, block = block, _cut(block, begin - block.address)
            pool.insert(front)
        if block.size > end - begin:
            pool.insert(_cut(block, end - begin))
        block.mapped = False
        self._reserve(SegmentAction.UNMAP, block)
        _merge(block, block.before)
        _merge(block, block.after)
        if block.is_split:
            insort(pool.unmapped, (block.address, block))


def _cut(block: Block, size: int) -> Block:
    """Shortens a block to its first `size` bytes and returns the rest as a block after it, free and in no list."""
    rest = Block(
        block.pool,
        block.address + size,
        block.size - size,
        range_bytes=block.range_bytes,
        base=block.base,
        before=block,
        after=block.after,
    )
    if block.after is not None:
        block.after.before = rest
    block.after = rest
    block.size = size
    return rest


def _space_from(block: Block | None, *, at_least: int) -> bool:
    """Returns whether a row of blocks that are not in use is large enough."""
    space = 0
    while space < at_least and block is not None and not block.in_use:
        space += block.size
        block = block.after
    return space >= at_least


def _merge(block: Block, neighbour: Block | None) -> None:
    """Joins a neighbour to a block, if it is free (or, for unmapped blocks, unmapped too)."""
    if neighbour is None or neighbour.in_use or neighbour.mapped != block.mapped:
        return
    neighbour.pool.remove(neighbour)
    if block.before is neighbour:
        block.address = neighbour.address
        block.before = neighbour.before
        if block.before is not None:
            block.before.after = block
    else:
        block.after = neighbour.after
        if block.after is not None:
            block.after.before = block
    block.size += neighbour.size
