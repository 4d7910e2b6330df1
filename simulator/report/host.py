"""What a job keeps outside its devices, by node."""

from __future__ import annotations

from dataclasses import dataclass

from simulator.cost.offload import WINDOWS
from simulator.cost.pricing import StageCosts
from simulator.parallel.mesh import DeviceMesh
from simulator.parallel.training import Offload
from simulator.schedule import PipelineSchedule


@dataclass(frozen=True, slots=True, kw_only=True)
class HostUse:
    """Most bytes outside the device, over the ranks of a job."""

    host_bytes_per_rank: int
    """Host memory of the rank that uses most."""
    nvme_bytes_per_rank: int
    """NVMe of the rank that uses most."""
    ranks_per_node: int
    """Ranks on a node; as if all used as much, which is at most too much where a node holds several stages."""


def host_use(costs: StageCosts, schedule: PipelineSchedule, mesh: DeviceMesh, offload: Offload) -> HostUse:
    """Returns the host memory and NVMe that the ranks of a job use.

    Steady states, and the offloaded activations of the most microbatches in flight (E3.11), at the size of the rank's
    largest stage. What lies on NVMe passes through two windows of its largest piece in host memory (E3.14).
    """
    host = nvme = 0
    for rank, in_flight in enumerate(schedule.in_flight_max()):
        shares = [costs.stages[stage].share for stage in schedule.model_stages_of(rank)]
        rank_host = sum(int(share.outside.host_bytes) for share in shares)
        rank_nvme = sum(int(share.outside.nvme_bytes) for share in shares)
        layers = [
            [int(costs.memory.offloaded_bytes(share, position)) for position in costs.memory.offloaded_layers(share)]
            for share in shares
        ]
        activations = in_flight * max(sum(sizes) for sizes in layers)
        fetched = max(int(layer.fetched_bytes) for share in shares for layer in share.layers)
        if offload.activations == "nvme":
            rank_nvme += activations
            rank_host += WINDOWS * max(max(sizes, default=0) for sizes in layers)
        else:
            rank_host += activations
        if offload.parameters == "nvme":
            rank_host += WINDOWS * fetched
        host, nvme = max(host, rank_host), max(nvme, rank_nvme)
    return HostUse(
        host_bytes_per_rank=host,
        nvme_bytes_per_rank=nvme,
        ranks_per_node=min(mesh.cluster.node_size, mesh.degrees.devices),
    )
