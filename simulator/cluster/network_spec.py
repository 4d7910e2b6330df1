"""The form of any network: devices, switches and links, written one by one."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Annotated

from pydantic import Field, ValidationError, model_validator

from simulator.cluster.figures import BandwidthFigure, CountFigure, Name, SecondsFigure, Section, ShareFigure
from simulator.cluster.tier_spec import TierKind, TierSpec

MAX_NETWORK_DEVICES = 256
"""Largest network written link by link: the way between every two devices is computed."""
_DEVICES = re.compile(r"(\d{1,6})(?:-(\d{1,6}))?")
_UNREAD = TierSpec(
    name="unread",
    kind=TierKind.SWITCH,
    size=CountFigure(value=1),
    bandwidth=BandwidthFigure(value=1.0),
    latency=SecondsFigure(value=0.0),
    efficiency=ShareFigure(value=1.0),
)


class LinkSpec(Section):
    """A link between two nodes, or equal links from several devices to one node."""

    between: tuple[Name, Name]
    """Two ends: number of a device, a run of devices `0-7`, or name of a switch."""
    bandwidth: BandwidthFigure
    """Of one direction of one link."""
    latency: SecondsFigure
    """From end to end."""
    one_way: bool = False
    """Whether the link goes from the first end to the second only."""


class NetworkSpec(Section):
    """Any graph of devices, switches and links; routes are shortest paths, traffic is spread equally over them."""

    switches: tuple[Name, ...] = ()
    """Names of the switches."""
    links: Annotated[tuple[LinkSpec, ...], Field(min_length=1)]
    """Links; several between the same nodes add up."""
    efficiency: ShareFigure
    """Share of the nominal bandwidth that large collectives reach."""
    domains: dict[Name, Annotated[int, Field(ge=2)]] = Field({})
    """Size of the tiers by name, from inside out, as runs of consecutive devices; default: found by bandwidth and
    length of the ways."""
    forwarding: bool = False
    """Whether devices pass on traffic of others, as in a torus."""

    @model_validator(mode="after")
    def _ends_exist(self) -> NetworkSpec:
        numbers = [name for name in self.switches if _DEVICES.fullmatch(name)]
        if numbers:
            raise ValueError(f"switch {numbers[0]} is called like a device; give switches names")
        if len(set(self.switches)) < len(self.switches):
            raise ValueError("two switches have the same name")
        known = set(self.switches)
        for link in self.links:
            for end in link.between:
                if end not in known and not _DEVICES.fullmatch(end):
                    raise ValueError(f"link {' to '.join(link.between)}: {end!r} is no device and none of the switches")
        return self


def joined(link: LinkSpec) -> Iterator[tuple[int | str, int | str]]:
    """Yields the two ends of every link that an entry stands for; devices are numbers."""
    for a in _nodes(link.between[0]):
        for b in _nodes(link.between[1]):
            if a != b:
                yield a, b


def _nodes(end: str) -> tuple[int | str, ...]:
    found = _DEVICES.fullmatch(end)
    if found is None:
        return (end,)
    first = int(found[1])
    return tuple(range(first, int(found[2] or first) + 1))


def tiers_of_network(network: object, devices: object) -> tuple[TierSpec, ...]:
    """Returns the tiers that stand for a network; any tier where its form or number of devices is not right.

    Args:
        network: what the file has under `network`.
        devices: what the file has under `devices`.

    Raises:
        ValueError: the links do not join the devices, or the domains are not runs of them.
    """
    try:
        spec = NetworkSpec.model_validate(network)
        count = CountFigure.model_validate(devices).value
    except ValidationError:
        return (_UNREAD,)  # the fields have their own word on it, and the cluster is refused
    if count > MAX_NETWORK_DEVICES:
        raise ValueError(
            f"network: {count} devices written link by link, at most {MAX_NETWORK_DEVICES}; describe larger machines "
            "by tiers"
        )
    # networkx is loaded only for files that need it: it would double the start-up time of all others.
    from simulator.cluster.network_tiers import reduce_network

    return reduce_network(spec, count)
