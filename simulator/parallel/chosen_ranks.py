"""Which ranks a scenario means: by number, by host, by their place in the layout."""

from __future__ import annotations

import numpy as np

from simulator.cluster.cluster import Cluster
from simulator.parallel.degrees import Degrees
from simulator.parallel.groups import Ranks
from simulator.parallel.layout import Axis
from simulator.parallel.variability import Chosen


def chosen_ranks(
    chosen: Chosen,
    *,
    degrees: Degrees,
    axes: tuple[tuple[Axis, int, int], ...],
    domains: tuple[int, ...],
    cluster: Cluster,
) -> Ranks:
    """Returns the ranks that are meant, rising; those that do not exist are left out.

    Args:
        chosen: how the scenario says it.
        degrees: of the layout.
        axes: (axis, degree, stride) of the mesh.
        domains: ranks of the job in one domain of each tier.
        cluster: the machine.
    """
    count = int(degrees.devices)
    numbers = chosen.ranks if chosen.ranks is not None else (chosen.rank,) if chosen.rank is not None else None
    if numbers is not None:
        return np.array(sorted({number for number in numbers if number < count}), dtype=np.int64)
    ranks = np.arange(count, dtype=np.int64)
    nodes = chosen.nodes if chosen.nodes is not None else (chosen.node,) if chosen.node is not None else None
    if nodes is not None:
        return ranks[np.isin(nodes_of(ranks, domains, cluster), nodes)]
    found = np.ones(count, dtype=np.bool_)
    for axis, wanted in ((Axis.PIPELINE, chosen.pipeline_rank), (Axis.DATA, chosen.replica)):
        if wanted is not None:
            found &= along(ranks, axis, axes) == wanted
    return ranks[found]


def along(ranks: Ranks, axis: Axis, axes: tuple[tuple[Axis, int, int], ...]) -> Ranks:
    """Returns the coordinate of ranks on an axis of the mesh."""
    degree, stride = next((degree, stride) for name, degree, stride in axes if name is axis)
    return ranks // stride % degree


def nodes_of(ranks: Ranks, domains: tuple[int, ...], cluster: Cluster) -> Ranks:
    """Returns the host of each rank: runs of `node_size` devices, counted from the first device of the cluster.

    A job that uses 64 of the 72 devices of a rack leaves the last hosts of each rack out. On a torus the ranks of a
    domain count as consecutive devices, whatever the shape of their slice.
    """
    rest, devices = ranks, np.zeros_like(ranks)
    for tier, domain in zip(reversed(cluster.tiers[:-1]), reversed(domains[:-1]), strict=True):
        devices += rest // domain * tier.size
        rest = rest % domain
    return (devices + rest) // cluster.node_size
