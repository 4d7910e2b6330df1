"""The form of a cluster file: accelerator, host, tiers of the network, each number with unit and source.

A spec is what a person writes (`cluster_profiles/*.yaml`); `build_cluster` makes of it the plain SI numbers that the
cost formulas use. Tiers go from inside out: a domain of a tier is a run of consecutive devices.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Annotated

from pydantic import Field, model_validator

from simulator.cluster.degraded_spec import Degraded
from simulator.cluster.figures import (
    BandwidthFigure,
    BytesFigure,
    CoefficientFigure,
    CountFigure,
    Figure,
    FlopsFigure,
    Name,
    Section,
    ShareFigure,
    WattsFigure,
)
from simulator.cluster.network_spec import NetworkSpec, tiers_of_network
from simulator.cluster.tier_spec import MAX_LISTED_DOMAINS, TierKind, TierSpec

__all__ = [
    "AcceleratorSpec",
    "ClusterSpec",
    "FigureRow",
    "HostSpec",
    "PeakDtype",
    "TierKind",
    "TierSpec",
    "figures",
]
_CITATION = re.compile(r"\[([a-z0-9_-]+(?:, *[a-z0-9_-]+)*)\]")


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
    compute: dict[str, CoefficientFigure] = Field({})
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


class ClusterSpec(Section):
    """One machine."""

    name: Name
    description: str
    accelerator: AcceleratorSpec
    tiers: Annotated[tuple[TierSpec, ...], Field(min_length=1)]
    """From inside out. Left out where `network` lists nodes and links: then they are made of those."""
    network: NetworkSpec | None = None
    """In place of tiers: any graph of devices, switches and links."""
    devices: CountFigure
    """Devices of the whole cluster."""
    sources: dict[str, str] = Field({})
    """Titles and addresses of documents by short key; a source cites them as `[key]` or `[key, other]`."""
    node_size: CountFigure
    """Devices of one host."""
    host: HostSpec = HostSpec()
    notes: str = ""
    degraded: tuple[Degraded, ...] = ()
    """Faults of the network and slow devices; a scenario may add its own."""

    @model_validator(mode="before")
    @classmethod
    def _tiers_from_network(cls, given: object) -> object:
        if not isinstance(given, dict) or given.get("network") is None:
            return given
        if given.get("tiers"):
            raise ValueError("tiers stand beside network; tiers are made of the nodes and links of a network")
        return {**given, "tiers": tiers_of_network(given["network"], given.get("devices"))}

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
        for below, tier in zip((None, *self.tiers), self.tiers, strict=False):
            _check_joints(below, tier)
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
        for at, item in enumerate(value):
            if isinstance(item, Section):
                yield from _rows(item, f"{path}.{getattr(item, 'name', at)}", source)


def _check_joints(inner: TierSpec | None, tier: TierSpec) -> None:
    """Refuses a tier whose switches or links do not fit the tier inside it."""
    shares_port = inner is not None and (inner.port or inner.name) == (tier.port or tier.name)
    size = 1 if inner is None else inner.size.value
    if tier.levels and tier.levels[0].size.value % size:
        raise ValueError(
            f"tier {tier.name}: a block of {tier.levels[0].name} ({tier.levels[0].size.value} devices) must hold whole "
            f"domains of the tier inside ({size} devices)"
        )
    if inner is not None and shares_port and inner.kind is not TierKind.SWITCH:
        raise ValueError(f"tier {tier.name} shares its port with {inner.name}, which has no switches")
    if inner is not None and shares_port and inner.rails.value == 1 and any(level.per_rail for level in tier.levels):
        raise ValueError(f"tier {tier.name}: levels are per_rail, but {inner.name} inside it has no rails")
    if inner is not None and shares_port and tier.rails.value > 1 and inner.rails.value != tier.rails.value:
        raise ValueError(
            f"tier {tier.name}: {tier.rails.value} rails, but {inner.name} inside it has {inner.rails.value}"
        )
    if tier.rails.value > 1 and size % tier.rails.value and (size > 1 or tier.levels[-1].per_rail):
        raise ValueError(
            f"tier {tier.name}: {tier.rails.value} rails, but domains of the tier inside hold {size} devices; each "
            "rail has one device of every node"
        )
    if tier.links is None:
        return
    if inner is None:
        raise ValueError(f"tier {tier.name}: links join domains of a tier inside, and there is none")
    if shares_port and inner.levels and inner.levels[-1].per_rail:
        raise ValueError(f"tier {tier.name}: links start at switches of {inner.name} that serve one rail each")
    _check_links(tier, tier.size.value // size)


def _check_links(tier: TierSpec, domains: int) -> None:
    links = tier.links
    if links is None:
        return
    if links.names and len(links.names) != domains:
        raise ValueError(f"tier {tier.name}: links name {len(links.names)} domains of {domains}")
    if not links.pairs:
        return
    if domains > MAX_LISTED_DOMAINS:
        raise ValueError(f"tier {tier.name}: pairs are listed for at most {MAX_LISTED_DOMAINS} domains, not {domains}")
    listed = sorted(tuple(sorted(pair.between)) for pair in links.pairs)
    wanted = [(a, b) for a in range(domains) for b in range(a + 1, domains)]
    if listed != wanted:
        missing = sorted(set(wanted) - set(listed))
        raise ValueError(
            f"tier {tier.name}: pairs must list each of the {len(wanted)} pairs of {domains} domains once"
            + (f"; {list(missing[0])} is missing" if missing else "")
        )
