"""What the tasks of a rank share: its ports, the uplinks behind them, its part of the host."""

from __future__ import annotations

from dataclasses import dataclass, field

from simulator.cost.offload import HostResource
from simulator.cost.pricing import StageCosts
from simulator.engine import Resource
from simulator.lowering.members import Membership
from simulator.lowering.uplinks import SharedUplinks, shared_uplinks
from simulator.parallel.mesh import DeviceMesh

WAYS = ("out", "in")
"""Directions of a port."""
NUM_DIRECTIONS = len(WAYS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Slots:
    """The numbers of the resources of a class: slot 2·port + direction, then uplinks likewise, then the host's."""

    uplinks: dict[int, int]
    """Port to the first slot of the shared uplinks behind it."""
    host: dict[HostResource, int]
    """Slot of each resource of the host."""


def slots_of(costs: StageCosts, mesh: DeviceMesh) -> Slots:
    """Returns the slots, which are the same for all classes."""
    uplinks = shared_uplinks(mesh, costs.ports)
    first_uplink = NUM_DIRECTIONS * len(costs.ports)
    first_host = first_uplink + NUM_DIRECTIONS * len(uplinks)
    return Slots(
        uplinks={link.port: first_uplink + NUM_DIRECTIONS * number for number, link in enumerate(uplinks)},
        host={resource: first_host + number for number, resource in enumerate(costs.host_bytes_per_s)},
    )


@dataclass(slots=True, kw_only=True)
class ResourceBook:
    """The resources of a program, class by class."""

    costs: StageCosts
    """Ports and hosts."""
    mesh: DeviceMesh
    """Tiers."""
    members: Membership
    """Classes, and in which domains they lie."""
    resources: list[Resource] = field(default_factory=list)
    """Those of all classes so far."""
    _uplinks: dict[tuple[int, int], int] = field(default_factory=dict)
    """(tier, domain) to the first of its two resources."""

    def bind(self, number: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Returns the resources behind the slots of a class, and how many of its ranks share each; empty: none."""
        links = shared_uplinks(self.mesh, self.costs.ports)
        bound = self._add(self._ports(number, links))
        sharers = [1] * len(bound)
        for link in links:
            below = self.members.domains[link.tier]
            place = link.tier, int(below.number[number])
            if place not in self._uplinks:
                self._uplinks[place] = self._add(self._uplinks_of(number, link))[0]
            bound += range(self._uplinks[place], self._uplinks[place] + NUM_DIRECTIONS)
            sharers += [int(below.ranks[number])] * NUM_DIRECTIONS
        host = self._add(self._host(number))
        return (*bound, *host), (*sharers, *[1] * len(host)) if links else ()

    def _add(self, resources: list[Resource]) -> list[int]:
        first = len(self.resources)
        self.resources += resources
        return list(range(first, len(self.resources)))

    def _ports(self, number: int, links: tuple[SharedUplinks, ...]) -> list[Resource]:
        """The ports of one class, in both directions; behind shared uplinks, these hold a rank to its fair share."""
        tiers, class_name = self.mesh.cluster.tiers, self.members.names[number]
        alone = {link.port: link.port_bytes_per_s for link in links}
        return [
            Resource(
                name=f"{class_name} / {tiers[port.tier].name}"
                f"{f' axis {port.dim}' if tiers[port.tier].dims else ''} {way}",
                bytes_per_s=alone.get(place, port.bytes_per_s)
                * self.members.bandwidth_share(number, port.tier, port.dim),
            )
            for place, port in enumerate(self.costs.ports)
            for way in WAYS
        ]

    def _uplinks_of(self, number: int, link: SharedUplinks) -> list[Resource]:
        """The uplinks of the domain of a class, in both directions."""
        tiers = self.mesh.cluster.tiers
        domain = f"{tiers[link.tier - 1].name} domain of {self.members.names[number]}"
        return [
            Resource(name=f"{domain} / {tiers[link.tier].name} uplinks {way}", bytes_per_s=link.bytes_per_s)
            for way in WAYS
        ]

    def _host(self, number: int) -> list[Resource]:
        """What one class uses of its host."""
        return [
            Resource(name=f"{self.members.names[number]} / {resource}", bytes_per_s=rate)
            for resource, rate in self.costs.host_bytes_per_s.items()
        ]
