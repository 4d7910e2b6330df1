"""Rules on what lies outside the device."""

from __future__ import annotations

from simulator.parallel.case import Case, Check
from simulator.parallel.training import Optimizer

PARTS = ("optimizer", "parameters", "activations")
"""What can be offloaded."""


def nvme_bandwidth_is_known(case: Case) -> Check:
    """What lies on NVMe needs the rate of the drives."""
    offload = case.training.offload
    used = [name for name in PARTS if getattr(offload, name) == "nvme"]
    return Check(
        holds=not used or case.cluster.host.nvme_bandwidth_bytes_per_s is not None,
        path=f"training.offload.{used[0]}" if used else "training.offload",
        problem=lambda: f"nvme, but the profile of {case.cluster.name} gives no host.nvme_bandwidth",
        why="the time of a step depends on how fast the drives of a node are",
        mend=lambda: "add host.nvme_bandwidth to the cluster, or choose cpu",
    )


def host_memory_bandwidth_is_known(case: Case) -> Check:
    """An update on the host needs the bandwidth of host memory."""
    used = case.training.offload.optimizer != "none"
    return Check(
        holds=not used or case.cluster.host.memory_bandwidth_bytes_per_s is not None,
        path="training.offload.optimizer",
        problem=lambda: (
            f"{case.training.offload.optimizer}, but the profile of {case.cluster.name} gives no host.memory_bandwidth"
        ),
        why="the host updates what lies there, at the bandwidth of its memory",
        mend=lambda: "add host.memory_bandwidth to the cluster, or set training.offload.optimizer to none",
    )


def offloaded_parameters_are_sharded(case: Case) -> Check:
    """Weights are fetched layer by layer only under zero 3."""
    return Check(
        holds=(case.training.offload.parameters == "none") | (case.degrees.zero >= 3),
        path="training.offload.parameters",
        problem=lambda: f"{case.training.offload.parameters} with layout.zero {case.degrees.zero}",
        why="only zero 3 brings the weights of each layer to the device when it runs (ZeRO-Infinity)",
        mend=lambda: "set layout.zero to 3, or training.offload.parameters to none",
    )


def offloaded_parameters_are_updated_on_the_host(case: Case) -> Check:
    """Weights outside the device are updated where they lie."""
    offload = case.training.offload
    return Check(
        holds=offload.parameters == "none" or offload.optimizer != "none",
        path="training.offload.parameters",
        problem=lambda: f"{offload.parameters}, but the optimizer is on the device",
        why="weights that live on the host are updated there (ZeRO-Infinity, FSDP's CPU offload)",
        mend=lambda: "set training.offload.optimizer to cpu or nvme",
    )


def offloaded_optimizer_moves_memory_only(case: Case) -> Check:
    """Muon's matrix multiplications are no work for a host."""
    used = case.training.offload.optimizer != "none"
    return Check(
        holds=not used or case.training.rule.name is not Optimizer.MUON,
        path="training.offload.optimizer",
        problem=lambda: f"{case.training.offload.optimizer} with muon",
        why="Newton-Schulz rounds are matrix multiplications, which this version times on devices only",
        mend=lambda: "choose another optimizer, or set training.offload.optimizer to none",
    )


def offloaded_activations_have_passes_of_their_own(case: Case) -> Check:
    """What comes back from the host for one pass would stand beside what leaves for the other."""
    offload = case.training.offload.activations
    return Check(
        holds=offload == "none" or not case.joins_passes,
        path="training.offload.activations",
        problem=lambda: f"{offload}, but schedule {case.schedule} runs a forward and a backward overlapped",
        why="this version copies the activations of one pass at a time; no framework offloads them in joined passes",
        mend=lambda: "set training.offload.activations to none, or choose a schedule without joined passes",
    )
