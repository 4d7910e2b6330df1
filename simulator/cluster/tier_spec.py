"""The form of one level of the network: its ports, and the switches or links that join them.

A tier is where bandwidth or latency changes: an NVLink domain, a non-blocking pod, an oversubscribed spine, a torus,
the links between groups or sites. What lies inside a switched tier are its `levels`, layers of switches that do not
block: leaf and spine of a pod, say. A layer that does block begins a tier of its own, with the same port.
"""

from __future__ import annotations

import math
from enum import StrEnum
from typing import Annotated

from pydantic import Field, model_validator

from simulator.cluster.figures import (
    BandwidthFigure,
    CoefficientFigure,
    CountFigure,
    KilometresFigure,
    Name,
    RatioFigure,
    SecondsFigure,
    Section,
    ShareFigure,
)

MAX_LISTED_DOMAINS = 8
"""Most domains whose pairs a file lists one by one; all ways to halve them are tried for the bisection."""


class TierKind(StrEnum):
    """How the devices of one domain are wired."""

    SWITCH = "switch"
    """Every device has a port into a switched fabric without bottleneck of its own (see oversubscription)."""
    MESH = "mesh"
    """Every device has one direct link to each other device of the domain (xGMI)."""
    TORUS = "torus"
    """Devices sit on a grid with links to their neighbours along each axis (TPU ICI)."""


class LevelSpec(Section):
    """One layer of switches inside a switched tier; layers of a tier do not block."""

    name: Name
    """For example nvswitch, leaf, spine, core."""
    size: CountFigure
    """Devices under one block of this layer; the last layer of a tier has the size of the tier."""
    switches: CountFigure | None = None
    """Switches in one block; default: as many as `radix` needs, without `radix` unknown."""
    radix: CountFigure | None = None
    """Ports of one switch, at the rate of a device's port."""
    per_rail: bool = False
    """Whether each switch serves one rail; then only devices of the same rail meet in this layer."""
    latency: SecondsFigure | None = None
    """From device to device where they meet in this layer; default: that of the tier."""


class PairSpec(Section):
    """The links between two domains."""

    between: tuple[Annotated[int, Field(ge=0)], Annotated[int, Field(ge=0)]]
    """Numbers of the two domains, from 0."""
    bandwidth: BandwidthFigure
    """All links between the two together, one direction."""
    distance: KilometresFigure = KilometresFigure(value=0.0, source="default: same site")
    """Length of the way in kilometres; light takes 5 us for each."""


class LinksSpec(Section):
    """Direct links between the domains of the tier inside: groups of a dragonfly, sites."""

    names: tuple[Name, ...] = ()
    """Names of the domains, for reports."""
    bandwidth: BandwidthFigure | None = None
    """All links between two domains together, one direction, where every pair has the same."""
    distance: KilometresFigure = KilometresFigure(value=0.0, source="default: same site")
    """Length of each of these ways in kilometres; light takes 5 us for each."""
    pairs: tuple[PairSpec, ...] = ()
    """In place of `bandwidth` and `distance`: every pair of domains."""

    @model_validator(mode="after")
    def _given_once(self) -> LinksSpec:
        if (self.bandwidth is None) == (not self.pairs):
            raise ValueError("give bandwidth, the same for every pair of domains, or pairs, one entry for each")
        return self


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
    """Torus: per hop. Otherwise: from device to device, for one step of a collective; cables of `links` add theirs."""
    efficiency: ShareFigure
    """Share of the nominal bandwidth that large collectives reach."""
    oversubscription: RatioFigure = RatioFigure(value=1.0, source="default: no oversubscription")
    """Downlinks to uplinks where traffic leaves the domains of the tier inside this one; 1 means full bisection. Ratios
    of tiers with the same port multiply."""
    port: str = ""
    """Tiers with the same port share the device's port (a NIC serves the pod and the spine); default: the name."""
    levels: tuple[LevelSpec, ...] = ()
    """Switch: layers of switches from inside out; default: one, of unknown switches."""
    rails: CountFigure = CountFigure(value=1, source="default: no rails")
    """Switch: devices of one node that have a rail each; device i is on rail i mod `rails`."""
    links: LinksSpec | None = None
    """Switch: direct links between the domains of the tier inside, in place of levels (dragonfly+, sites)."""
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
    calibration: dict[str, CoefficientFigure] = Field({})
    """Calibrated coefficients of the collective cost formulas, by name."""

    @property
    def states_topology(self) -> bool:
        """Whether the file says how the tier is wired."""
        return self.kind is not TierKind.SWITCH or bool(self.levels) or self.links is not None

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

    @model_validator(mode="after")
    def _fabric_fits_together(self) -> TierSpec:
        if self.kind is not TierKind.SWITCH and (self.levels or self.links or self.rails.value > 1):
            raise ValueError(f"tier {self.name}: levels, rails and links are for kind switch only")
        if self.links is not None and (self.levels or self.rails.value > 1 or self.oversubscription.value > 1):
            raise ValueError(
                f"tier {self.name}: links join domains without switches of their own; levels, rails and "
                "oversubscription belong to the tier inside"
            )
        if self.levels:
            self._check_levels()
        elif self.rails.value > 1:
            raise ValueError(
                f"tier {self.name}: rails without levels; say which layers of switches serve one rail each"
            )
        return self

    def _check_levels(self) -> None:
        sizes = [level.size.value for level in self.levels]
        for inner, outer in zip(self.levels, self.levels[1:], strict=False):
            rails_meet = inner.per_rail and not outer.per_rail
            larger = outer.size.value > inner.size.value or (outer.size.value == inner.size.value and rails_meet)
            if not larger or outer.size.value % inner.size.value:
                raise ValueError(
                    f"tier {self.name}: a block of {outer.name} ({outer.size.value} devices) must hold several whole "
                    f"blocks of {inner.name} ({inner.size.value} devices)"
                )
            if outer.per_rail and not inner.per_rail:
                raise ValueError(
                    f"tier {self.name}: {outer.name} serves one rail each, but rails have met in {inner.name}"
                )
        if sizes[-1] != self.size.value:
            raise ValueError(
                f"tier {self.name}: its last level, {self.levels[-1].name}, has size {sizes[-1]}; it must join the "
                f"{self.size.value} devices of the tier"
            )
        for level in self.levels:
            if level.per_rail and self.rails.value == 1:
                raise ValueError(f"tier {self.name}: {level.name} is per_rail, but the tier has no rails")
            if level.per_rail and level.switches is not None and level.switches.value % self.rails.value:
                raise ValueError(
                    f"tier {self.name}: the {level.switches.value} switches of a block of {level.name} do not serve "
                    f"{self.rails.value} rails evenly"
                )
        if sizes[0] % self.rails.value:
            raise ValueError(f"tier {self.name}: blocks of {sizes[0]} devices have no equal {self.rails.value} rails")
