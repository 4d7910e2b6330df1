"""The uplinks of a domain, which the ranks of the job in it share: of each oversubscribed switched tier.

A rank has its port to itself; what leaves its domain in a tier has less room than all ports of the domain together.
So a transfer loads the port of each rank and, with all ranks of its class in the domain at once, the uplinks of the
domain: a lone message has its port in full while a collective of all ranks is held to the fair share. Only ranks of the
job use the uplinks, also where it leaves devices of the domain idle.

The ranks of a folded class lie evenly on its domains, as domains and axes nest (`simulator.parallel.mesh.place`), so
one domain stands for all. The last domain may hold fewer pipeline ranks, none of them in part.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from simulator.cluster import TierKind, uplink
from simulator.cost.collectives import Port
from simulator.lowering.colours import Colours, hashed, numbered, run_sums
from simulator.parallel.groups import Ranks, members_within
from simulator.parallel.layout import Axis
from simulator.parallel.mesh import DeviceMesh, stage_digits


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Domains:
    """The domains below the uplinks of one tier, as the classes see them."""

    number: Colours
    """`[class]`: which domain a class lies in; equal for all classes that share its uplinks."""
    ranks: npt.NDArray[np.int64]
    """`[class]`: ranks of the class in one such domain."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedUplinks:
    """The uplinks of a domain into one tier, one direction."""

    port: int
    """Index of the tier's port among those of a rank."""
    tier: int
    """Index of the tier."""
    bytes_per_s: float
    """What large transfers of all ranks reach together."""
    port_bytes_per_s: float
    """What a large transfer of one rank reaches, alone on the uplinks."""


def uplink_tiers(mesh: DeviceMesh) -> tuple[int, ...]:
    """Returns the tiers whose uplinks have less room than the ports below, and which the job crosses."""
    tiers = mesh.cluster.tiers
    return tuple(
        tier.index
        for tier in tiers[1:]
        if tier.kind is TierKind.SWITCH
        and tier.oversubscription > 1
        and mesh.domains[tier.index - 1] < mesh.domains[tier.index]
    )


def shared_uplinks(mesh: DeviceMesh, ports: tuple[Port, ...]) -> tuple[SharedUplinks, ...]:
    """Returns the uplinks that ranks of the job share, by tier."""
    found = []
    for index in uplink_tiers(mesh):
        tier = mesh.cluster.tiers[index]
        number = next(number for number, port in enumerate(ports) if port.tier == index)
        found.append(
            SharedUplinks(
                port=number,
                tier=index,
                bytes_per_s=uplink(mesh.cluster, tier).capacity_bytes_per_s * tier.efficiency,
                port_bytes_per_s=tier.bandwidth_bytes_per_s * tier.efficiency,
            )
        )
    return tuple(found)


def folded_domains(mesh: DeviceMesh) -> dict[int, Domains]:
    """Returns the domains of one class for each pipeline rank, by tier."""
    pp, stride = int(mesh.degrees.pp), mesh.stride(Axis.PIPELINE)
    first = np.arange(pp, dtype=np.int64) * stride
    found = {}
    for index in uplink_tiers(mesh):
        size = mesh.domains[index - 1]
        ranks = members_within(stage_digits(mesh.axes), size)
        found[index] = Domains(number=first // size, ranks=np.full(pp, ranks, dtype=np.int64))
    return found


def single_domains(mesh: DeviceMesh, ranks: Ranks) -> dict[int, Domains]:
    """Returns the domains of one class for each rank, by tier."""
    return {
        index: Domains(number=ranks // mesh.domains[index - 1], ranks=np.ones(len(ranks), dtype=np.int64))
        for index in uplink_tiers(mesh)
    }


def coloured_domains(mesh: DeviceMesh, class_of: Colours, first: Ranks) -> dict[int, Domains]:
    """Returns the domains of classes that colour refinement found, by tier.

    Args:
        mesh: the ranks on the devices.
        class_of: `[ranks]`: class of each rank; domains were among what was refined over.
        first: `[class]`: its lowest rank.
    """
    found = {}
    for index in uplink_tiers(mesh):
        size = mesh.domains[index - 1]
        sums = run_sums(hashed(class_of.astype(np.uint64), salt=0), size)[first]
        pairs, counts = np.unique(np.arange(len(class_of)) // size * len(first) + class_of, return_counts=True)
        places = np.searchsorted(pairs, first // size * len(first) + np.arange(len(first)))
        found[index] = Domains(number=numbered(sums), ranks=counts[places])
    return found
