"""Records what PyTorch's own caching allocator does with random requests: `caching_allocator.json`.

Needs a CUDA build of PyTorch 2.10 (no GPU), and g++ with CUDA's headers. In a folder with `torch` (the unpacked wheel)
and `include` (CUDA 12 headers):

    g++ -fPIC -shared -Iinclude cuda_stand_in.cpp -o libcudart.so.12 -Wl,-soname,libcudart.so.12 \\
        -Wl,--version-script=<(echo 'libcudart.so.12 { global: *; };')
    g++ -std=c++17 -Itorch/include -Iinclude allocator_driver.cpp -o driver -Ltorch/lib -lc10 -lc10_cuda -L. \\
        -l:libcudart.so.12
    LD_LIBRARY_PATH=.:torch/lib python record_allocator.py ./driver caching_allocator.json

With a third argument, a number, it does not write but compares that many random cases with the model.
"""

from __future__ import annotations

import dataclasses
import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

from simulator.cost.allocator import run_allocator
from simulator.cost.allocator_settings import (
    LARGE_SEGMENT_BYTES,
    MEBIBYTE,
    MIN_BLOCK_BYTES,
    UNLIMITED_BYTES,
    AllocatorSettings,
)
from simulator.cost.segment_log import FIRST_ADDRESS
from tests.cost.allocations import Request, trace_of

NUM_CASES, MAX_EVENTS = 48, 80


def random_settings(rng: random.Random) -> AllocatorSettings:
    """Return settings of which each differs from the default in some cases."""
    chosen: dict[str, Any] = {"expandable_segments": rng.random() < 0.5}
    if rng.random() < 0.2:
        chosen["roundup_power2_divisions"] = rng.choice([2, 4, 8, 16])
    if rng.random() < 0.3:
        chosen["max_split_size_bytes"] = rng.choice([21, 32, 64, 128]) * MEBIBYTE
        chosen["max_non_split_rounding_bytes"] = rng.choice([20, 25, 40]) * MEBIBYTE
    if rng.random() < 0.6:
        chosen["capacity_bytes"] = rng.choice([100, 200, 400, 801, 1603]) * MEBIBYTE
    limit = rng.choice([75, 150, 300, 700]) * MEBIBYTE
    if rng.random() < 0.4 and limit < chosen.get("capacity_bytes", UNLIMITED_BYTES):
        chosen["limit_bytes"] = limit
        chosen["garbage_collection_threshold"] = rng.choice([0.0, 0.2, 0.5, 0.8])
    return AllocatorSettings(**chosen)


def random_requests(rng: random.Random, *, num_events: int) -> list[Request]:
    """Return allocations (bytes, stream) and frees (number of the allocation), some sizes more than once."""
    requests: list[Request] = []
    live: list[int] = []
    num_tensors, num_streams, share_freed = 0, rng.choice([1, 1, 2, 3]), rng.choice([0.35, 0.45, 0.5, 0.6])
    sizes = [int(2 ** rng.uniform(5, 28)) for _ in range(rng.randint(2, 20))]
    newest_first = rng.random() < 0.3
    for _ in range(num_events):
        if live and rng.random() < share_freed:
            requests.append(live.pop(-1 if newest_first else rng.randrange(len(live))))
        else:
            size = rng.choice(sizes) if rng.random() < 0.7 else int(2 ** rng.uniform(0, 29))
            requests.append((size, rng.randrange(num_streams)))
            live.append(num_tensors)
            num_tensors += 1
    return requests


def play(driver: str, requests: list[Request], settings: AllocatorSettings) -> dict[str, Any]:
    """Return what PyTorch's allocator does, up to the first request that it cannot serve."""
    capacity = UNLIMITED_BYTES if settings.capacity_bytes is None else settings.capacity_bytes
    environment = dict(os.environ, STAND_IN_CAPACITY=str(capacity), PYTORCH_ALLOC_CONF=_configuration(settings))
    if settings.limit_bytes is not None:
        environment["MEMORY_FRACTION"] = repr((settings.limit_bytes + 0.5) / capacity)
    lines, num_tensors = [], 0
    for request in requests:
        if isinstance(request, int):
            lines.append(f"f {request}")
        else:
            lines.append(f"a {num_tensors} {request[0]} {request[1]}")
            num_tensors += 1
    done = subprocess.run([driver], input="\n".join(lines), capture_output=True, text=True, env=environment, check=True)
    rows = [[int(field) for field in line.split()] for line in done.stdout.splitlines()]
    failed = next((event for event, row in enumerate(rows) if row[0] == 0), None)
    played = rows if failed is None else rows[: failed + 1]
    return {
        "blocks": [(row[0] - FIRST_ADDRESS) // MIN_BLOCK_BYTES for row in rows[:failed]],
        "out_of_memory": failed,
        "num_retries": played[-1][1],
        "allocated_peak_bytes": played[-1][2],
        "requested_peak_bytes": played[-1][3],
        "reserved_peak_bytes": played[-1][4],
    }


def _configuration(settings: AllocatorSettings) -> str:
    options: dict[str, object] = {"expandable_segments": settings.expandable_segments}
    if settings.roundup_power2_divisions:
        options["roundup_power2_divisions"] = settings.roundup_power2_divisions
    if settings.max_split_size_bytes is not None:
        options["max_split_size_mb"] = settings.max_split_size_bytes // MEBIBYTE
    if settings.max_non_split_rounding_bytes != LARGE_SEGMENT_BYTES:
        options["max_non_split_rounding_mb"] = settings.max_non_split_rounding_bytes // MEBIBYTE
    if settings.garbage_collection_threshold:
        options["garbage_collection_threshold"] = settings.garbage_collection_threshold
    return ",".join(f"{name}:{value}" for name, value in options.items())


def main() -> None:
    """Record, or compare."""
    driver, path = sys.argv[1:3]
    if len(sys.argv) > 3:
        compare(driver, num_cases=int(sys.argv[3]))
        return
    cases = []
    for seed in range(NUM_CASES):
        rng = random.Random(seed)
        settings = random_settings(rng)
        requests = random_requests(rng, num_events=MAX_EVENTS)
        expected = play(driver, requests, settings)
        if expected["out_of_memory"] is not None:
            requests = requests[: expected["out_of_memory"] + 1]
        defaults = dataclasses.asdict(AllocatorSettings())
        chosen = {name: value for name, value in dataclasses.asdict(settings).items() if value != defaults[name]}
        cases.append(json.dumps({"settings": chosen, "requests": requests, "expected": expected}))
    Path(path).write_text("[\n" + ",\n".join(cases) + "\n]\n")


def compare(driver: str, *, num_cases: int) -> None:
    """Print how many random cases differ between PyTorch and the model, and the first of them."""
    num_events, different = 0, []
    for seed in range(num_cases):
        rng = random.Random(f"compare {seed}")
        settings = random_settings(rng)
        requests = random_requests(rng, num_events=rng.choice([20, 100, 500, 2_000]))
        expected, run = play(driver, requests, settings), run_allocator(trace_of(requests), settings)
        num_events += len(expected["blocks"])
        counted = ("num_retries", "allocated_peak_bytes", "requested_peak_bytes", "reserved_peak_bytes")
        same = ((run.addresses - FIRST_ADDRESS) // MIN_BLOCK_BYTES).tolist() == expected["blocks"]
        if not same or any(getattr(run, name) != expected[name] for name in counted):
            different.append((seed, settings))
    print(f"{num_cases} cases, {num_events:,} events, {len(different)} differ", *different[:1])


if __name__ == "__main__":
    main()
