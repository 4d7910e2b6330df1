"""Closed forms: what a rank sends in each tier, and how many messages follow each other, for groups of any size.

With g_k parts joined in tier k, N_k = g_0 · … · g_k and n ranks, of a payload S a rank sends in tier k, one way
(reduce-scatter or all-gather; an all-reduce is both):

    hierarchical rings     (g_k - 1) / N_k · S                                                        (E4.5)
    one ring a rail        (n - 1)/n · S · (1/N_{k-1} - 1/N_k), outermost tier: 1/N_{k-1}              (E4.5)
    halving and doubling   as hierarchical rings                                                      (E4.4)
    tree with chains       (G - 1)/G · S inside, S/G outside, by edges that cross a tier              (E4.3)
    switches (all-reduce)  S + S/n in the innermost tier                                              (E4.6)
    all-to-all             S/n · (N_k - N_{k-1})                                                      (E4.1)

The tests hold each equal to its definition in `messages`, `trees` and `exchanges`. Payloads may be numpy arrays.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import accumulate
from math import ceil, log2
from operator import mul

from simulator.cluster.cluster import Cluster
from simulator.cluster.spec import TierKind
from simulator.cost.collectives.trees import crossings
from simulator.parallel.collective_choice import Algorithm, Collective
from simulator.parallel.groups import GroupShape


@dataclass(frozen=True, slots=True, kw_only=True)
class Volume:
    """An algorithm on a group, folded to one rank."""

    tier_bytes: tuple[int, ...]
    """Bytes that a rank sends in each tier."""
    tier_steps: tuple[int, ...]
    """Messages in series in each tier."""
    num_sends: int
    """Messages that a piece of the array passes through on its whole way."""


def volume_of(
    algorithm: Algorithm,
    collective: Collective,
    payload_bytes: int,
    shape: GroupShape,
    cluster: Cluster,
    *,
    chains: bool = False,
) -> Volume | None:
    """Returns what a rank sends; None where the algorithm cannot run on the group.

    Args:
        algorithm: which.
        collective: what for.
        payload_bytes: S.
        shape: the group.
        cluster: its tiers.
        chains: a tree has chains inside the innermost tier, as NCCL's have, also where there is no other tier.
    """
    members = [part.members for part in shape.tiers]
    switched = all(
        tier.kind is not TierKind.TORUS or part.members == 1
        for tier, part in zip(cluster.tiers, shape.tiers, strict=True)
    )
    joined = all(
        tier.kind is TierKind.SWITCH or part.members == 1 for tier, part in zip(cluster.tiers, shape.tiers, strict=True)
    )
    reducing = cluster.tiers[0].in_network_reduction
    alone = all(count == 1 for count in members[1:])
    all_reduce = collective is Collective.ALL_REDUCE
    match algorithm:
        case Algorithm.HIERARCHICAL:
            return _rings(collective, payload_bytes, shape) if _is_ring(collective) else None
        case Algorithm.RING:
            return flat_ring(collective, payload_bytes, members) if switched and _is_ring(collective) else None
        case Algorithm.HALVING_DOUBLING:
            powers = all(count & (count - 1) == 0 for count in members)
            return _pairs(collective, payload_bytes, shape) if joined and powers and _is_ring(collective) else None
        case Algorithm.TREE:
            return tree(payload_bytes, members, chains=chains) if joined and all_reduce else None
        case Algorithm.NVLS:
            return in_switch(payload_bytes, members) if reducing and alone and members[0] > 1 and all_reduce else None
        case Algorithm.NVLS_TREE:
            return in_switch(payload_bytes, members) if reducing and not alone and joined and all_reduce else None
        case Algorithm.SHARP:
            outside = [tier.in_network_reduction for tier in cluster.tiers[1:] if members[tier.index] > 1]
            return in_fabric(payload_bytes, members) if outside and all(outside) and joined and all_reduce else None
        case Algorithm.DIRECT:
            return _direct(payload_bytes, shape, cluster) if collective is Collective.ALL_TO_ALL else None
        case Algorithm.CHAIN:
            return chain(payload_bytes, members) if switched and collective is Collective.BROADCAST else None
        case Algorithm.AUTO:
            return None


def _is_ring(collective: Collective) -> bool:
    return collective in (Collective.ALL_REDUCE, Collective.ALL_GATHER, Collective.REDUCE_SCATTER)


def passes_of(collective: Collective) -> int:
    """Returns how often the array goes around: an all-reduce is a reduce-scatter and an all-gather."""
    return 2 if collective is Collective.ALL_REDUCE else 1


def _rings(collective: Collective, payload_bytes: int, shape: GroupShape) -> Volume:
    passes, inner = passes_of(collective), 1
    sent: list[int] = []
    for part in shape.tiers:
        sent.append(passes * _share(payload_bytes, Fraction(part.members - 1, part.members * inner)))
        inner *= part.members
    return Volume(
        tier_bytes=tuple(sent),
        tier_steps=tuple(passes * part.steps for part in shape.tiers),
        num_sends=passes * (inner - 1),
    )


def _pairs(collective: Collective, payload_bytes: int, shape: GroupShape) -> Volume:
    rings = _rings(collective, payload_bytes, shape)
    steps = tuple(passes_of(collective) * (part.members.bit_length() - 1) for part in shape.tiers)
    return Volume(tier_bytes=rings.tier_bytes, tier_steps=steps, num_sends=sum(steps))


def ring_hops(members: Sequence[int]) -> tuple[int, ...]:
    """Returns how many hops of a closed ring over all ranks each tier carries, domain by domain."""
    sizes = list(accumulate(members, mul))
    num_ranks, inner = sizes[-1], 1
    hops: list[int] = []
    for size, count in zip(sizes, members, strict=True):
        outside = num_ranks // size if size < num_ranks else 0
        hops.append(num_ranks // inner - outside if count > 1 else 0)
        inner = size
    return tuple(hops)


def flat_ring(collective: Collective, payload_bytes: int, members: Sequence[int]) -> Volume:
    """Returns NCCL's ring: n - 1 messages of S/n each way, over every tier as its hops are of all hops (E4.2, E4.5)."""
    passes, hops = passes_of(collective), ring_hops(members)
    num_ranks = sum(hops)
    last = max(index for index, count in enumerate(members) if count > 1)
    return Volume(
        tier_bytes=tuple(
            passes * _share(payload_bytes, Fraction((num_ranks - 1) * count, num_ranks * num_ranks)) for count in hops
        ),
        # The last message of the closed ring is never sent: it would bring back what a rank sent first.
        tier_steps=tuple(passes * (count - (index == last)) if count else 0 for index, count in enumerate(hops)),
        num_sends=passes * (num_ranks - 1),
    )


def chain(payload_bytes: int, members: Sequence[int]) -> Volume:
    """Returns a broadcast along a ring in many pieces: all ranks but the last send S once (E4.1)."""
    ring = flat_ring(Collective.BROADCAST, payload_bytes, members)
    hops = ring_hops(members)
    num_ranks = sum(hops)
    return Volume(
        tier_bytes=tuple(_share(payload_bytes, Fraction(count, num_ranks)) for count in hops),
        tier_steps=ring.tier_steps,
        num_sends=num_ranks - 1,
    )


def tree(payload_bytes: int, members: Sequence[int], *, chains: bool) -> Volume:
    """Returns two trees up and down, busiest rank: 2·S, G-th parts of it outside a domain of G (E4.3).

    Tiers outside share what leaves a domain as the edges of the trees cross them.
    """
    alone = all(count == 1 for count in members[1:])
    inside = members[0] if chains or not alone else 1
    sizes = list(accumulate(members, mul))
    places = sizes[-1] // inside
    sent = [2 * _share(payload_bytes, Fraction(inside - 1, inside)) if inside > 1 else 0]
    steps = [2 * (inside - 1)]
    if inside == 1:
        sent[0] = 2 * payload_bytes if alone else 0
        steps[0] = 2 * ceil(log2(members[0]))
    for index in range(1, len(members)):
        if members[index] == 1:
            sent.append(0)
            steps.append(0)
            continue
        here = _crossing_share(places, sizes[index - 1] // inside, sizes[index] // inside)
        sent.append(2 * _share(payload_bytes, here / inside))
        steps.append(2 * ceil(log2(members[index])))
    return Volume(tier_bytes=tuple(sent), tier_steps=tuple(steps), num_sends=sum(steps))


def _crossing_share(places: int, inner: int, outer: int) -> Fraction:
    """Edges that leave a run of `inner` places but no run of `outer`, of all edges of the two trees."""
    return Fraction(crossings(places, inner) - crossings(places, outer), 2 * (places - 1))


def in_switch(payload_bytes: int, members: Sequence[int]) -> Volume:
    """Returns sums and multicast in the innermost switches, trees of S/G between them (E4.6)."""
    inside = members[0]
    outside = tree(payload_bytes, members, chains=True)
    here = payload_bytes + _share(payload_bytes, Fraction(1, inside)) if inside > 1 else 0
    steps = (2 * (inside > 1), *outside.tier_steps[1:])
    return Volume(tier_bytes=(here, *outside.tier_bytes[1:]), tier_steps=steps, num_sends=sum(steps))


def in_fabric(payload_bytes: int, members: Sequence[int]) -> Volume:
    """Returns rings inside a node and one pass, S/G up and down, through reducing switches outside it (E4.6).

    A switch sends on one sum for all below it, so tier k carries S / N_{k-1} a rank. Latency: up and down.
    """
    inside, inner = members[0], members[0]
    sent = [2 * _share(payload_bytes, Fraction(inside - 1, inside))]
    steps = [2 * (inside - 1)]
    for count in members[1:]:
        sent.append(_share(payload_bytes, Fraction(1, inner)) if count > 1 else 0)
        steps.append(2 * (count > 1))
        inner *= count
    return Volume(tier_bytes=tuple(sent), tier_steps=tuple(steps), num_sends=sum(steps))


def _direct(payload_bytes: int, shape: GroupShape, cluster: Cluster) -> Volume:
    sent: list[int] = []
    steps: list[int] = []
    inner = 1
    for tier, part in zip(cluster.tiers, shape.tiers, strict=True):
        sent.append(_share(payload_bytes, Fraction(inner * (part.members - 1), shape.size)))
        steps.append(part.steps if tier.kind is TierKind.TORUS else int(part.members > 1))
        inner *= part.members
    return Volume(tier_bytes=tuple(sent), tier_steps=tuple(steps), num_sends=inner - 1)


def _share(payload_bytes: int, fraction: Fraction) -> int:
    """Bytes of a fraction of the payload, rounded up to whole bytes."""
    return -(-payload_bytes * fraction.numerator // fraction.denominator)
