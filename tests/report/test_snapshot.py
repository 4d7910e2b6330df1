"""Memory snapshots: what they say is what the allocator did, and PyTorch's own viewer reads them."""

from __future__ import annotations

import base64
import json
import pickle
import pickletools
import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.cost.allocation_trace import NO_LAYER, AllocationTrace, TensorLabel
from simulator.cost.allocator import run_allocator
from simulator.cost.allocator_settings import MEBIBYTE, AllocatorSettings
from simulator.cost.memory import MEMORY, Memory
from simulator.cost.resident import OUTSIDE_ALLOCATOR
from simulator.errors import SimulatorFault
from simulator.report.recording import record_class, snapshot_with_peak
from simulator.report.snapshot import Recording, memory_snapshot, memory_snapshot_bytes
from simulator.simulate import run_steps
from tests.cost.allocations import Request, trace_of
from tests.system.jobs import tiny

READ_BY_THE_PAGE = {
    "APPEND", "APPENDS", "BINFLOAT", "BINGET", "BININT", "BININT1", "BININT2", "BINPUT", "BINUNICODE", "DICT",
    "EMPTY_DICT", "EMPTY_LIST", "EMPTY_TUPLE", "FRAME", "LIST", "LONG1", "LONG_BINGET", "LONG_BINPUT", "MARK",
    "MEMOIZE", "NEWFALSE", "NEWTRUE", "NONE", "PROTO", "SETITEM", "SETITEMS", "SHORT_BINUNICODE", "STOP", "TUPLE",
    "TUPLE1", "TUPLE2", "TUPLE3",
}  # fmt: skip
"""Opcodes in `unpickle` of PyTorch's `torch/utils/viz/MemoryViz.js`; any other is an error there."""


def record(trace: AllocationTrace, times_us: Any = None, **settings: Any) -> Recording:
    chosen = AllocatorSettings(**settings)
    return Recording(trace=trace, run=run_allocator(trace, chosen), settings=chosen, times_us=times_us)


def one_layer() -> AllocationTrace:
    """A weight that stays, an activation of layer 3 that goes, and logits of no layer."""
    mib = MEBIBYTE
    return AllocationTrace(
        tensors=np.array([0, 1, 2, 2, 1]),
        allocates=np.array([True, True, True, False, False]),
        tensor_bytes=np.array([6 * mib, 5 * mib + 1, 30 * mib]),
        tensor_streams=np.array([0, 0, 0]),
        tensor_labels=np.array([0, 1, 2]),
        tensor_layers=np.array([3, 3, NO_LAYER]),
        tensor_actions=np.array([0, 1, 1]),
        labels=(
            TensorLabel(name="weight", category=Memory.PARAMETERS, operator="attention.qkv"),
            TensorLabel(name="query", category=Memory.ACTIVATIONS, operator="attention.qkv"),
            TensorLabel(name="logits", category=Memory.LOGITS, operator="head"),
        ),
        actions=("resident", "forward 0"),
    )


def replay(snapshot: dict[str, Any]) -> tuple[int, dict[int, int]]:
    """Return the peak of the active memory timeline and the blocks at its end, as the page computes them."""
    level, peak, live = 0, 0, {}
    for entry in snapshot["device_traces"][0]:
        if entry["action"] == "alloc":
            live[entry["addr"]] = entry["size"]
            level += entry["size"]
        elif entry["action"] == "free_completed":
            level -= live.pop(entry["addr"])
        peak = max(peak, level)
    return peak, live


def active_blocks(snapshot: dict[str, Any]) -> dict[int, int]:
    return {
        block["address"]: block["requested_size"]
        for segment in snapshot["segments"]
        for block in segment["blocks"]
        if block["state"] == "active_allocated"
    }


def test_an_entry_says_which_tensor_of_which_operator_layer_and_action_it_is() -> None:
    snapshot = memory_snapshot(record(one_layer()))
    query = next(entry for entry in snapshot["device_traces"][0] if entry["size"] == 5 * MEBIBYTE + 1)
    lines = [f"{frame['filename']}:{frame['line']}:{frame['name']}" for frame in query["frames"]]
    assert lines == ["attention.qkv:0:query", "layer:3:forward 0", "category:0:activations"]
    assert query["category"] == "activations"
    logits = next(entry for entry in snapshot["device_traces"][0] if entry["category"] == "logits")
    assert logits["frames"][1] == {"filename": "step", "line": 0, "name": "forward 0"}


def test_the_history_tells_segments_before_the_blocks_in_them_and_frees_twice() -> None:
    history = memory_snapshot(record(one_layer()))["device_traces"][0]
    assert [entry["action"] for entry in history] == [
        "segment_alloc", "alloc", "alloc", "segment_alloc", "alloc",
        "free_requested", "free_completed", "free_requested", "free_completed", "snapshot",
    ]  # fmt: skip


def test_expandable_segments_are_told_as_maps() -> None:
    history = memory_snapshot(record(one_layer(), expandable_segments=True))["device_traces"][0]
    assert [entry["size"] for entry in history if entry["action"] == "segment_map"] == [20 * MEBIBYTE, 40 * MEBIBYTE]


def test_times_are_those_of_the_events_and_else_their_numbers() -> None:
    times = np.array([5, 10, 20, 40, 80])
    assert [entry["time_us"] for entry in memory_snapshot(record(one_layer(), times))["device_traces"][0]] == [
        5, 5, 10, 20, 20, 40, 40, 80, 80, 80,
    ]  # fmt: skip
    assert memory_snapshot(record(one_layer()))["device_traces"][0][-1]["time_us"] == 4
    with pytest.raises(SimulatorFault, match="1 times for 5 events"):
        memory_snapshot(record(one_layer(), np.array([0])))


def test_a_request_that_fails_is_the_last_thing_told() -> None:
    recording = record(one_layer(), capacity_bytes=40 * MEBIBYTE)
    entry = memory_snapshot(recording)["device_traces"][0][-2]
    assert (entry["action"], entry["size"], entry["device_free"]) == ("oom", 30 * MEBIBYTE, 20 * MEBIBYTE)
    assert entry["frames"][0]["name"] == "logits"


def test_a_snapshot_can_be_taken_at_the_peak() -> None:
    recording = record(one_layer())
    snapshot = memory_snapshot(recording, until_event=recording.run.allocated_peak_event)
    assert sum(segment["allocated_size"] for segment in snapshot["segments"]) == recording.run.allocated_peak_bytes
    assert sum(segment["total_size"] for segment in snapshot["segments"]) == recording.run.reserved_peak_bytes
    assert len(snapshot["device_traces"][0]) == 6
    with pytest.raises(SimulatorFault, match="until event 5 of 5 events"):
        memory_snapshot(recording, until_event=5)


def test_a_short_history_keeps_the_last_entries_and_whole_events() -> None:
    history = memory_snapshot(record(one_layer()), max_entries=6)["device_traces"][0]
    assert [entry["action"] for entry in history] == ["free_requested", "free_completed"] * 2 + ["snapshot"]
    assert len(memory_snapshot(record(one_layer()), max_entries=7)["device_traces"][0]) == 7


@st.composite
def requests_strategy(draw: st.DrawFn) -> list[Request]:
    requests: list[Request] = []
    live: list[int] = []
    num_tensors = 0
    for _ in range(draw(st.integers(1, 40))):
        if live and draw(st.booleans()):
            requests.append(live.pop(draw(st.integers(0, len(live) - 1))))
        else:
            requests.append((draw(st.integers(0, 4096) | st.integers(0, 40 * MEBIBYTE)), draw(st.integers(0, 1))))
            live.append(num_tensors)
            num_tensors += 1
    return requests


@given(requests=requests_strategy(), expandable=st.booleans(), capacity_mib=st.none() | st.integers(20, 200))
def test_history_blocks_and_segments_agree_with_each_other_and_with_the_run(
    requests: list[Request], expandable: bool, capacity_mib: int | None
) -> None:
    capacity = None if capacity_mib is None else capacity_mib * MEBIBYTE
    recording = record(trace_of(requests), expandable_segments=expandable, capacity_bytes=capacity)
    snapshot = memory_snapshot(recording)
    peak, live = replay(snapshot)
    assert peak == recording.run.requested_peak_bytes
    assert live == active_blocks(snapshot)
    reserved, reserved_peak = 0, 0
    for entry in snapshot["device_traces"][0]:
        if entry["action"].startswith("segment"):
            comes = entry["action"] in ("segment_alloc", "segment_map")
            reserved += entry["size"] if comes else -entry["size"]
            reserved_peak = max(reserved, reserved_peak)
    assert reserved == sum(segment["total_size"] for segment in snapshot["segments"])
    assert reserved_peak == recording.run.reserved_peak_bytes
    for segment in snapshot["segments"]:
        ends = np.cumsum([segment["address"], *(block["size"] for block in segment["blocks"])]).tolist()
        assert [block["address"] for block in segment["blocks"]] == ends[:-1]
        assert all(block["size"] for block in segment["blocks"])
        assert ends[-1] == segment["address"] + segment["total_size"]
        assert [int(float(end)) for end in ends] == ends  # the page knows floating-point numbers only


@given(requests=requests_strategy(), max_entries=st.integers(1, 100))
def test_the_page_can_read_the_file(requests: list[Request], max_entries: int) -> None:
    content = memory_snapshot_bytes(record(trace_of(requests)), max_entries=max_entries)
    opcodes = {opcode.name for opcode, _, _ in pickletools.genops(content)}
    assert opcodes <= READ_BY_THE_PAGE
    assert content[:2] == b"\x80\x04"
    history = pickle.loads(content)["device_traces"][0]
    assert len(history) <= max_entries
    assert any(entry["category"] == "unknown" for entry in history)


@pytest.mark.parametrize("settings", [{}, {"expandable_segments": True}, {"capacity_bytes": 40 * MEBIBYTE}])
def test_pytorchs_own_viewer_shows_the_same_peak(settings: dict[str, Any]) -> None:
    pytest.importorskip("torch")
    from torch.cuda import _memory_viz

    recording = record(one_layer(), **settings)
    snapshot = pickle.loads(memory_snapshot_bytes(recording))
    assert replay(shown_by(_memory_viz.trace_plot(snapshot)))[0] == recording.run.requested_peak_bytes
    assert _memory_viz.segment_plot(snapshot)

    live = recording.trace.tensors_at_end if recording.run.out_of_memory is None else np.array([0, 1])
    in_use = sum(_memory_viz.calc_active(segment) for segment in snapshot["segments"])
    requested = int(recording.trace.tensor_bytes[live].sum())
    assert 0 <= in_use - requested < 512 * len(live)
    assert f"total_allocated: {_memory_viz.Bytes(requested)}" in _memory_viz.segsum(snapshot)
    flames = _memory_viz.memory(snapshot, format_flamegraph=lambda lines: lines)
    assert "stream_0;active_allocated;category:0:parameters;layer:3:resident;attention.qkv:0:weight 6291456" in flames
    told = _memory_viz.trace(snapshot)
    assert ("OutOfMemoryError" in told) == (recording.run.out_of_memory is not None)


def test_pytorchs_own_viewer_shows_the_peak_of_a_simulated_job() -> None:
    """Of each pipeline rank what the engine's counters say, without context and communicators."""
    pytest.importorskip("torch")
    from torch.cuda import _memory_viz

    simulated = run_steps(tiny(pp=2, tp=2, microbatches=6))
    for number, peak in enumerate(simulated.timeline.counter_peaks):
        recording = record_class(simulated, str(number))
        outside = sum(peak.at_peak[MEMORY.index(category)] for category in OUTSIDE_ALLOCATOR)
        snapshot = pickle.loads(snapshot_with_peak(recording))
        assert replay(shown_by(_memory_viz.trace_plot(snapshot)))[0] == peak.total - outside
        flames = _memory_viz.memory(snapshot, format_flamegraph=lambda lines: lines)
        assert f"category:0:optimizer;step:0:resident;resident:0:optimizer states of stage {number} " in flames


def shown_by(page: str) -> dict[str, Any]:
    """Return the snapshot that a page of the viewer has inside."""
    files = json.loads(re.search(r"const local_files = (.*)", page)[1])
    return pickle.loads(base64.b64decode(files[0]["base64"]))
