"""What a report tells of the network beside bytes by axis and tier: links, who talks to whom, where groups lie."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Volume:
    """Bytes of one collective of one axis over one kind of link, in a step."""

    axis: str
    """tp, cp, ep, pp, dp or embedding."""
    collective: str
    """all-reduce, all-gather, reduce-scatter, all-to-all, send."""
    tier: str
    """Name of the tier that the bytes cross."""
    link: str
    """The outermost kind of link on their way: a port of the device, the uplinks of a domain, an axis of a torus."""
    total_bytes: int
    """Bytes that all ranks send over it."""
    bytes_per_rank_mean: float
    """The same per rank of the job."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkUse:
    """One kind of link over a whole step, and the fullest of its kind."""

    link: str
    """As in `Volume`; also what a rank has of the links of its host."""
    tier: str
    """Name of the tier; `host` for links of the host."""
    carried_bytes: int
    """Bytes that keep all links of the kind busy, in the fuller direction; flags of a protocol and ways that are
    shared count, so they may be more than are sent."""
    class_: str
    """The rank class whose link is the fullest; of an uplink, a class that shares it."""
    direction: str
    """out or in, whichever of its two is used more; empty for a link of the host."""
    capacity_bytes_per_s: float
    """Bandwidth of that link, one direction, as modelled: of a rank's port, or of all uplinks of a domain."""
    use_fraction: float
    """Share of what that link could carry in the step that it does carry."""
    busy_fraction: float
    """Share of the step in which anything moves over that link."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Flow:
    """Bytes from the ranks of one place of the pipeline to those of another, in a step."""

    axis: str
    """tp, cp, ep, pp, dp or embedding."""
    from_pipeline_rank: int
    """Pipeline rank of the senders."""
    to_pipeline_rank: int | None
    """Pipeline rank of the receivers: the same one for groups inside a stage; None: collectives of all ranks."""
    total_bytes: int
    """Bytes that all ranks of the sender's pipeline rank send."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AxisPlace:
    """Where the groups of one axis lie in the network."""

    axis: str
    """tp, cp, ep, pp or dp; with `replicas` or `experts` behind it for further groups of that axis."""
    ranks: int
    """Ranks of a group."""
    tier: str
    """The outermost tier that a group crosses."""
    hops: int
    """Most links between two ranks that follow each other in a group."""
    latency_s: float
    """Largest latency between two such ranks."""
    slowest_link: str
    """The slowest kind of link of a group when all ranks send."""
    slowest_bytes_per_s: float
    """Nominal bandwidth of a rank there, one direction: port, share of an uplink, fault."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BetterOrder:
    """Another order of the axes on the devices, with which the same step is shorter; simulated."""

    order: tuple[str, ...]
    """`layout.order`."""
    axis: str
    """The axis that gains most from it."""
    tier: str
    """The outermost tier that its groups cross then."""
    instead_of: str
    """The one that they cross now."""
    step_time_s: float
    """Step time with the other order."""
    saved_s: float
    """How much shorter that is."""
