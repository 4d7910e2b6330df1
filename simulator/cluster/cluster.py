"""The cluster as plain SI numbers: what the cost formulas, the placement and the engine read."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from simulator.cluster.spec import AcceleratorSpec, ClusterSpec, HostSpec, TierKind, TierSpec
from simulator.cluster.torus import slice_of
from simulator.errors import ScenarioError, Violation


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
class Tier:
    """One level of the network. See `TierSpec` for what each number means."""

    index: int
    """Position from inside out."""
    name: str
    kind: TierKind
    size: int
    """Devices in one domain, as far as this job uses it."""
    bandwidth_bytes_per_s: float
    """Nominal, one direction: port of a device (switch), all its links (mesh), one link (torus)."""
    latency_s: float
    """Per hop (torus) or per step (otherwise)."""
    efficiency: float
    """Share of nominal bandwidth that large collectives reach."""
    oversubscription: float
    """Downlinks to uplinks between domains of the inner tier; 1 is full bisection."""
    port: str
    """Tiers with the same port share the device's port."""
    dims: tuple[int, ...]
    """Torus: devices along each axis."""
    wrap: tuple[bool, ...]
    """Torus: whether each axis is a ring."""
    in_network_reduction: bool
    in_network_efficiency: float | None
    calibration: Mapping[str, float]
    """Calibrated coefficients of the collective cost formulas."""

    @property
    def reached_bandwidth_bytes_per_s(self) -> float:
        """Bandwidth per device and direction that large collectives reach when traffic leaves the inner domains."""
        return self.bandwidth_bytes_per_s * self.efficiency / self.oversubscription


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
        used.append(_tier(tier, len(used), num_devices=num_devices, cluster_devices=spec.devices.value))
        if used[-1].size >= num_devices:
            break
    return Cluster(
        name=spec.name,
        accelerator=_accelerator(spec.accelerator),
        host=_host(spec.host),
        tiers=tuple(used),
        num_devices=num_devices,
        node_size=min(spec.node_size.value, num_devices),
    )


def cluster_violations(spec: ClusterSpec, devices: int | None) -> tuple[Violation, ...]:
    """Returns why a job of `devices` devices cannot use this cluster; empty when it can."""
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
        if tier.kind is TierKind.TORUS and _slice(tier, devices, spec.devices.value) is None
    )


def _slice(tier: TierSpec, num_devices: int, cluster_devices: int) -> tuple[int, ...] | None:
    """Returns the shape of the fewest equal slices of a torus that hold a job, or None if there is none."""
    tori = cluster_devices // tier.size.value
    for slices in range(-(-num_devices // tier.size.value), tori + 1):
        if num_devices % slices == 0:
            shape = slice_of(tier.dims, num_devices // slices, multiple=tier.wrap_multiple or 1)
            if shape is not None:
                return shape
    return None


def _tier(tier: TierSpec, index: int, *, num_devices: int, cluster_devices: int) -> Tier:
    size, dims, wrap = min(tier.size.value, num_devices), tier.dims, tier.wrap
    if tier.kind is TierKind.TORUS:
        dims = _slice(tier, num_devices, cluster_devices) or tier.dims
        wrap = tier.wrap if dims == tier.dims else _slice_wrap(tier, dims)
        size = math.prod(dims)
    in_network = tier.in_network_efficiency
    return Tier(
        index=index,
        name=tier.name,
        kind=tier.kind,
        size=size,
        bandwidth_bytes_per_s=tier.bandwidth.value,
        latency_s=tier.latency.value,
        efficiency=tier.efficiency.value,
        oversubscription=tier.oversubscription.value,
        port=tier.port or tier.name,
        dims=dims,
        wrap=wrap,
        in_network_reduction=tier.in_network_reduction,
        in_network_efficiency=None if in_network is None else in_network.value,
        calibration={name: figure.value for name, figure in tier.calibration.items()},
    )


def _slice_wrap(tier: TierSpec, dims: tuple[int, ...]) -> tuple[bool, ...]:
    """Wrap of a slice: on all axes where it is made of whole cubes, else on axes of full length."""
    if tier.wrap_multiple is None:
        return tuple(wraps and length == full for wraps, length, full in zip(tier.wrap, dims, tier.dims, strict=True))
    whole_cubes = all(length % tier.wrap_multiple == 0 for length in dims)
    return tuple(wraps and whole_cubes for wraps in tier.wrap)


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
