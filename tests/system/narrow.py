"""Small clusters whose tiers are oversubscribed, so that the ranks of a few nodes share uplinks."""

from __future__ import annotations

from functools import cache

from simulator.cluster import ClusterSpec
from tests.cluster.machines import machine, tier
from tests.system.jobs import profile

PORT = {"port": "nic", "bandwidth": "10 GB/s"}


@cache
def narrow(*sizes: int, ratios: tuple[float, ...], vendor: str = "h100-superpod") -> ClusterSpec:
    """Nodes of `sizes[0]` devices under switches of `sizes[1:]`, each with an oversubscription.

    A port has 10 GB/s, 8 of which large transfers reach; ratios of tiers outside nodes multiply.

    Args:
        sizes: devices in a domain of each tier.
        ratios: oversubscription of each tier but the first.
        vendor: profile whose accelerator it has.
    """
    tiers = [tier("node", "switch", sizes[0])]
    tiers += [
        tier(f"net {number}", "switch", size, oversubscription=str(ratio), **PORT)
        for number, (size, ratio) in enumerate(zip(sizes[1:], ratios, strict=True))
    ]
    made = ClusterSpec.model_validate(machine(*tiers))
    return made.model_copy(update={"accelerator": profile(vendor).accelerator, "host": profile(vendor).host})
