"""Measures the allocator model on a pipeline step: events a second, with segments of both kinds.

Run `python benchmarks/allocator.py [microbatches]`; the default, 2,600, makes a million events.
"""

from __future__ import annotations

import sys
import time

import numpy as np

from simulator.cost.allocation_trace import NO_LAYER, AllocationTrace, TensorLabel
from simulator.cost.allocator import run_allocator
from simulator.cost.allocator_settings import MEBIBYTE, AllocatorSettings
from simulator.cost.memory import Memory

LAYERS, STAGES_AFTER = 10, 7
SAVED_BYTES = (64 * MEBIBYTE, 192 * MEBIBYTE, 64 * MEBIBYTE, 64 * MEBIBYTE, 4 * MEBIBYTE, 512 * 1024, 224 * MEBIBYTE)
TEMPORARY_BYTES = (64 * MEBIBYTE, 224 * MEBIBYTE, 8 * MEBIBYTE + 4096, 131_072, 3000)
GRADIENT_BYTES = (64 * MEBIBYTE, 64 * MEBIBYTE, 448 * MEBIBYTE)


def pipeline_step(num_microbatches: int) -> AllocationTrace:
    """Return a 1F1B step of one rank: states, then forwards that keep tensors and backwards that free them."""
    tensors: list[int] = []
    allocates: list[bool] = []
    sizes: list[int] = []

    def allocate(size: int) -> int:
        sizes.append(size)
        tensors.append(len(sizes) - 1)
        allocates.append(True)
        return len(sizes) - 1

    def free(tensor: int) -> None:
        tensors.append(tensor)
        allocates.append(False)

    for layer in range(LAYERS):
        for size in (400 * MEBIBYTE, 800 * MEBIBYTE, 8192 * (layer + 1)):
            allocate(size)
    kept: dict[int, list[list[int]]] = {}

    def forward(microbatch: int) -> None:
        kept[microbatch] = []
        for _ in range(LAYERS):
            kept[microbatch].append([allocate(size) for size in SAVED_BYTES])
            for size in TEMPORARY_BYTES:
                free(allocate(size))

    def backward(microbatch: int) -> None:
        for saved in reversed(kept.pop(microbatch)):
            gradients = [allocate(size) for size in GRADIENT_BYTES]
            for size in TEMPORARY_BYTES:
                free(allocate(size))
            for tensor in [*reversed(saved), *gradients]:
                free(tensor)

    warmup = min(STAGES_AFTER, num_microbatches)
    for microbatch in range(warmup):
        forward(microbatch)
    for microbatch in range(num_microbatches):
        if microbatch + warmup < num_microbatches:
            forward(microbatch + warmup)
        backward(microbatch)
    zeros = np.zeros(len(sizes), dtype=np.int64)
    return AllocationTrace(
        tensors=np.array(tensors, dtype=np.int64),
        allocates=np.array(allocates),
        tensor_bytes=np.array(sizes, dtype=np.int64),
        tensor_streams=zeros,
        tensor_labels=zeros,
        tensor_layers=zeros + NO_LAYER,
        tensor_actions=zeros,
        labels=(TensorLabel(name="tensor", category=Memory.ACTIVATIONS, operator="layer"),),
        actions=("step",),
    )


def main() -> None:
    """Print what one run takes."""
    num_microbatches = int(sys.argv[1]) if len(sys.argv) > 1 else 2_600
    begin = time.perf_counter()
    trace = pipeline_step(num_microbatches)
    print(f"{trace.num_events:,} events, {trace.num_tensors:,} tensors; built in {time.perf_counter() - begin:.2f} s")
    for expandable in (False, True):
        begin = time.perf_counter()
        run = run_allocator(trace, AllocatorSettings(expandable_segments=expandable))
        seconds = time.perf_counter() - begin
        allocated, reserved = run.allocated_peak_bytes / 2**30, run.reserved_peak_bytes / 2**30
        print(
            f"{'expandable' if expandable else 'default':>10} segments: {seconds:5.2f} s, "
            f"{trace.num_events / seconds / 1e6:.2f} million events/s; "
            f"allocated {allocated:.3f} GiB, reserved {reserved:.3f} GiB"
        )


if __name__ == "__main__":
    main()
