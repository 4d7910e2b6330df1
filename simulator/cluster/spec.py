"""The form of a cluster file: accelerator, host, tiers of the network, each number with unit and source.

A spec is what a person writes (`cluster_profiles/*.yaml`); `build_cluster` makes of it the plain SI numbers that the
cost formulas use. Tiers go from inside out: a domain of a tier is a run of consecutive devices.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, model_validator

from simulator.cluster.figures import (
    BandwidthFigure,
    BytesFigure,
    CoefficientFigure,
    CountFigure,
    Figure,
    FlopsFigure,
    RatioFigure,
    SecondsFigure,
    ShareFigure,
    WattsFigure,
)

_FORM = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)
_CITATION = re.compile(r"\[([a-z0-9_-]+(?:, *[a-z0-9_-]+)*)\]")
Name = Annotated[str, Field(min_length=1, max_length=100)]


class TierKind(StrEnum):
    """How the devices of one domain are wired."""

    SWITCH = "switch"
    """Every device has a port into a switched fabric without bottleneck of its own (see oversubscription)."""
    MESH = "mesh"
    """Every device has one direct link to each other device of the domain (xGMI)."""
    TORUS = "torus"
    """Devices sit on a grid with links to their neighbours along each axis (TPU ICI)."""


class PeakDtype(StrEnum):
    """Number formats with a peak rate of their own."""

    FP32 = "fp32"
    TF32 = "tf32"
    BF16 = "bf16"
    FP16 = "fp16"
    FP8 = "fp8"
    MXFP8 = "mxfp8"
    """8-bit floats with a scale for each 32 elements, in the matrix units themselves."""
    NVFP4 = "nvfp4"
    """4-bit floats with a scale for each 16 elements."""


class Section(BaseModel):
    """A mapping of a cluster file, with the source of those of its figures that name none."""

    model_config = _FORM
    source: str = ""
    """Source of every figure below that has none."""


class AcceleratorSpec(Section):
    """One kind of chip. All figures are per device; peaks are dense, never with sparsity."""

    name: Name
    vendor: Name
    memory: BytesFigure
    """Capacity of device memory."""
    memory_usable: BytesFigure | None = None
    """What the driver reports as total; default: `memory`. Frameworks and NCCL buffers take more, see `framework`."""
    memory_bandwidth: BandwidthFigure
    """Nominal bandwidth of device memory."""
    peak: dict[PeakDtype, FlopsFigure]
    """Nominal matrix rate by number format; a format that is not listed is not supported."""
    multiprocessors: CountFigure | None = None
    """Streaming multiprocessors, compute units or cores."""
    power: WattsFigure | None = None
    """Rated power of one device."""
    host_bandwidth: BandwidthFigure
    """Link between device and host memory, per direction."""
    host_efficiency: ShareFigure = ShareFigure(value=1.0, source="default: nominal")
    """Share of the nominal link rate that large copies reach."""
    kernels: Name
    """Whose calibrated kernel coefficients to use (`docs/compute-model.md`), for example h100-sxm-80gb."""
    compute: dict[str, CoefficientFigure] = {}
    """Coefficients that replace those of `kernels`, by name, for example gemm_ceiling_fraction."""

    @model_validator(mode="after")
    def _usable_is_part_of_memory(self) -> AcceleratorSpec:
        if self.memory_usable is not None and self.memory_usable.value > self.memory.value:
            raise ValueError("memory_usable is more than memory")
        if not self.peak:
            raise ValueError("peak lists no number format; write for example 'bf16: 989 TFLOP/s'")
        return self


class HostSpec(Section):
    """The host of one node."""

    memory: BytesFigure | None = None
    """Host memory, per node."""
    memory_bandwidth: BandwidthFigure | None = None
    """Nominal bandwidth of host memory, all sockets together, per node; needed to update on the host."""
    nvme: BytesFigure | None = None
    """Local NVMe capacity, per node."""
    nvme_bandwidth: BandwidthFigure | None = None
    """Local NVMe read rate, all drives together, per node."""
    power: WattsFigure | None = None
    """Rated power of the whole node with its devices."""


class TierSpec(Section):
    """One level of the network. A domain holds `size` consecutive devices that reach each other in this tier."""

    name: Name
    """For example nvlink, xgmi, ici, infiniband, roce, dcn."""
    kind: TierKind
    size: CountFigure
    """Devices in one domain; of the last tier: all devices."""
    bandwidth: BandwidthFigure
    """Nominal, one direction. Switch: port of one device into this tier. Mesh: all links of one device together.
    Torus: one link, that is one way along one axis."""
    latency: SecondsFigure
    """Torus: per hop. Otherwise: from device to device, for one step of a collective."""
    efficiency: ShareFigure
    """Share of the nominal bandwidth that large collectives reach."""
    oversubscription: RatioFigure = RatioFigure(value=1.0, source="default: no oversubscription")
    """Downlinks to uplinks where traffic leaves the domains of the tier inside this one; 1 means full bisection."""
    port: str = ""
    """Tiers with the same port share the device's port (a NIC serves the pod and the spine); default: the name."""
    dims: tuple[Annotated[int, Field(ge=1)], ...] = ()
    """Torus: devices along each axis; device number = x + X * (y + Y * z)."""
    wrap: tuple[bool, ...] = ()
    """Torus: whether each axis of the whole domain is closed to a ring."""
    wrap_multiple: Annotated[int, Field(ge=1)] | None = None
    """Torus: a smaller slice keeps wrap on its axes when all are multiples of this (4: whole cubes with optical
    switches); default: only on axes of full length."""
    in_network_reduction: bool = False
    """Whether the switches can reduce (NVLink SHARP)."""
    in_network_efficiency: ShareFigure | None = None
    """Share of the nominal bandwidth reached by an all-reduce in the switches, which sends (n + 1) / n * S (E4.6)."""
    calibration: dict[str, CoefficientFigure] = {}
    """Calibrated coefficients of the collective cost formulas, by name."""

    @model_validator(mode="after")
    def _torus_fits_together(self) -> TierSpec:
        if self.kind is not TierKind.TORUS:
            if self.dims or self.wrap or self.wrap_multiple:
                raise ValueError(f"tier {self.name}: dims, wrap and wrap_multiple are for kind torus only")
        elif math.prod(self.dims) != self.size.value or len(self.wrap) != len(self.dims):
            raise ValueError(
                f"tier {self.name}: dims {list(self.dims)} hold {math.prod(self.dims)} devices, size is "
                f"{self.size.value}; give one wrap value for each axis"
            )
        if self.in_network_efficiency is not None and not self.in_network_reduction:
            raise ValueError(f"tier {self.name}: in_network_efficiency without in_network_reduction")
        return self


class ClusterSpec(Section):
    """One machine."""

    name: Name
    description: str
    accelerator: AcceleratorSpec
    tiers: Annotated[tuple[TierSpec, ...], Field(min_length=1)]
    """From inside out."""
    devices: CountFigure
    """Devices of the whole cluster."""
    sources: dict[str, str] = {}
    """Titles and addresses of documents by short key; a source cites them as `[key]` or `[key, other]`."""
    node_size: CountFigure
    """Devices of one host."""
    host: HostSpec = HostSpec()
    notes: str = ""

    @model_validator(mode="after")
    def _tiers_nest(self) -> ClusterSpec:
        names = [tier.name for tier in self.tiers]
        if len(set(names)) < len(names):
            raise ValueError(f"tiers: two have the same name among {', '.join(names)}")
        for inner, outer in zip(self.tiers, self.tiers[1:], strict=False):
            if outer.size.value <= inner.size.value or outer.size.value % inner.size.value:
                raise ValueError(
                    f"tiers: a domain of {outer.name} ({outer.size.value} devices) must hold several whole domains of "
                    f"{inner.name} ({inner.size.value} devices)"
                )
        if self.tiers[-1].size.value != self.devices.value:
            raise ValueError(
                f"tiers: the last tier, {self.tiers[-1].name}, has size {self.tiers[-1].size.value}; it must join all "
                f"devices, {self.devices.value}"
            )
        cited = {key for row in _figures(self, "", "") for key in _cited(row.source)}
        if unknown := cited - set(self.sources):
            raise ValueError(
                f"sources: no entry for {', '.join(sorted(unknown))}; there are {', '.join(self.sources) or 'none'}"
            )
        if unsourced := [row.path for row in figures(self) if not row.source]:
            raise ValueError(f"no source for {', '.join(unsourced)}; give the figure or the mapping around it a source")
        return self


@dataclass(frozen=True, slots=True, kw_only=True)
class FigureRow:
    """One figure of a spec, for listing."""

    path: str
    """Dotted path in the file, for example `tiers.nvlink.bandwidth`."""
    value: float
    """SI value."""
    unit: str
    """SI unit; empty for plain numbers."""
    source: str
    """Its own source, or that of the mapping around it."""
    verified: bool
    """False where the number was not read in its source."""


def figures(spec: ClusterSpec) -> tuple[FigureRow, ...]:
    """Returns every figure of a cluster with the source that covers it, in file order; keys are written out."""
    return tuple(
        replace(row, source=_CITATION.sub(lambda found: _written_out(found[1], spec.sources), row.source))
        for row in _figures(spec, "", "")
    )


def _cited(source: str) -> list[str]:
    return [key.strip() for found in _CITATION.finditer(source) for key in found[1].split(",")]


def _written_out(keys: str, sources: dict[str, str]) -> str:
    return "[" + "; ".join(sources.get(key.strip(), key.strip()) for key in keys.split(",")) + "]"


def _figures(section: Section, path: str, outer_source: str) -> Iterator[FigureRow]:
    source = section.source or outer_source
    for key in type(section).model_fields:
        yield from _rows(getattr(section, key), f"{path}{key}", source)


def _rows(value: object, path: str, source: str) -> Iterator[FigureRow]:
    if isinstance(value, Figure):
        yield FigureRow(
            path=path,
            value=value.value,
            unit=value.unit,
            source=value.source or source,
            verified=value.verified,
        )
    elif isinstance(value, Section):
        yield from _figures(value, f"{path}.", source)
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _rows(item, f"{path}.{key}", source)
    elif isinstance(value, tuple):
        for item in value:
            if isinstance(item, TierSpec):
                yield from _rows(item, f"{path}.{item.name}", source)
