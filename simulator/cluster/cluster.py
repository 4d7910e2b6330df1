"""The cluster as plain SI numbers: what the cost formulas, the placement and the engine read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from simulator.cluster.degraded_rules import degraded_violations
from simulator.cluster.degraded_spec import Degraded
from simulator.cluster.network_spec import NetworkSpec
from simulator.cluster.spec import AcceleratorSpec, ClusterSpec, HostSpec
from simulator.cluster.tier import Tier, build_tier, job_slice
from simulator.cluster.tier_spec import TierKind
from simulator.errors import ScenarioError, Violation

__all__ = ["Accelerator", "Cluster", "Host", "Tier", "build_cluster", "cluster_violations"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Accelerator:
    """One device. See `AcceleratorSpec` for what each number means."""

    name: str
    vendor: str
    memory_bytes: int
    """Capacity."""
    memory_usable_bytes: int
    """What the driver reports."""
    memory_bandwidth_bytes_per_s: float
    """Nominal."""
    peak_flops_per_s: Mapping[str, float]
    """Nominal dense matrix rate by number format."""
    num_multiprocessors: int | None
    power_w: float | None
    host_bandwidth_bytes_per_s: float
    """Nominal, per device, per direction."""
    host_efficiency: float
    """Share of it that large copies reach."""
    kernels: str
    """Whose calibrated kernel coefficients hold."""
    compute: Mapping[str, float]
    """Coefficients that replace those of `kernels`."""

    @property
    def reached_host_bandwidth_bytes_per_s(self) -> float:
        """Bandwidth of large copies between device and host, per device, per direction."""
        return self.host_bandwidth_bytes_per_s * self.host_efficiency

    def ridge_flops_per_byte(self, dtype: str) -> float:
        """Returns peak over memory bandwidth: operators with fewer FLOPs a byte are bound by memory.

        Source: Williams et al. 2009 (roofline); equations.md E6.1.
        """
        return self.peak_flops_per_s[dtype] / self.memory_bandwidth_bytes_per_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """The host of one node; None where the file does not say."""

    memory_bytes: int | None
    """Per node."""
    memory_bandwidth_bytes_per_s: float | None
    """Per node, all sockets, nominal."""
    nvme_bytes: int | None
    """Per node."""
    nvme_bandwidth_bytes_per_s: float | None
    """Per node, all drives."""
    power_w: float | None
    """Per node, rated, with its devices."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """The devices that a job uses and what joins them."""

    name: str
    accelerator: Accelerator
    host: Host
    tiers: tuple[Tier, ...]
    """From inside out; a domain of a tier is a run of `size` consecutive devices; the last one joins all."""
    num_devices: int
    node_size: int
    """Devices of one host."""
    degraded: tuple[Degraded, ...] = ()
    """Faults, in the numbers of the whole cluster's devices; those of devices that the job does not use say nothing."""
    network: NetworkSpec | None = None
    """The nodes and links that the tiers were made of, where the file lists them."""


def build_cluster(spec: ClusterSpec, devices: int | None = None) -> Cluster:
    """Returns the part of a cluster that a job of `devices` devices uses, as SI numbers.

    Domains are filled one after the other. On tori the job gets the fewest equal slices that hold it, each the most
    cubic box, of whole cubes where possible.

    Args:
        spec: The cluster as written.
        devices: Devices of the job; default: all.

    Raises:
        ScenarioError: The cluster does not have that many devices, or no slices of that size.
    """
    if violations := cluster_violations(spec, devices):
        raise ScenarioError(violations)
    num_devices = spec.devices.value if devices is None else devices
    used: list[Tier] = []
    for tier in spec.tiers:
        used.append(build_tier(tier, tuple(used), num_devices=num_devices, cluster_devices=spec.devices.value))
        if used[-1].size >= num_devices:
            break
    return Cluster(
        name=spec.name,
        accelerator=_accelerator(spec.accelerator),
        host=_host(spec.host),
        tiers=tuple(used),
        num_devices=num_devices,
        node_size=min(spec.node_size.value, num_devices),
        degraded=spec.degraded,
        network=spec.network,
    )


def cluster_violations(spec: ClusterSpec, devices: int | None) -> tuple[Violation, ...]:
    """Returns why a job of `devices` devices cannot use this cluster; empty when it can."""
    if broken := degraded_violations(spec):
        return broken
    if devices is None:
        return ()
    if not 1 <= devices <= spec.devices.value:
        return (
            Violation(
                path="devices",
                problem=f"{devices} devices of cluster {spec.name}, which has {spec.devices.value}",
                why="a job uses at least one device and at most all of the cluster",
                mend=f"set devices between 1 and {spec.devices.value}, or choose a larger cluster",
            ),
        )
    return tuple(
        Violation(
            path="devices",
            problem=f"{devices} devices are no equal slices of {tier.name} tori of {'x'.join(map(str, tier.dims))}",
            why="a slice of a torus is a box of devices that fits in it, and a job uses slices of one shape",
            mend=f"set devices to a multiple of {tier.size.value} or to a product of axis lengths that fit",
        )
        for tier in spec.tiers
        if tier.kind is TierKind.TORUS and job_slice(tier, devices, spec.devices.value) is None
    )


def _accelerator(spec: AcceleratorSpec) -> Accelerator:
    usable = spec.memory if spec.memory_usable is None else spec.memory_usable
    return Accelerator(
        name=spec.name,
        vendor=spec.vendor,
        memory_bytes=spec.memory.value,
        memory_usable_bytes=usable.value,
        memory_bandwidth_bytes_per_s=spec.memory_bandwidth.value,
        peak_flops_per_s={str(dtype): figure.value for dtype, figure in spec.peak.items()},
        num_multiprocessors=None if spec.multiprocessors is None else spec.multiprocessors.value,
        power_w=None if spec.power is None else spec.power.value,
        host_bandwidth_bytes_per_s=spec.host_bandwidth.value,
        host_efficiency=spec.host_efficiency.value,
        kernels=spec.kernels,
        compute={name: figure.value for name, figure in spec.compute.items()},
    )


def _host(spec: HostSpec) -> Host:
    return Host(
        memory_bytes=None if spec.memory is None else spec.memory.value,
        memory_bandwidth_bytes_per_s=None if spec.memory_bandwidth is None else spec.memory_bandwidth.value,
        nvme_bytes=None if spec.nvme is None else spec.nvme.value,
        nvme_bandwidth_bytes_per_s=None if spec.nvme_bandwidth is None else spec.nvme_bandwidth.value,
        power_w=None if spec.power is None else spec.power.value,
    )
