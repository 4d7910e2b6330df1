"""Short traces for tests of the allocator."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from simulator.cost.allocation_trace import NO_LAYER, AllocationTrace, TensorLabel
from simulator.cost.memory import Memory

Request = int | tuple[int, int]
"""An allocation (bytes, stream), or the free of the tensor with this number: they are numbered as they come."""


def trace_of(requests: Sequence[Request | Sequence[int]]) -> AllocationTrace:
    """Return the trace of some requests; all tensors have one label."""
    tensors, sizes, streams = [], [], []
    for request in requests:
        if isinstance(request, int):
            tensors.append(request)
        else:
            tensors.append(len(sizes))
            sizes.append(request[0])
            streams.append(request[1])
    zeros = np.zeros(len(sizes), dtype=np.int64)
    return AllocationTrace(
        tensors=np.array(tensors, dtype=np.int64),
        allocates=np.array([not isinstance(request, int) for request in requests], dtype=np.bool_),
        tensor_bytes=np.array(sizes, dtype=np.int64),
        tensor_streams=np.array(streams, dtype=np.int64),
        tensor_labels=zeros,
        tensor_layers=zeros + NO_LAYER,
        tensor_actions=zeros,
        labels=(TensorLabel(name="tensor", category=Memory.TEMPORARY, operator="operator"),),
        actions=("step",),
    )
