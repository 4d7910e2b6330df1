"""The allocator model: each rule with a worked number, what always holds, and PyTorch's own allocator recorded."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.cost.allocator import AllocatorRun, run_allocator
from simulator.cost.allocator_settings import MEBIBYTE, AllocatorSettings, rounded_bytes, segment_bytes
from simulator.cost.caching_allocator import CachingAllocator
from simulator.cost.segment_log import FIRST_ADDRESS, SegmentAction, present_ranges, signed_bytes
from simulator.errors import SimulatorFault
from tests.cost.allocations import Request, trace_of

RECORDED = json.loads((Path(__file__).parent / "recorded" / "caching_allocator.json").read_text())
EXPANDABLE = AllocatorSettings(expandable_segments=True)


def mib(number: float) -> int:
    return round(number * MEBIBYTE)


def run(*requests: Request, settings: AllocatorSettings | None = None) -> AllocatorRun:
    return run_allocator(trace_of(requests), settings or AllocatorSettings())


def offsets(result: AllocatorRun) -> list[float]:
    """Where each event's block lies, in MiB from the first segment."""
    return [(address - FIRST_ADDRESS) / MEBIBYTE for address in result.addresses.tolist()]


# --- PyTorch's own allocator ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", RECORDED, ids=range(len(RECORDED)))
def test_every_block_lies_where_pytorchs_own_allocator_puts_it(case: dict) -> None:
    result = run_allocator(trace_of(case["requests"]), AllocatorSettings(**case["settings"]))
    expected = case["expected"]
    assert ((result.addresses - FIRST_ADDRESS) // 512).tolist() == expected["blocks"]
    assert result.num_retries == expected["num_retries"]
    assert result.allocated_peak_bytes == expected["allocated_peak_bytes"]
    assert result.requested_peak_bytes == expected["requested_peak_bytes"]
    assert result.reserved_peak_bytes == expected["reserved_peak_bytes"]
    assert (result.out_of_memory and result.out_of_memory.event) == expected["out_of_memory"]


def test_the_recordings_contain_every_setting_retries_and_requests_that_fail() -> None:
    names = {name for case in RECORDED for name in case["settings"]}
    assert names == set(AllocatorSettings.__dataclass_fields__)
    assert sum(case["expected"]["num_retries"] > 0 for case in RECORDED) > 10
    assert sum(case["expected"]["out_of_memory"] is not None for case in RECORDED) > 10


# --- sizes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("requested", "rounded"), [(0, 0), (1, 512), (512, 512), (513, 1024), (1025, 1536), (mib(1) + 1, mib(1) + 512)]
)
def test_requests_are_rounded_up_to_512_bytes(requested: int, rounded: int) -> None:
    assert rounded_bytes(requested) == rounded


@pytest.mark.parametrize(
    ("requested", "divisions", "rounded"),
    [
        (mib(5) + 1, 4, mib(6)),  # steps of 1 MiB between 4 and 8 MiB
        (mib(5), 4, mib(5)),
        (mib(4), 4, mib(4)),
        (mib(4) + 1, 2, mib(6)),
        (2048, 4, 2048),  # not beyond 512 x 4: the next multiple of 512
        (2049, 4, 2560),
        (1025, 4, 1536),
    ],
)
def test_divisions_round_up_to_steps_between_powers_of_two(requested: int, divisions: int, rounded: int) -> None:
    assert rounded_bytes(requested, power2_divisions=divisions) == rounded


@pytest.mark.parametrize(
    ("block", "segment"),
    [
        (512, mib(2)),
        (mib(1), mib(2)),
        (mib(1) + 512, mib(20)),
        (mib(10) - 512, mib(20)),
        (mib(10), mib(10)),
        (mib(10) + 512, mib(12)),
        (mib(21), mib(22)),
    ],
)
def test_segments_are_2_mib_then_20_mib_then_multiples_of_2_mib(block: int, segment: int) -> None:
    assert segment_bytes(block) == segment


def test_a_tensor_without_bytes_takes_no_block() -> None:
    result = run((0, 0), 0)
    assert result.addresses.tolist() == [0, 0]
    assert result.reserved_peak_bytes == 0


# --- pools, best fit, splitting, merging ------------------------------------------------------------------------------


def test_peaks_count_blocks_requests_and_segments() -> None:
    # 100 B take a 512 B block in a 2 MiB segment, 1 MiB + 1 B take 1 MiB + 512 B of a 20 MiB segment.
    result = run((100, 0), (mib(1) + 1, 0), 1, 0)
    assert result.allocated_peak_bytes == 512 + mib(1) + 512
    assert result.requested_peak_bytes == 100 + mib(1) + 1
    assert result.reserved_peak_bytes == mib(22)
    assert (result.allocated_peak_event, result.reserved_peak_event, result.num_segments_at_peak) == (1, 1, 2)
    assert result.fragmentation_fraction == pytest.approx(1 - (mib(1) + 1024) / mib(22))


def test_small_requests_share_a_segment_and_large_ones_another() -> None:
    assert offsets(run((mib(0.5), 0), (mib(0.5), 0), (mib(4), 0), (mib(4), 0), (mib(1), 0))) == [0, 0.5, 2, 6, 1]


def test_a_stream_takes_no_block_of_another() -> None:
    result = run((mib(4), 0), 0, (mib(4), 1))
    assert offsets(result) == [0, 0, 20]
    assert result.reserved_peak_bytes == mib(40)


def test_the_smallest_block_that_is_large_enough_serves_a_request() -> None:
    # 40 MiB at 0, 30 MiB at 40, 34 MiB at 70; 29 MiB go into the 30 MiB block.
    assert offsets(run((mib(40), 0), (mib(30), 0), (mib(34), 0), 0, 1, 2, (mib(29), 0)))[-1] == 40


def test_of_equal_blocks_the_one_at_the_lowest_address_serves() -> None:
    assert offsets(run((mib(30), 0), (mib(30), 0), 1, 0, (mib(30), 0)))[-1] == 0


def test_a_large_block_is_split_only_if_more_than_1_mib_remains() -> None:
    whole = run((mib(12), 0), 0, (mib(11), 0))
    assert whole.block_bytes[-1] == mib(12)
    split = run((mib(12), 0), 0, (mib(11) - 512, 0))
    assert split.block_bytes[-1] == mib(11) - 512


def test_a_small_block_is_split_if_512_bytes_remain() -> None:
    result = run((mib(1), 0), (mib(1) - 512, 0), (512, 0))
    assert result.block_bytes.tolist() == [mib(1), mib(1) - 512, 512]
    assert result.reserved_peak_bytes == mib(2)


def test_free_neighbours_merge_and_serve_a_request_that_none_could_alone() -> None:
    result = run((mib(6), 0), (mib(6), 0), (mib(6), 0), 0, 2, 1, (mib(20), 0))
    assert offsets(result)[-1] == 0
    assert result.reserved_peak_bytes == mib(20)


def test_a_block_in_use_keeps_its_neighbours_apart() -> None:
    # 6 MiB free at 0 and 8 MiB at 12, between them 6 MiB in use: 9 MiB need a segment of their own.
    result = run((mib(6), 0), (mib(6), 0), (mib(6), 0), 0, 2, (mib(9), 0))
    assert offsets(result)[-1] == 20
    assert result.fragmentation_fraction == pytest.approx(1 - 18 / 40)


# --- max_split_size ---------------------------------------------------------------------------------------------------


def test_blocks_beyond_max_split_size_are_kept_whole_for_requests_of_about_their_size() -> None:
    settings = AllocatorSettings(max_split_size_bytes=mib(64))
    requests = ((mib(100), 0), 0)
    assert offsets(run(*requests, (mib(60), 0), settings=settings))[-1] == 100  # below 64 MiB: not from that block
    assert offsets(run(*requests, (mib(80), 0), settings=settings))[-1] == 100  # 20 MiB too small
    assert offsets(run((mib(64), 0), 0, (mib(60), 0), settings=settings))[-1] == 64  # 64 MiB are beyond already
    near = run(*requests, (mib(81), 0), settings=settings)
    assert offsets(near)[-1] == 0
    assert near.block_bytes[-1] == mib(100)


def test_out_of_memory_gives_back_oversize_blocks_before_all_others() -> None:
    settings = AllocatorSettings(max_split_size_bytes=mib(64), capacity_bytes=mib(200))
    # 160 MiB are too much for 100 MiB to take, but enough to give back: the 40 MiB stay cached.
    result = run((mib(160), 0), (mib(40), 0), 0, 1, (mib(100), 0), settings=settings)
    assert result.num_retries == 0
    assert result.segment_events["bytes"].tolist() == [mib(160), mib(40), mib(160), mib(100)]
    # 100 MiB are less than the 140 MiB wanted, so everything goes.
    result = run((mib(100), 0), (mib(40), 0), 0, 1, (mib(140), 0), settings=settings)
    assert result.num_retries == 1
    assert result.segment_events["bytes"].tolist() == [mib(100), mib(40), mib(100), mib(40), mib(140)]


# --- memory that is not there -----------------------------------------------------------------------------------------


def test_out_of_memory_gives_back_idle_segments_and_tries_again() -> None:
    settings = AllocatorSettings(capacity_bytes=mib(100))
    result = run((mib(60), 0), (mib(30), 0), 0, (mib(64), 0), settings=settings)
    assert result.num_retries == 1
    assert result.out_of_memory is None
    assert result.reserved_peak_bytes == mib(94)
    assert result.segment_events["bytes"].tolist() == [mib(60), mib(30), mib(60), mib(64)]


def test_a_segment_with_a_block_in_use_cannot_be_given_back() -> None:
    settings = AllocatorSettings(capacity_bytes=mib(100))
    result = run((mib(60), 0), 0, (mib(50), 0), (mib(64), 0), settings=settings)
    failure = result.out_of_memory
    assert failure is not None
    assert (failure.event, failure.tensor, failure.requested_bytes) == (3, 2, mib(64))
    assert (failure.allocated_bytes, failure.reserved_bytes) == (mib(50), mib(60))
    assert (len(result.addresses), result.num_retries) == (3, 1)


def test_the_limit_holds_before_the_capacity_does() -> None:
    one_less = AllocatorSettings(capacity_bytes=mib(100), limit_bytes=mib(60) - 1)
    assert run((mib(60), 0), settings=one_less).out_of_memory is not None
    just_right = AllocatorSettings(capacity_bytes=mib(100), limit_bytes=mib(60))
    assert run((mib(60), 0), settings=just_right).out_of_memory is None


def test_garbage_collection_gives_back_the_segments_that_idle_longest() -> None:
    requests: tuple[Request, ...] = ((mib(40), 0), 0, (mib(50), 0), 1, (mib(60), 0))
    limited = AllocatorSettings(limit_bytes=mib(200))
    assert run(*requests, settings=limited).reserved_peak_bytes == mib(150)
    collecting = AllocatorSettings(limit_bytes=mib(200), garbage_collection_threshold=0.4)
    # 90 MiB are more than 80: the 40 MiB (age 2, above the average of 1.5) go, the 50 MiB (age 1) stay.
    result = run(*requests, settings=collecting)
    assert result.reserved_peak_bytes == mib(110)
    assert result.num_retries == 0


# --- expandable segments ----------------------------------------------------------------------------------------------


def test_an_expandable_segment_grows_by_pages_of_20_mib_and_2_mib() -> None:
    result = run((mib(5), 0), (mib(16), 0), (mib(50), 0), (100, 0), settings=EXPANDABLE)
    assert result.segment_events["action"].tolist() == [SegmentAction.MAP] * 4
    assert result.segment_events["bytes"].tolist() == [mib(20), mib(20), mib(40), mib(2)]
    assert result.reserved_peak_bytes == mib(82)
    assert result.num_segments_at_peak == 2
    assert offsets(result)[:3] == [0, 5, 21]


def test_an_expandable_segment_serves_a_larger_request_that_default_segments_do_not() -> None:
    # Ten tensors of 30 MiB, then ten of 32 MiB: the freed space is used again where segments can grow.
    requests = [(mib(30), 0)] * 10 + list(range(10)) + [(mib(32), 0)] * 10
    assert run(*requests).reserved_peak_bytes == mib(620)
    assert run(*requests, settings=EXPANDABLE).reserved_peak_bytes == mib(320)


def test_out_of_memory_unmaps_the_free_pages_of_an_expandable_segment() -> None:
    settings = AllocatorSettings(expandable_segments=True, capacity_bytes=mib(100))
    result = run((mib(50), 0), (mib(10), 0), 0, (mib(70), 1), settings=settings)
    # 0 to 50 MiB are free: pages 0 and 1 go back, page 2 holds the block in use; 20 + 80 MiB remain.
    assert result.num_retries == 1
    assert result.segment_events["action"].tolist() == [2, SegmentAction.UNMAP, 2]
    assert result.segment_events["bytes"].tolist() == [mib(60), mib(40), mib(80)]
    assert result.num_segments_at_peak == 2
    assert result.reserved_peak_bytes == mib(100)


def test_blocks_beyond_max_split_size_are_not_given_back_one_by_one_from_expandable_segments() -> None:
    settings = AllocatorSettings(expandable_segments=True, max_split_size_bytes=mib(32), capacity_bytes=mib(100))
    result = run((mib(60), 0), (mib(10), 0), 0, (mib(70), 0), settings=settings)
    # The address range is 9/8 of 100 MiB in pages of 20 MiB: 120 MiB, too full, so another begins there.
    assert offsets(result)[-1] == 120
    assert result.num_retries == 1
    assert result.reserved_peak_bytes == mib(100)


# --- what always holds ------------------------------------------------------------------------------------------------


@st.composite
def requests_strategy(draw: st.DrawFn) -> list[Request]:
    sizes = st.one_of(
        st.integers(0, 4096), st.integers(0, mib(3)), st.integers(mib(1), mib(40)), st.sampled_from([mib(4), mib(30)])
    )
    requests: list[Request] = []
    live: list[int] = []
    num_tensors = 0
    for _ in range(draw(st.integers(1, 60))):
        if live and draw(st.booleans()):
            requests.append(live.pop(draw(st.integers(0, len(live) - 1))))
        else:
            requests.append((draw(sizes), draw(st.integers(0, 1))))
            live.append(num_tensors)
            num_tensors += 1
    return requests


@st.composite
def settings_strategy(draw: st.DrawFn) -> AllocatorSettings:
    limit = draw(st.none() | st.integers(mib(20), mib(300)))
    return AllocatorSettings(
        expandable_segments=draw(st.booleans()),
        capacity_bytes=draw(st.none() | st.integers(mib(20), mib(300))),
        limit_bytes=limit,
        roundup_power2_divisions=draw(st.sampled_from([0, 2, 8])),
        max_split_size_bytes=draw(st.none() | st.sampled_from([mib(21), mib(32)])),
        garbage_collection_threshold=draw(st.sampled_from([0.0, 0.5])) if limit is not None else 0.0,
    )


@given(requests=requests_strategy(), settings=settings_strategy())
def test_live_blocks_hold_their_requests_within_segments_and_apart(
    requests: list[Request], settings: AllocatorSettings
) -> None:
    trace = trace_of(requests)
    result = run_allocator(trace, settings)
    for end in range(1, len(result.addresses) + 1):
        ranges = present_ranges(result.segment_events[result.segment_events["event"] < end])
        live = {tensor: event for event, tensor in enumerate(trace.tensors[:end].tolist())}
        blocks = sorted(
            (int(result.addresses[event]), int(result.block_bytes[event]), tensor)
            for tensor, event in live.items()
            if trace.allocates[event] and result.block_bytes[event]
        )
        assert all(size >= trace.tensor_bytes[tensor] for _, size, tensor in blocks)
        assert all(first + size <= then for (first, size, _), (then, _, _) in itertools.pairwise(blocks))
        for address, size, tensor in blocks:
            owner = ranges[np.searchsorted(ranges["address"], address, side="right") - 1]
            assert address + size <= owner["address"] + owner["bytes"]
            assert owner["stream"] == trace.tensor_streams[tensor]


@given(requests=requests_strategy(), settings=settings_strategy())
def test_allocated_never_exceeds_reserved_nor_reserved_the_memory_there_is(
    requests: list[Request], settings: AllocatorSettings
) -> None:
    trace = trace_of(requests)
    result = run_allocator(trace, settings)
    events = slice(0, len(result.addresses))
    allocated = np.cumsum(np.where(trace.allocates[events], 1, -1) * result.block_bytes)
    reserved = np.cumsum(signed_bytes(result.segment_events))
    last_entry = np.searchsorted(result.segment_events["event"], np.arange(len(allocated)), side="right")
    assert (allocated <= np.append(0, reserved)[last_entry]).all()
    assert trace.requested_level()[events].max(initial=0) == result.requested_peak_bytes <= result.allocated_peak_bytes
    assert result.reserved_peak_bytes <= (settings.capacity_bytes or 1 << 60)
    assert result.reserved_peak_event in [*result.segment_events["event"].tolist(), 0]


@given(requests=requests_strategy(), settings=settings_strategy())
def test_after_everything_is_freed_an_emptied_cache_reserves_nothing(
    requests: list[Request], settings: AllocatorSettings
) -> None:
    allocator, blocks, num_tensors = CachingAllocator(settings), {}, 0
    for request in requests:
        if isinstance(request, int):
            if request in blocks:
                allocator.free(blocks.pop(request))
            continue
        block = allocator.allocate(max(512, int(rounded_bytes(request[0]))), stream=request[1])
        if block is not None:
            blocks[num_tensors] = block
        num_tensors += 1
    for block in blocks.values():
        allocator.free(block)
    allocator.empty_cache()
    assert allocator.reserved_bytes == 0
    assert len(present_ranges(allocator.log.to_array())) == 0


# --- traces -----------------------------------------------------------------------------------------------------------


def test_a_repeated_step_plays_its_events_again() -> None:
    trace = trace_of([(mib(3), 0), (mib(30), 0), (mib(4), 0), 1, 2]).repeated(begin=1, times=3)
    assert trace.tensors.tolist() == [0, 1, 2, 1, 2, 1, 2, 1, 2, 1, 2, 1, 2]
    assert trace.requested_level()[[0, 2, 4, 6, 8, 10, 12]].tolist() == [mib(3), *[mib(37), mib(3)] * 3]
    assert trace.tensors_at_end.tolist() == [0]
    assert run_allocator(trace, AllocatorSettings()).reserved_peak_bytes == mib(50)


def test_a_step_that_leaves_a_tensor_behind_cannot_be_repeated() -> None:
    with pytest.raises(SimulatorFault, match=r"tensor 1 is allocated while it lives \(event 3\)"):
        trace_of([(1, 0), (1, 0), 0]).repeated(begin=1, times=2)


# --- wrong input ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("requests", "message"),
    [
        ([(1, 0), 0, 0], r"tensor 0 is freed while it does not live \(event 2\)"),
        ([(-1, 0)], r"tensor_bytes\[0\] is -1"),
        ([(1, -1)], r"tensor_streams\[0\] is -1"),
        ([(1, 0), 1], r"tensors\[1\] is 1"),
    ],
)
def test_a_trace_that_makes_no_sense_is_refused(requests: list[Request], message: str) -> None:
    with pytest.raises(SimulatorFault, match=message):
        trace_of(requests)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"roundup_power2_divisions": 3}, "power of two from 2, not 3"),
        ({"max_split_size_bytes": mib(20)}, "must exceed 20971520"),
        ({"max_non_split_rounding_bytes": mib(19)}, "at least 20971520"),
        ({"garbage_collection_threshold": 0.5}, "limit_bytes, which is not set"),
        ({"garbage_collection_threshold": 1.0, "limit_bytes": 1}, r"in \[0, 1\), not 1.0"),
    ],
)
def test_settings_that_pytorch_refuses_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(SimulatorFault, match=message):
        AllocatorSettings(**settings)
