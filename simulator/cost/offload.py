"""What a rank keeps outside its device, and the bytes that cross its host link for it (E3.14).

| place | optimizer | parameters (zero 3) | activations |
| --- | --- | --- | --- |
| device | gradients, weights | a layer's shard while it is used | those of the layer at work and of the next |
| host memory | master weights, moments, the gradients and weights that travel | shards of the weights | kept ones |
| NVMe | master weights, moments | shards of the weights | kept ones |

The update runs on the host, as in ZeRO-Offload: gradients of the rank's shard go down once a step, the host's cores
read and write the states at the bandwidth of its memory, updated weights go up. Streaming states to the device
instead would move 2 x 12 bytes a parameter over the link, the host's update 2 + 2. Gradients stay allocated on the
device until they are reduced (Megatron-LM's hybrid optimizer): ZeRO-Offload's host accumulation over microbatches is
left out.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from simulator.cluster.cluster import Cluster
from simulator.cost.states import (
    ZERO_SHARDS_WEIGHTS,
    StateBytes,
    resident_bytes,
    shard,
    shard_group_of,
    updated_elements,
)
from simulator.cost.update import update_traffic_bytes
from simulator.errors import SimulatorFault
from simulator.model.tensors import Weight
from simulator.parallel.degrees import Degrees, Int
from simulator.parallel.sharding import local_elements
from simulator.parallel.training import Training

UPDATE_TILES = 8
"""Pieces of the update on the host: transfers of one piece run beside the arithmetic of the next (Ren 2021, section
4.1). Derived: so many that filling and draining that pipeline costs an eighth."""
WINDOWS = 2
"""Buffers of a stream of pieces: one is used while the next is filled."""


class HostResource(StrEnum):
    """What all ranks of a node load alike; every rank has its share."""

    LINK_DOWN = "host link down"
    """From the device to host memory."""
    LINK_UP = "host link up"
    """From host memory to the device."""
    MEMORY = "host memory"
    """Bandwidth of host memory, for the update on the host and for what comes and goes."""
    NVME = "nvme"
    """Bandwidth of the node's drives, reading and writing together."""


HOST_RESOURCES = tuple(HostResource)


def host_bytes_per_s(cluster: Cluster, *, ranks_per_node: int) -> dict[HostResource, float]:
    """Returns the share of one rank in each host resource, where the cluster's profile knows it.

    Each device has its own link; memory and drives are shared by the ranks of a node, which load them alike: 4 devices
    of a GB200 tray with links of 0.8 x 450 GB/s share 1 TB/s of memory, 250 GB/s each.
    """
    host, link = cluster.host, cluster.accelerator.reached_host_bandwidth_bytes_per_s
    found = {HostResource.LINK_DOWN: link, HostResource.LINK_UP: link}
    if host.memory_bandwidth_bytes_per_s is not None:
        found[HostResource.MEMORY] = host.memory_bandwidth_bytes_per_s / ranks_per_node
    if host.nvme_bandwidth_bytes_per_s is not None:
        found[HostResource.NVME] = host.nvme_bandwidth_bytes_per_s / ranks_per_node
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class OffloadedStates:
    """States of a rank's share of a stage outside its device, and what an update of them moves."""

    host_bytes: Int = 0
    """Host memory that the rank holds all the time."""
    nvme_bytes: Int = 0
    """The same on NVMe."""
    gradients_down_bytes: Int = 0
    """Gradients of the rank's shard that go to the host, once a step."""
    weights_up_bytes: Int = 0
    """Updated weights that come back, once a step; 0 if weights live on the host."""
    update_bytes: Int = 0
    """Traffic of host memory by the update."""
    nvme_read_bytes: Int = 0
    """States read from NVMe for the update."""
    nvme_written_bytes: Int = 0
    """States, and weights that live there, written back."""

    def __add__(self, other: OffloadedStates) -> OffloadedStates:
        names = OffloadedStates.__dataclass_fields__
        return OffloadedStates(**{name: getattr(self, name) + getattr(other, name) for name in names})

    def times(self, count: int) -> OffloadedStates:
        """Returns the sum of `count` such states."""
        names = OffloadedStates.__dataclass_fields__
        return OffloadedStates(**{name: getattr(self, name) * count for name in names})


NOTHING_OUTSIDE = OffloadedStates()


def resident_states(states: StateBytes, training: Training) -> StateBytes:
    """Returns the part of a rank's states that stays on its device."""
    offload = training.offload
    return StateBytes(
        parameters=states.parameters if offload.parameters == "none" else 0,
        gradients=states.gradients,
        optimizer=states.optimizer if offload.optimizer == "none" else 0,
    )


def offloaded_states(
    weights: Iterable[Weight], states: StateBytes, degrees: Degrees, training: Training, *, vocab_padding: int
) -> OffloadedStates:
    """Returns what lies outside the device of a rank's states, and what the update moves.

    ZeRO-Offload, a parameter of the rank's shard: 12 bytes of states in host memory, and buffers of 2 bytes for its
    gradient and its weight; 2 bytes down, 2 bytes up, 28 of host memory traffic, each N/n_d times (bf16 gradients).
    NVMe instead of host memory: states read and written once, two pieces of them in host memory at a time.
    Source: E3.14; Ren 2021 (ZeRO-Offload); Rajbhandari 2021 (ZeRO-Infinity), section 5.

    Args:
        weights: of the stage.
        states: all of the rank's states of the stage, wherever they lie.
        degrees: the cuts.
        training: the recipe.
        vocab_padding: as in `local_elements`.
    """
    offload = training.offload
    weights = tuple(weights)
    total = NOTHING_OUTSIDE
    if offload.parameters != "none":
        kept = fetched_bytes(weights, degrees, training, vocab_padding=vocab_padding)
        total += OffloadedStates(**{_place(offload.parameters): kept})
    if offload.optimizer == "none":
        return total
    trained = [weight for weight in weights if weight.trained]
    gradients = gradient_shard_bytes(trained, degrees, training, vocab_padding=vocab_padding)
    updated = sum(
        resident_bytes(weight, updated_elements(weight, degrees, vocab_padding=vocab_padding), training)
        for weight in trained
    )
    on_nvme = offload.optimizer == "nvme"
    kept = states.optimizer
    window = -(-kept // UPDATE_TILES) * WINDOWS if on_nvme else 0
    stays = offload.parameters != "none"
    return total + OffloadedStates(
        host_bytes=gradients + window + (0 if on_nvme else kept) + (0 if offload.parameters == "cpu" else updated),
        nvme_bytes=kept if on_nvme else 0,
        gradients_down_bytes=gradients,
        weights_up_bytes=0 if stays else updated,
        update_bytes=update_traffic_bytes(trained, degrees, training, vocab_padding=vocab_padding),
        nvme_read_bytes=kept if on_nvme else 0,
        nvme_written_bytes=(kept if on_nvme else 0) + (updated if offload.parameters == "nvme" else 0),
    )


def fetched_bytes(weights: Iterable[Weight], degrees: Degrees, training: Training, *, vocab_padding: int) -> Int:
    """Returns the bytes of a rank's shard of a layer's weights that come up from the host for each use.

    Forward and backward, every microbatch: 2N/n_d bytes each in bf16. Source: Rajbhandari 2021, section 4.1.
    """
    if training.offload.parameters == "none":
        return 0
    return sum(
        resident_bytes(
            weight,
            shard(
                local_elements(weight.axes, degrees, vocab_padding=vocab_padding),
                shard_group_of(weight, degrees),
                degrees.zero >= ZERO_SHARDS_WEIGHTS,
            ),
            training,
        )
        for weight in weights
    )


def gradient_shard_bytes(weights: Iterable[Weight], degrees: Degrees, training: Training, *, vocab_padding: int) -> Int:
    """Returns the bytes of the gradients that a rank updates with: 2N/n_d in bf16."""
    trained = (weight for weight in weights if weight.trained)
    return training.types.gradients.bytes * sum(
        updated_elements(weight, degrees, vocab_padding=vocab_padding) for weight in trained
    )


def _place(where: str) -> str:
    places = {"cpu": "host_bytes", "nvme": "nvme_bytes"}
    if where not in places:
        raise SimulatorFault(f"nothing is kept on {where}")
    return places[where]
