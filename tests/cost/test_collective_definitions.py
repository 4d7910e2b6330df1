"""Definitions of collectives: that they do what their name says, and that the closed forms are theirs."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from math import prod

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.cluster import Cluster
from simulator.cluster.cluster import Tier
from simulator.cluster.tiers import tier_of_pair
from simulator.cluster.topology import explicit_graph
from simulator.cost.collectives import Algorithm, Collective, CollectiveChoice, ports_of, price_collective, time_alone_s
from simulator.cost.collectives.exchanges import by_rail, direct, ring_exchange, token_dispatch
from simulator.cost.collectives.experts import Routing, copies_sent, distinct_groups
from simulator.cost.collectives.links import bytes_by_link, sent_and_received
from simulator.cost.collectives.messages import (
    Steps,
    chain_broadcast,
    flat_ring,
    halving_doubling,
    hierarchical,
    in_switch,
    in_switch_then,
    split,
    together,
    torus_rings,
    two_way_ring,
)
from simulator.cost.collectives.trees import crossings, depth, parents, tree_all_reduce, tree_over, two_trees
from simulator.cost.collectives.volumes import Volume, volume_of
from simulator.errors import SimulatorFault
from tests.cost.networks import fast_tier, machine_of, torus, whole


def _counts(*choices: int) -> st.SearchStrategy[list[int]]:
    """Parts that each tier joins; a group may have one rank in each domain of the innermost."""
    inner, outer = st.sampled_from([1, *choices]), st.lists(st.sampled_from(choices), max_size=2)
    return st.builds(lambda first, rest: [first, *rest], inner, outer).filter(
        lambda counts: 1 < prod(counts) <= MOST_RANKS
    )


MOST_RANKS = 12
COUNTS = _counts(2, 3, 4)
POWERS = _counts(2, 4)
HALVES = st.sampled_from([(True, False), (False, True), (True, True)])
COLLECTIVE_OF = {
    (True, False): Collective.REDUCE_SCATTER,
    (False, True): Collective.ALL_GATHER,
    (True, True): Collective.ALL_REDUCE,
}


def _domains(counts: Sequence[int]) -> list[range]:
    """Ranks by innermost domain."""
    return [range(start, start + counts[0]) for start in range(0, prod(counts), counts[0])]


def _machine(counts: Sequence[int], *, reducing: bool = False) -> Cluster:
    """One switch a tier; domains of one rank are there too."""
    sizes = list(itertools.accumulate(counts, lambda a, b: a * b))
    more = {"in_network_reduction": "true"} if reducing else {}
    return machine_of(*(fast_tier(f"tier{index}", size, **more) for index, size in enumerate(sizes)))


def _run(
    steps: Steps, num_ranks: int, num_chunks: int, *, owners: Sequence[int] | None = None
) -> list[list[Counter[int]]]:
    """Whose parts are in each rank's copy of each chunk at the end; a part that is added twice counts twice.

    Without owners every rank begins with its own part of all chunks; with them, each chunk is whole at its owner.
    """
    most = 1 + max(max(message.source, message.target) for step in steps for message in step)
    held: list[list[Counter[int]]] = [[Counter() for _ in range(num_chunks)] for _ in range(max(most, num_ranks))]
    for rank in range(num_ranks):
        for chunk in range(num_chunks):
            if owners is None:
                held[rank][chunk][rank] = 1
            elif owners[chunk] == rank:
                held[rank][chunk] = Counter(range(num_ranks))
    for step in steps:
        before = [[Counter(part) for part in parts] for parts in held]
        for message in step:
            part = before[message.source][message.chunk]
            assert part, "a rank sends what it does not have"
            if message.adds:
                held[message.target][message.chunk] += part
            else:
                held[message.target][message.chunk] = Counter(part)
    return held


def _is_all_reduce(steps: Steps, num_ranks: int, num_chunks: int) -> bool:
    held = _run(steps, num_ranks, num_chunks)
    whole_sum = Counter(range(num_ranks))
    return all(part == whole_sum for parts in held[:num_ranks] for part in parts)


def _is_reduce_scatter(steps: Steps, owners: Sequence[int], num_ranks: int) -> bool:
    held = _run(steps, num_ranks, len(owners))
    return all(held[owner][chunk] == Counter(range(num_ranks)) for chunk, owner in enumerate(owners))


def _is_all_gather(steps: Steps, owners: Sequence[int], num_ranks: int) -> bool:
    held = _run(steps, num_ranks, len(owners), owners=owners)
    return all(part == Counter(range(num_ranks)) for parts in held[:num_ranks] for part in parts)


def _num_chunks(steps: Steps) -> int:
    return 1 + max(message.chunk for step in steps for message in step)


# What the definitions do.


@given(counts=COUNTS)
def test_rings_reduce_scatter_gather_and_both(counts: list[int]) -> None:
    ranks, rails = prod(counts), counts[0]
    by_rank = [owner // rails for owner in range(ranks * rails)]
    for make, owners in (
        (lambda **halves: flat_ring(_domains(counts), 10 * ranks * rails, **halves), by_rank),
        (lambda **halves: hierarchical(counts, 10 * ranks, **halves), list(range(ranks))),
        (lambda **halves: two_way_ring(ranks, 20 * ranks, **halves), [owner // 2 for owner in range(2 * ranks)]),
    ):
        assert _is_reduce_scatter(make(reduces=True, gathers=False), owners, ranks)
        assert _is_all_gather(make(reduces=False, gathers=True), owners, ranks)
        assert _is_all_reduce(make(reduces=True, gathers=True), ranks, len(owners))


@pytest.mark.parametrize(("length", "axes"), [(2, 2), (3, 2), (2, 3), (4, 2)])
def test_rings_of_a_torus_reduce_scatter_gather_and_both(length: int, axes: int) -> None:
    ranks = length**axes
    owners = [chunk // (2 * axes) for chunk in range(ranks * 2 * axes)]
    assert _is_reduce_scatter(torus_rings(length, axes, len(owners), reduces=True, gathers=False), owners, ranks)
    assert _is_all_gather(torus_rings(length, axes, len(owners), reduces=False, gathers=True), owners, ranks)
    assert _is_all_reduce(torus_rings(length, axes, len(owners), reduces=True, gathers=True), ranks, len(owners))


@pytest.mark.parametrize("ranks", [2, 4, 8, 16])
def test_halving_and_doubling_reduce_scatter_gather_and_both(ranks: int) -> None:
    owners = range(ranks)
    assert _is_reduce_scatter(halving_doubling(ranks, ranks, reduces=True, gathers=False), owners, ranks)
    assert _is_all_gather(halving_doubling(ranks, ranks, reduces=False, gathers=True), owners, ranks)
    assert _is_all_reduce(halving_doubling(ranks, ranks, reduces=True, gathers=True), ranks, ranks)


def test_halving_and_doubling_needs_a_power_of_two() -> None:
    with pytest.raises(SimulatorFault, match="power of two, not 6 ranks"):
        halving_doubling(6, 6, reduces=True, gathers=True)
    assert volume_of(Algorithm.HALVING_DOUBLING, Collective.ALL_REDUCE, 6, whole(_machine([6])), _machine([6])) is None


@given(counts=COUNTS)
def test_trees_and_switches_reduce_to_all(counts: list[int]) -> None:
    ranks, inside = prod(counts), counts[0]
    assert _is_all_reduce(tree_all_reduce(_domains(counts), 100), ranks, 2 * inside)
    assert _is_all_reduce(tree_all_reduce([[rank] for rank in range(ranks)], 100), ranks, 2)
    assert _is_all_reduce(
        in_switch(range(ranks), ranks, [[rank] for rank in range(ranks)], split(100, ranks)), ranks, ranks
    )


def test_switches_with_trees_between_reduce_to_all() -> None:
    domains = [range(4), range(4, 8), range(8, 12)]
    assert _is_all_reduce(_switches_and_trees(domains, 96), 12, 8)


def _switches_and_trees(domains: list[range], payload_bytes: int) -> Steps:
    """Each member of a domain owns two chunks, one for each of the two trees over its rail."""
    inside = len(domains[0])
    sizes = split(payload_bytes, 2 * inside)
    between = _rail_trees(domains, payload_bytes)
    switches = [sum(len(domain) for domain in domains) + number for number in range(len(domains))]
    return in_switch_then(domains, switches, between, sizes, [[2 * rail, 2 * rail + 1] for rail in range(inside)])


def _rail_trees(domains: list[range], payload_bytes: int) -> Steps:
    sizes = split(payload_bytes, 2 * len(domains[0]))
    return together(
        *(
            tree_over([domain[rail] for domain in domains], above, chunk, sizes[chunk])
            for rail in range(len(domains[0]))
            for chunk, above in zip((2 * rail, 2 * rail + 1), two_trees(len(domains)), strict=True)
        )
    )


def test_a_broadcast_in_pieces_reaches_all_in_n_minus_2_plus_q_steps() -> None:
    steps = chain_broadcast(range(5), 100, pieces=7)
    held = _run(steps, 5, 7, owners=[0] * 7)
    assert all(part for parts in held for part in parts)
    assert len(steps) == 5 - 2 + 7


@given(
    sizes=st.integers(2, 6).flatmap(
        lambda ranks: st.lists(
            st.lists(st.integers(0, 99), min_size=ranks, max_size=ranks), min_size=ranks, max_size=ranks
        )
    )
)
def test_an_all_to_all_by_rail_delivers_what_the_direct_one_does(sizes: list[list[int]]) -> None:
    ranks = len(sizes)
    inside = 2 if ranks % 2 == 0 else 1
    routed = by_rail(_domains([inside, ranks // inside]), sizes)
    for source, target in itertools.permutations(range(ranks), 2):
        chunk = source * ranks + target
        ends = [(message.source, message.target) for step in routed for message in step if message.chunk == chunk]
        if sizes[source][target]:
            # One after the other from the source to the target.
            assert ends[0][0] == source
            assert ends[-1][1] == target
            assert all(before[1] == after[0] for before, after in itertools.pairwise(ends))
    leaving = [_between(steps, inside) for steps in (routed, direct(sizes))]
    assert leaving[0] == leaving[1]


def _between(steps: Steps, inside: int) -> int:
    return sum(
        message.size_bytes for step in steps for message in step if message.source // inside != message.target // inside
    )


# Their trees.


@given(count=st.integers(2, 200))
def test_two_trees_are_trees_and_share_the_work(count: int) -> None:
    for above in two_trees(count):
        assert sum(1 for place in above if place < 0) == 1
        for place in range(count):
            seen = set()
            at = place
            while above[at] >= 0:
                assert at not in seen
                seen.add(at)
                at = int(above[at])
    sent, received = sent_and_received(tree_all_reduce([[rank] for rank in range(count)], 1000))
    assert sent == received
    assert max(sent.values()) <= 2000


@given(bits=st.integers(1, 9))
def test_a_tree_over_a_power_of_two_is_as_deep_as_its_logarithm(bits: int) -> None:
    assert depth(1 << bits) == bits
    assert parents(1 << bits)[1 << (bits - 1)] == 0


@given(count=st.integers(2, 60), block=st.integers(1, 60))
def test_edges_that_cross_blocks_are_counted(count: int, block: int) -> None:
    edges = [(place, int(above[place])) for above in two_trees(count) for place in range(count) if above[place] >= 0]
    assert crossings(count, block) == sum(low // block != high // block for low, high in edges)


# Closed forms are the definitions', byte for byte on every link.


def _definition(algorithm: Algorithm, counts: list[int], payload_bytes: int, halves: tuple[bool, bool]) -> Steps:
    reduces, gathers = halves
    match algorithm:
        case Algorithm.RING:
            return flat_ring(_domains(counts), payload_bytes, reduces=reduces, gathers=gathers)
        case Algorithm.HIERARCHICAL:
            return hierarchical(counts, payload_bytes, reduces=reduces, gathers=gathers)
        case _:
            return halving_doubling(prod(counts), payload_bytes, reduces=reduces, gathers=gathers)


def _folded(algorithm: Algorithm, collective: Collective, payload_bytes: int, cluster: Cluster) -> Volume:
    volume = volume_of(algorithm, collective, payload_bytes, whole(cluster), cluster, chains=True)
    assert volume is not None
    return volume


def _sent_by_tier(steps: Steps, cluster: Cluster) -> list[Counter[int]]:
    """Bytes that each rank sends in each tier."""
    sent: list[Counter[int]] = [Counter() for _ in cluster.tiers]
    for step in steps:
        for message in step:
            sent[int(tier_of_pair(cluster, message.source, message.target))][message.source] += message.size_bytes
    return sent


@given(
    counts=COUNTS,
    halves=HALVES,
    algorithm=st.sampled_from([Algorithm.RING, Algorithm.HIERARCHICAL]),
    unit=st.integers(1, 99),
)
def test_every_rank_sends_in_every_tier_what_the_closed_form_of_rings_says(
    counts: list[int], halves: tuple[bool, bool], algorithm: Algorithm, unit: int
) -> None:
    _holds_exactly(algorithm, counts, halves, unit)


@given(counts=POWERS, halves=HALVES, unit=st.integers(1, 99))
def test_every_rank_sends_in_every_tier_what_the_closed_form_of_pairs_says(
    counts: list[int], halves: tuple[bool, bool], unit: int
) -> None:
    _holds_exactly(Algorithm.HALVING_DOUBLING, counts, halves, unit)


def _holds_exactly(algorithm: Algorithm, counts: list[int], halves: tuple[bool, bool], unit: int) -> None:
    cluster, ranks = _machine(counts), prod(counts)
    payload = unit * ranks * ranks * counts[0]
    steps = _definition(algorithm, counts, payload, halves)
    volume = _folded(algorithm, COLLECTIVE_OF[halves], payload, cluster)
    by_tier = _sent_by_tier(steps, cluster)
    # A flat ring leaves a block of nodes at its last node only: there the closed form is the mean of the block.
    even = algorithm is not Algorithm.RING or len(counts) <= 2
    for count, sent in zip(volume.tier_bytes, by_tier, strict=True):
        assert not even or set(sent.values()) <= {count}
        assert sum(sent.values()) == count * ranks
    assert len(steps) == sum(volume.tier_steps)
    _links_carry(steps, volume, cluster, even=even)


def _links_carry(steps: Steps, volume: Volume, cluster: Cluster, *, even: bool = True) -> None:
    """Each device's link into each tier carries the folded bytes out, and all in all as many in; switches keep none."""
    graph = explicit_graph(cluster)
    carried = bytes_by_link(steps, range(cluster.num_devices), cluster, graph)
    out: Counter[tuple[int, int]] = Counter()
    into: Counter[tuple[int, int]] = Counter()
    balance: Counter[object] = Counter()
    for (source, target), count in carried.items():
        tier = graph.edges[source, target]["tier"]
        balance[source] -= count
        balance[target] += count
        if isinstance(source, int):
            out[source, tier] += count
        if isinstance(target, int):
            into[target, tier] += count
    for tier, count in enumerate(volume.tier_bytes):
        carried_out = [out[device, tier] for device in range(cluster.num_devices)]
        assert sum(carried_out) == count * cluster.num_devices
        assert not even or set(carried_out) == {count}
    assert sum(out.values()) == sum(into.values())
    assert not any(count for node, count in balance.items() if not isinstance(node, int))


@given(counts=POWERS, unit=st.integers(1, 99))
def test_a_tree_sends_in_every_tier_what_its_closed_form_says(counts: list[int], unit: int) -> None:
    """In all: (n - 1)/n of twice S a rank on average; the closed form is that of the busiest, 2·S."""
    cluster, ranks = _machine(counts), prod(counts)
    payload = unit * 2 * counts[0] * 2 * max(1, ranks // counts[0] - 1)
    steps = tree_all_reduce(_domains(counts), payload)
    volume = _folded(Algorithm.TREE, Collective.ALL_REDUCE, payload, cluster)
    by_tier = _sent_by_tier(steps, cluster)
    nodes = ranks // counts[0]
    assert sum(by_tier[0].values()) == volume.tier_bytes[0] * ranks
    for index in range(1, len(counts)):
        # All edges of both trees, over all nodes: one fewer edge than nodes.
        assert sum(by_tier[index].values()) * nodes == volume.tier_bytes[index] * ranks * (nodes - 1)
    outside = [sum(tier[rank] for tier in by_tier[1:]) for rank in range(ranks)]
    assert max(outside) <= sum(volume.tier_bytes[1:])
    assert len(steps) == sum(volume.tier_steps)


@given(ranks=st.integers(2, 12), unit=st.integers(1, 99))
def test_a_reducing_switch_takes_in_what_the_closed_form_says(ranks: int, unit: int) -> None:
    cluster = _machine([ranks], reducing=True)
    payload = unit * ranks
    steps = in_switch(range(ranks), ranks, [[rank] for rank in range(ranks)], split(payload, ranks))
    volume = _folded(Algorithm.NVLS, Collective.ALL_REDUCE, payload, cluster)
    carried = bytes_by_link(steps, range(ranks), cluster, explicit_graph(cluster), {ranks: ("tier0", 0)})
    for rank in range(ranks):
        assert carried[rank, ("tier0", 0)] == carried[("tier0", 0), rank] == volume.tier_bytes[0] == payload + unit


def test_switches_with_trees_between_send_what_the_closed_form_says() -> None:
    cluster = _machine([4, 4], reducing=True)
    payload = 4 * 2 * 3 * 10
    steps = _switches_and_trees(_domains([4, 4]), payload)  # type: ignore[arg-type]
    volume = _folded(Algorithm.NVLS_TREE, Collective.ALL_REDUCE, payload, cluster)
    sent: list[Counter[int]] = [Counter(), Counter()]
    for step in steps:
        for message in step:
            if message.source < 16:
                sent[message.target < 16][message.source] += message.size_bytes
    assert set(sent[0].values()) == {volume.tier_bytes[0]}
    assert sum(sent[1].values()) * 4 == volume.tier_bytes[1] * 16 * 3
    assert max(sent[1].values()) <= volume.tier_bytes[1] == 2 * payload // 4


@given(counts=COUNTS, unit=st.integers(1, 99))
def test_an_all_to_all_sends_in_every_tier_what_its_closed_form_says(counts: list[int], unit: int) -> None:
    cluster, ranks = _machine(counts), prod(counts)
    steps = direct([[unit] * ranks] * ranks)
    volume = _folded(Algorithm.DIRECT, Collective.ALL_TO_ALL, unit * ranks, cluster)
    for count, sent in zip(volume.tier_bytes, _sent_by_tier(steps, cluster), strict=True):
        assert set(sent.values()) <= {count}
        assert sum(sent.values()) == count * ranks
    _links_carry(steps, volume, cluster)


@given(counts=COUNTS)
def test_a_broadcast_sends_in_every_tier_what_its_closed_form_says(counts: list[int]) -> None:
    """One chain a rail, each with 1/G of the array; the closed form also counts the last rank, which sends nothing."""
    cluster, ranks, inside = _machine(counts), prod(counts), counts[0]
    payload = ranks * inside
    sent: Counter[int] = Counter()
    for rail in range(inside):
        order = [rank for domain in _domains(counts) for rank in (*domain[rail + 1 :], *domain[: rail + 1])]
        for step in chain_broadcast(order, payload // inside):
            for message in step:
                sent[int(tier_of_pair(cluster, message.source, message.target))] += message.size_bytes
    volume = _folded(Algorithm.CHAIN, Collective.BROADCAST, payload, cluster)
    last = max(index for index, count in enumerate(counts) if count > 1)
    for index, count in enumerate(volume.tier_bytes):
        assert sent[index] == count * ranks - (payload if index == last else 0)


@pytest.mark.parametrize(("length", "axes"), [(4, 1), (8, 1), (3, 2), (4, 2), (4, 3)])
@pytest.mark.parametrize("halves", list(COLLECTIVE_OF))
def test_every_link_of_a_torus_carries_half_of_its_axis_port(length: int, axes: int, halves: tuple[bool, bool]) -> None:
    cluster, ranks = torus(*[length] * axes), length**axes
    payload = ranks * 2 * axes * 6
    steps = torus_rings(length, axes, payload, reduces=halves[0], gathers=halves[1])
    carried = bytes_by_link(steps, range(ranks), cluster, explicit_graph(cluster))
    traffic = price_collective(
        COLLECTIVE_OF[halves], payload, whole(cluster), cluster, CollectiveChoice(algorithm=Algorithm.HIERARCHICAL)
    )
    assert traffic is not None
    assert len(traffic.demands) == axes
    assert len(carried) == 2 * axes * ranks
    for _, busy in traffic.demands:
        # A port of an axis is two links.
        assert set(carried.values()) == {busy // 2}


@pytest.mark.parametrize(("length", "axes"), [(4, 1), (8, 1), (4, 2)])
def test_every_link_of_a_torus_carries_its_share_of_an_all_to_all(length: int, axes: int) -> None:
    cluster, ranks = torus(*[length] * axes), length**axes
    steps = direct([[8] * ranks] * ranks)
    carried = bytes_by_link(steps, range(ranks), cluster, explicit_graph(cluster))
    traffic = price_collective(Collective.ALL_TO_ALL, 8 * ranks, whole(cluster), cluster)
    assert traffic is not None
    for _, busy in traffic.demands:
        assert max(carried.values()) == min(carried.values()) == pytest.approx(busy / 2, abs=1)


def test_a_context_ring_over_two_nodes_sends_whole_chunks_over_the_network() -> None:
    steps = ring_exchange(range(8), 10, 7)
    sent = _sent_by_tier(steps, _machine([4, 2]))
    assert sent[1] == {3: 70, 7: 70}
    assert sum(sent[0].values()) == 6 * 70


# Times.


@given(ranks=st.sampled_from([2, 4, 8, 16]), unit=st.integers(1, 10**6), halves=HALVES)
def test_alpha_beta_times_are_those_of_the_definition_step_by_step(
    ranks: int, unit: int, halves: tuple[bool, bool]
) -> None:
    alpha, rate = 3e-6, 1e9
    cluster = machine_of(fast_tier("switch", ranks, bytes_per_s=rate, latency_s=alpha))
    payload = unit * ranks
    for algorithm in (Algorithm.RING, Algorithm.HIERARCHICAL, Algorithm.HALVING_DOUBLING):
        counted = 0.0
        for step in _definition(algorithm, [ranks], payload, halves):
            sent, received = sent_and_received((step,))
            counted += alpha + max(*sent.values(), *received.values()) / rate
        traffic = price_collective(
            COLLECTIVE_OF[halves], payload, whole(cluster), cluster, CollectiveChoice(algorithm=algorithm)
        )
        assert traffic is not None
        assert traffic.algorithm is algorithm
        assert time_alone_s(traffic, ports_of(cluster)) == pytest.approx(counted, rel=1e-9)


@given(counts=COUNTS, unit=st.integers(1, 10**6), algorithm=st.sampled_from(list(Algorithm)), halves=HALVES)
def test_no_algorithm_beats_the_bandwidth_or_latency_bound(
    counts: list[int], unit: int, algorithm: Algorithm, halves: tuple[bool, bool]
) -> None:
    """A domain takes in what it has not through its ports; something must come from the farthest rank (E4.1)."""
    cluster, ranks = _machine(counts, reducing=True), prod(counts)
    collective = COLLECTIVE_OF[halves]
    payload = unit * ranks
    traffic = price_collective(collective, payload, whole(cluster), cluster, CollectiveChoice(algorithm=algorithm))
    assert traffic is not None
    seconds = time_alone_s(traffic, ports_of(cluster))
    last = max(index for index, count in enumerate(counts) if count > 1)
    part = prod(counts[:last])
    # Switches that reduce take an all-reduce through the port once.
    passes = sum(halves) if traffic.algorithm not in (Algorithm.NVLS, Algorithm.SHARP) else 1
    bound = passes * payload * (ranks - part) / ranks / (part * ports_of(cluster)[last].bytes_per_s)
    assert seconds >= bound * (1 - 1e-9)
    assert traffic.latency_s >= min(tier.latency_s for tier in _used(counts, cluster))


def _used(counts: list[int], cluster: Cluster) -> list[Tier]:
    return [tier for tier, count in zip(cluster.tiers, counts, strict=True) if count > 1]


# Experts.


@pytest.mark.parametrize(
    ("inside", "nodes", "experts", "top_k"), [(2, 2, 8, 2), (2, 3, 6, 3), (1, 4, 8, 3), (4, 2, 8, 2)]
)
def test_copies_of_tokens_are_those_of_all_choices_of_experts(
    inside: int, nodes: int, experts: int, top_k: int
) -> None:
    ranks = inside * nodes
    choices = list(itertools.combinations(range(experts), top_k))
    chosen = [[sorted({expert * ranks // experts for expert in choice}) for choice in choices] for _ in range(ranks)]
    routing = Routing(experts=experts, top_k=top_k)
    steps = token_dispatch(_domains([inside, nodes]), chosen, 1)
    outside, within = (sum(message.size_bytes for message in step) for step in steps)
    cluster = _machine([inside, nodes])
    per_token = copies_sent(routing, whole(cluster))
    assert outside / (ranks * len(choices)) == pytest.approx(per_token[1])
    assert within / (ranks * len(choices)) == pytest.approx(per_token[0])
    distinct = sum(len(targets) for targets in chosen[0]) / len(choices)
    assert distinct_groups(ranks, routing) == pytest.approx(distinct)
