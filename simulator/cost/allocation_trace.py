"""What one rank allocates and frees, in program order: the input of the allocator model and of memory snapshots.

A trace is arrays, not objects: a step of a deep pipeline has a million events and a few hundred distinct labels.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from simulator.cost.memory import Memory
from simulator.errors import SimulatorFault

IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]

NO_LAYER = -1
"""Layer number of a tensor that belongs to none: embeddings, logits, buckets over several layers."""
MAX_BYTES = 1 << 52
"""Largest tensor, 4 PiB: all states of the largest model on one rank have their place in a layout that does not fit."""
MAX_STREAMS = 1 << 8
"""Most streams; addresses must stay in 64 bits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorLabel:
    """What many tensors have in common; the layer and the action of each stand in the trace's arrays."""

    name: str
    """The tensor as its operator calls it: `query`, `attention output`."""
    category: Memory
    """What it is for."""
    operator: str
    """Operator that allocates it: `attention.qkv`; `optimizer` for states."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class AllocationTrace:
    """Allocations and frees of one rank, in program order.

    Only what PyTorch's allocator serves: the device context and NCCL's own buffers are not here. A tensor that other
    streams still read is freed by the event at which they have finished, not where the program drops it. A tensor may
    be allocated again after it was freed, so a second step is the same events once more.
    """

    tensors: IntArray
    """Number of the tensor, shape [events]."""
    allocates: BoolArray
    """Whether the tensor is allocated (else freed), shape [events]."""
    tensor_bytes: IntArray
    """Bytes that the program asks for, shape [tensors]."""
    tensor_streams: IntArray
    """Number of the stream on which the tensor is allocated, shape [tensors]."""
    tensor_labels: IntArray
    """Number of the label, shape [tensors]."""
    tensor_layers: IntArray
    """Number of the layer or `NO_LAYER`, shape [tensors]."""
    tensor_actions: IntArray
    """Number of the action that allocates the tensor, shape [tensors]."""
    labels: tuple[TensorLabel, ...]
    """Each label once."""
    actions: tuple[str, ...]
    """Each action once, with its microbatch: `resident`, `forward 3`, `backward 3`, `optimizer`."""

    def __post_init__(self) -> None:
        """Checks that the arrays fit together.

        Raises:
            SimulatorFault: lengths differ, a number is out of range, or a tensor is freed before it is allocated or
                allocated twice.
        """
        problem = self._problem()
        if problem:
            raise SimulatorFault(f"allocation trace: {problem}")

    @property
    def num_events(self) -> int:
        """Allocations and frees."""
        return len(self.tensors)

    @property
    def num_tensors(self) -> int:
        """Distinct tensors."""
        return len(self.tensor_bytes)

    @property
    def tensors_at_end(self) -> IntArray:
        """Numbers of the tensors that are not freed, ascending."""
        balance = np.zeros(self.num_tensors, dtype=np.int64)
        np.add.at(balance, self.tensors, np.where(self.allocates, 1, -1))
        return np.flatnonzero(balance)

    def requested_level(self) -> IntArray:
        """Returns the bytes that live tensors asked for, after each event, shape [events]."""
        sizes = self.tensor_bytes[self.tensors]
        return np.cumsum(np.where(self.allocates, sizes, -sizes))

    def repeated(self, *, begin: int, times: int) -> AllocationTrace:
        """Returns the trace with its events from `begin` on played so many times: one step as several.

        Raises:
            SimulatorFault: those events leave a tensor allocated that they allocate, or free one from before.
        """
        parts = [np.arange(begin), *[np.arange(begin, self.num_events)] * times]
        events = np.concatenate(parts).astype(np.int64)
        return dataclasses.replace(self, tensors=self.tensors[events], allocates=self.allocates[events])

    def _problem(self) -> str | None:
        tensor_arrays = {
            "tensor_streams": self.tensor_streams,
            "tensor_labels": self.tensor_labels,
            "tensor_layers": self.tensor_layers,
            "tensor_actions": self.tensor_actions,
        }
        if len(self.allocates) != self.num_events:
            return f"{self.num_events} tensors, {len(self.allocates)} directions of events"
        for name, array in tensor_arrays.items():
            if len(array) != self.num_tensors:
                return f"{name} has {len(array)} entries for {self.num_tensors} tensors"
        ranges = {
            "tensors": (self.tensors, 0, self.num_tensors),
            "tensor_bytes": (self.tensor_bytes, 0, MAX_BYTES + 1),
            "tensor_streams": (self.tensor_streams, 0, MAX_STREAMS),
            "tensor_labels": (self.tensor_labels, 0, len(self.labels)),
            "tensor_layers": (self.tensor_layers, NO_LAYER, 1 << 31),
            "tensor_actions": (self.tensor_actions, 0, len(self.actions)),
        }
        for name, (array, low, high) in ranges.items():
            wrong = np.flatnonzero((array < low) | (array >= high))
            if len(wrong):
                return f"{name}[{wrong[0]}] is {array[wrong[0]]}, not in {low}..{high - 1}"
        return self._order_problem()

    def _order_problem(self) -> str | None:
        """Returns what is wrong with the order of one tensor's events: allocate, free, allocate, free..."""
        order = np.argsort(self.tensors, kind="stable")
        tensors, allocates = self.tensors[order], self.allocates[order]
        first = np.append(True, tensors[1:] != tensors[:-1])[: len(tensors)]
        wrong = np.where(first, ~allocates, np.append(False, allocates[1:] == allocates[:-1])[: len(tensors)])
        if not wrong.any():
            return None
        event = int(order[wrong].min())
        again = "is allocated while it lives" if self.allocates[event] else "is freed while it does not live"
        return f"tensor {self.tensors[event]} {again} (event {event})"
