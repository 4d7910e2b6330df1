"""Definitions of collectives, part 3: all-to-all, tokens to their experts, and the ring of context parallelism."""

from __future__ import annotations

from collections.abc import Sequence

from simulator.cost.collectives.messages import Message, Steps


def direct(sizes: Sequence[Sequence[int]]) -> Steps:
    """Returns an all-to-all(v): every rank sends to every other at once (E4.1).

    Args:
        sizes: bytes from rank to rank, [source][target]; what a rank keeps is on the diagonal.
    """
    num_ranks = len(sizes)
    return (
        tuple(
            Message(source, target, sizes[source][target], source * num_ranks + target, False)
            for source in range(num_ranks)
            for target in range(num_ranks)
            if source != target and sizes[source][target]
        ),
    )


def by_rail(domains: Sequence[Sequence[int]], sizes: Sequence[Sequence[int]]) -> Steps:
    """Returns a hierarchical all-to-all: inside to the member on the target's rail, then along the rail.

    As many bytes leave a domain as in the direct one, in G times fewer messages; inside, a rank also sends what others
    of its domain take out.
    """
    num_ranks = len(sizes)
    place = {rank: (number, rail) for number, domain in enumerate(domains) for rail, rank in enumerate(domain)}
    inside: list[Message] = []
    outside: list[Message] = []
    for source in range(num_ranks):
        home, _ = place[source]
        for target in range(num_ranks):
            chunk, size = source * num_ranks + target, sizes[source][target]
            away, rail = place[target]
            through = domains[home][rail]
            if through != source and size:
                inside.append(Message(source, through, size, chunk, False))
            if away != home and size:
                outside.append(Message(through, target, size, chunk, False))
    return (tuple(inside), tuple(outside))


def token_dispatch(
    domains: Sequence[Sequence[int]], chosen: Sequence[Sequence[Sequence[int]]], token_bytes: int
) -> Steps:
    """Returns the way of tokens to their experts: once to each domain, along the rail, then on inside (E4.11).

    The combine is the same backwards. Tokens of the same rank that go to one rank are one chunk each.

    Args:
        domains: ranks by domain.
        chosen: [rank][token]: the ranks that hold its experts, without repeats.
        token_bytes: bytes of a token.
    """
    place = {rank: (number, rail) for number, domain in enumerate(domains) for rail, rank in enumerate(domain)}
    outside: list[Message] = []
    inside: list[Message] = []
    chunk = 0
    for source, tokens in enumerate(chosen):
        home, rail = place[source]
        for targets in tokens:
            for away in sorted({place[target][0] for target in targets}):
                entry = domains[away][rail]
                if away != home:
                    outside.append(Message(source, entry, token_bytes, chunk, False))
                inside += [
                    Message(entry, target, token_bytes, chunk, False)
                    for target in targets
                    if place[target][0] == away and target != entry
                ]
            chunk += 1
    return (tuple(outside), tuple(inside))


def ring_exchange(members: Sequence[int], chunk_bytes: int, num_steps: int) -> Steps:
    """Returns chunks passed on around a ring, as ring attention does with K and V (E4.10)."""
    count = len(members)
    return tuple(
        tuple(
            Message(members[place], members[(place + 1) % count], chunk_bytes, (place - step) % count, False)
            for place in range(count)
        )
        for step in range(num_steps)
    )
