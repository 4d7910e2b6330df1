"""What a running communication kernel takes from the compute beside it (E4.17).

A kernel of NCCL runs one block, and so occupies one multiprocessor, for each of its 2 to 32 channels; it takes as many
as its rate needs. Every byte that a rank sends or reduces also passes its memory two or three times. Engines that copy
without multiprocessors (TPU links, copy engines) take none of them.
"""

from __future__ import annotations

from math import ceil

from simulator.cluster.cluster import Accelerator
from simulator.cost.collectives.traffic import NONE_TAKEN, Interference
from simulator.parallel.collective_choice import Collective

CHANNEL_BYTES_PER_S = 24e9
"""What one multiprocessor copies to a neighbour. Source: NCCL src/graph/tuning.cc, a channel of A100; the expert
kernels of DeepEP are measured at 20 to 30 GB/s a multiprocessor (docs/accuracy.md). With it NVLink of an H100 takes 17
of 132 multiprocessors and a 400 Gb/s network 2 to 3, near calculon's 15 % and 2 % (E4.17)."""
FEWEST_CHANNELS, MOST_CHANNELS = 2, 32
"""Source: E4.17; NCCL's MAXCHANNELS for one collective on NVLink."""

MEMORY_PASSES = {
    Collective.ALL_REDUCE: 2.5,
    Collective.REDUCE_SCATTER: 3.0,
    Collective.ALL_GATHER: 2.0,
    Collective.BROADCAST: 2.0,
    Collective.ALL_TO_ALL: 2.0,
    Collective.SEND: 2.0,
}
"""Bytes that pass memory for each byte sent. Derived: what arrives is written and what leaves is read; a reduction also
reads the part that it adds to; an all-reduce is half of each."""


def interference_of(
    collective: Collective, sent_bytes: int, seconds: float, accelerator: Accelerator, *, uses_multiprocessors: bool
) -> Interference:
    """Returns the shares of multiprocessors and memory bandwidth that a collective takes while it runs alone.

    An all-gather at 390 GB/s on an H100: 17 of 132 multiprocessors (0.129) and 780 of 3,350 GB/s (0.233).

    Args:
        collective: which.
        sent_bytes: of a rank, over all tiers.
        seconds: that it takes alone.
        accelerator: whose.
        uses_multiprocessors: false where other engines move the bytes.
    """
    if seconds <= 0:
        return NONE_TAKEN
    rate = sent_bytes / seconds
    memory = min(1.0, MEMORY_PASSES[collective] * rate / accelerator.memory_bandwidth_bytes_per_s)
    if not uses_multiprocessors or accelerator.num_multiprocessors is None:
        return Interference(memory_fraction=memory)
    channels = min(MOST_CHANNELS, max(FEWEST_CHANNELS, ceil(rate / CHANNEL_BYTES_PER_S)))
    share = min(1.0, channels / accelerator.num_multiprocessors)
    return Interference(multiprocessors_fraction=share, memory_fraction=memory)
