"""Collectives: bytes and seconds of rings, trees, tiers and tori, against the closed forms and lower bounds."""

from __future__ import annotations

import itertools
from math import ceil
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.cluster import Cluster, build_cluster
from simulator.cost.collectives import Collective, Traffic, ports_of, price_collective, price_send, time_alone_s
from simulator.parallel.groups import GroupShape, shape_of
from simulator.parallel.layout import Layout
from simulator.parallel.mesh import build_mesh
from tests.cluster.machines import machine, spec, tier
from tests.oracles import Record, each, records
from tests.parallel.jobs import degrees

GIB = 1 << 30
OPTIMAL = {
    Collective.ALL_GATHER: 1,
    Collective.REDUCE_SCATTER: 1,
    Collective.ALL_TO_ALL: 1,
    Collective.ALL_REDUCE: 2,
}
"""Bytes that a rank sends at least, in units of (n - 1)/n S (E4.1)."""


def _tier(name: str, size: int, bytes_per_s: float, latency_s: float, **more: Any) -> dict[str, Any]:
    figures = {"bandwidth": f"{bytes_per_s / 1e9:.9g} GB/s", "latency": f"{latency_s * 1e9:.9g} ns", "efficiency": "1"}
    return tier(name, more.pop("kind", "switch"), size, **figures, **more)


def _cluster(*tiers: dict[str, Any]) -> Cluster:
    return build_cluster(spec(*tiers))


def _switch(ranks: int, *, bytes_per_s: float = 1e9, latency_s: float = 0.0) -> Cluster:
    return _cluster(_tier("switch", ranks, bytes_per_s, latency_s))


def _whole(cluster: Cluster) -> GroupShape:
    """All devices as one group."""
    domains = tuple(tier.size for tier in cluster.tiers)
    slices = tuple(tier.dims for tier in cluster.tiers)
    return shape_of(((cluster.num_devices, 1),), cluster, domains, slices)


def _price(collective: Collective, payload_bytes: int, cluster: Cluster) -> Traffic:
    traffic = price_collective(collective, payload_bytes, _whole(cluster), cluster)
    assert traffic is not None
    return traffic


def _seconds(collective: Collective, payload_bytes: int, cluster: Cluster) -> float:
    return time_alone_s(_price(collective, payload_bytes, cluster), ports_of(cluster))


def _collective(name: str) -> Collective:
    return Collective(name.replace("_", "-"))


@each("communication", *(f"comm.sent.{name.replace('-', '_')}." for name in OPTIMAL))
def test_a_rank_sends_the_optimal_bytes(record: Record) -> None:
    inputs = record.inputs
    traffic = _price(_collective(inputs["collective"]), inputs["payload_bytes"], _switch(inputs["ranks"]))
    assert record.agrees_with(traffic.sent_bytes)


@each("communication", "comm.steps.ring_all_reduce.")
def test_a_ring_all_reduce_takes_2n_minus_2_steps(record: Record) -> None:
    cluster = _switch(record.inputs["ranks"], latency_s=1e-9)
    # So long that the ring beats the tree.
    traffic = _price(Collective.ALL_REDUCE, 1 << 40, cluster)
    assert record.agrees_with(round(traffic.latency_s / 1e-9))
    gather = _price(Collective.ALL_GATHER, 1 << 40, cluster)
    assert 2 * gather.latency_s == pytest.approx(traffic.latency_s)


@each("communication", "comm.depth.double_tree.", "comm.sent.double_tree.")
def test_a_short_all_reduce_takes_two_trees(record: Record) -> None:
    payload = 1 << 20
    traffic = _price(Collective.ALL_REDUCE, payload, _switch(record.inputs["ranks"], latency_s=1.0))
    if record.id.startswith("comm.depth"):
        assert record.agrees_with(traffic.latency_s / 2)
    else:
        assert record.agrees_with(traffic.sent_bytes / payload)


def _alpha_beta(record: Record) -> float:
    inputs = record.inputs
    cluster = _switch(inputs["ranks"], bytes_per_s=inputs["bytes_per_s"], latency_s=inputs["alpha_s"])
    collective = _collective(record.id.split(".")[2])
    return _seconds(collective, inputs["payload_bytes"], cluster)


@each("communication", "comm.time.all_gather.ring.")
def test_a_ring_takes_its_alpha_beta_time(record: Record) -> None:
    assert record.agrees_with(_alpha_beta(record))


ALL_REDUCES = {
    algorithm: {record.id.split(algorithm)[1]: record for record in records("communication", prefix)}
    for algorithm, prefix in (("ring", "comm.time.all_reduce.ring."), ("tree", "comm.time.all_reduce.double_tree."))
}


@pytest.mark.parametrize("case", ALL_REDUCES["ring"])
def test_an_all_reduce_takes_the_faster_of_ring_and_double_tree(case: str) -> None:
    """Each pair of records of a size; their closed forms are E4.2 and E4.3."""
    faster = min(ALL_REDUCES["ring"][case], ALL_REDUCES["tree"][case], key=lambda record: float(record.expected))
    assert faster.agrees_with(_alpha_beta(faster))


def test_either_algorithm_wins_somewhere() -> None:
    wins = [ALL_REDUCES["ring"][case].expected < ALL_REDUCES["tree"][case].expected for case in ALL_REDUCES["ring"]]
    assert {True, False} == set(wins)


@each("communication", "comm.time.hierarchical.")
def test_tiers_carry_the_bytes_of_a_hierarchical_all_reduce(record: Record) -> None:
    """Reduce-scatter and all-gather are its two halves. Its phases follow each other; our tiers work side by side."""
    inputs = record.inputs
    inner, outer = inputs["inner"], inputs["outer"]
    cluster = _cluster(
        _tier("inner", inner, inputs["inner_bytes_per_s"], inputs["inner_alpha_s"]),
        _tier("outer", inner * outer, inputs["outer_bytes_per_s"], inputs["outer_alpha_s"]),
    )
    rates = [port.bytes_per_s for port in ports_of(cluster)]
    in_a_row = side_by_side = 0.0
    for half in (Collective.REDUCE_SCATTER, Collective.ALL_GATHER):
        traffic = _price(half, inputs["payload_bytes"], cluster)
        assert traffic.demands == tuple(enumerate(traffic.tier_bytes))
        seconds = [count / rate for count, rate in zip(traffic.tier_bytes, rates, strict=True)]
        in_a_row += traffic.latency_s + sum(seconds)
        side_by_side += time_alone_s(traffic, ports_of(cluster))
        assert time_alone_s(traffic, ports_of(cluster)) == pytest.approx(traffic.latency_s + max(seconds))
    # Each half rounds up to whole bytes in each tier.
    assert (
        record.expected * (1 - 1e-9) <= in_a_row <= record.expected * (1 + 1e-9) + 2 * sum(1 / rate for rate in rates)
    )
    assert _seconds(Collective.ALL_REDUCE, inputs["payload_bytes"], cluster) <= side_by_side <= in_a_row


def _torus(*dims: int, bytes_per_s: float = 45e9, latency_s: float = 0.0, wrap: bool = True) -> Cluster:
    size = 1
    for length in dims:
        size *= length
    closed = ["true" if wrap else "false"] * len(dims)
    lengths = [str(length) for length in dims]
    return _cluster(_tier("ici", size, bytes_per_s, latency_s, kind="torus", dims=lengths, wrap=closed))


@each("communication", "comm.torus.all_gather_link_load.", "comm.torus.all_to_all_link_load.")
def test_a_ring_of_a_torus_loads_its_links_as_counted_link_by_link(record: Record) -> None:
    ring = record.inputs["ring"]
    if "all_to_all" in record.id:
        # The record counts against the whole array, S a rank is its n-th part.
        traffic = _price(Collective.ALL_TO_ALL, GIB, _torus(ring))
        whole = GIB * ring
    else:
        traffic = _price(Collective.ALL_GATHER, GIB, _torus(ring))
        whole = GIB
    ((port, moved),) = traffic.demands
    assert port == 0
    # A port of a torus axis is two links, one each way around.
    assert record.agrees_with(moved / 2 / whole)


@each("communication", "comm.torus.all_gather.v5e")
def test_a_torus_gathers_over_both_ways_around_a_ring(record: Record) -> None:
    inputs = record.inputs
    ring = 16
    cluster = _torus(ring, bytes_per_s=inputs["bidirectional_bytes_per_s"] / 2)
    # The book drops the factor (n - 1)/n.
    assert record.agrees_with(_seconds(Collective.ALL_GATHER, inputs["bytes"], cluster) * ring / (ring - 1))


def test_k_torus_axes_carry_a_k_th_each() -> None:
    one, three = _torus(64), _torus(4, 4, 4)
    for collective in (Collective.ALL_GATHER, Collective.ALL_REDUCE):
        assert _seconds(collective, GIB, three) == pytest.approx(_seconds(collective, GIB, one) / 3, rel=1e-6)


def test_an_axis_without_wrap_takes_twice_as_long() -> None:
    for collective in OPTIMAL:
        open_line, ring = _torus(8, wrap=False), _torus(8)
        assert _seconds(collective, GIB, open_line) == pytest.approx(2 * _seconds(collective, GIB, ring), rel=1e-6)


def test_groups_that_step_over_devices_share_the_links_between() -> None:
    cluster = _torus(4, 4)
    along_x = shape_of(((4, 1),), cluster, (16,), ((4, 4),))
    along_y = shape_of(((4, 4),), cluster, (16,), ((4, 4),))
    strided = shape_of(((2, 2),), cluster, (16,), ((4, 4),))
    for collective in (Collective.ALL_GATHER, Collective.REDUCE_SCATTER):
        x, y, half = (
            time_alone_s(traffic, ports_of(cluster))
            for shape in (along_x, along_y, strided)
            if (traffic := price_collective(collective, GIB, shape, cluster)) is not None
        )
        assert x == y
        # Every second device, an open line: two groups on the same links, at half rate, half the bytes a rank.
        assert half == pytest.approx(4 * (1 / 2) / (3 / 4) * x)


def test_a_spine_loads_the_port_that_it_shares_with_the_pod() -> None:
    cluster = _cluster(
        _tier("nvlink", 4, 100e9, 0.0),
        _tier("pod", 16, 10e9, 0.0, port="nic"),
        _tier("spine", 64, 10e9, 0.0, port="nic", oversubscription="2"),
    )
    traffic = _price(Collective.ALL_GATHER, GIB, cluster)
    inside, pod, spine = traffic.tier_bytes
    assert traffic.demands == ((0, inside), (1, pod + spine), (2, spine))
    assert [port.bytes_per_s for port in ports_of(cluster)] == [100e9, 10e9, 5e9]
    assert time_alone_s(traffic, ports_of(cluster)) == pytest.approx(max((pod + spine) / 10e9, spine / 5e9))


def test_a_mesh_gives_a_pair_only_its_own_link() -> None:
    cluster = _cluster(_tier("xgmi", 8, 70e9, 0.0, kind="mesh"))
    whole = _seconds(Collective.ALL_GATHER, GIB, cluster)
    assert whole == pytest.approx(GIB * 7 / 8 / 70e9)
    pair = price_collective(Collective.ALL_GATHER, GIB, shape_of(((2, 1),), cluster, (8,), ((),)), cluster)
    assert pair is not None
    assert time_alone_s(pair, ports_of(cluster)) == pytest.approx(GIB / 2 / 10e9)


@pytest.mark.parametrize("collective", OPTIMAL)
def test_a_group_of_one_costs_nothing(collective: Collective) -> None:
    cluster = _switch(8)
    alone = shape_of((), cluster, (8,), ((),))
    assert alone.size == 1
    assert price_collective(collective, GIB, alone, cluster) is None
    assert price_collective(collective, 0, _whole(cluster), cluster) is None


def test_a_message_waits_for_its_hops_and_its_slowest_port() -> None:
    cluster = _cluster(_tier("nvlink", 8, 100e9, 1e-6), _tier("spine", 64, 10e9, 5e-6))
    mesh = build_mesh(Layout(tp=8, pp=8), degrees(tp=8, pp=8), cluster)
    traffic = price_send(10**9, mesh.pipeline_hop(0, 1), cluster)
    assert traffic.tier_bytes == (0, 10**9)
    assert time_alone_s(traffic, ports_of(cluster)) == pytest.approx(0.1 + 5e-6)


# Properties over machines of one to three tiers and all groups of a mesh on them.

FACTORS = st.lists(st.sampled_from([2, 3, 4, 8]), min_size=1, max_size=3)


@st.composite
def groups(draw: st.DrawFn) -> tuple[Cluster, GroupShape]:
    """A machine of one to three switch tiers, and a group of devices with a stride, which nests in its tiers."""
    factors = draw(FACTORS)
    sizes = list(itertools.accumulate(factors, lambda a, b: a * b))
    rate, delay = st.sampled_from([1e9, 1e10, 45e9, 4e11]), st.sampled_from([0.0, 1e-6, 2e-5])
    tiers = [_tier(f"tier{index}", size, draw(rate), draw(delay)) for index, size in enumerate(sizes)]
    cluster = _cluster(*tiers)
    stride = draw(st.sampled_from([1, *sizes[:-1]]))
    runs = [size // stride for size in sizes if size // stride > 1]
    count = draw(st.sampled_from(runs))
    return cluster, shape_of(((count, stride),), cluster, tuple(sizes), ((),) * len(sizes))


@given(case=groups(), collective=st.sampled_from(list(OPTIMAL)), payload=st.integers(1, 1 << 36))
def test_bytes_of_the_tiers_add_up_to_the_optimal(
    case: tuple[Cluster, GroupShape], collective: Collective, payload: int
) -> None:
    cluster, shape = case
    traffic = price_collective(collective, payload, shape, cluster)
    assert traffic is not None
    assert sum(traffic.tier_bytes) == traffic.sent_bytes
    optimal = OPTIMAL[collective] * payload * (shape.size - 1) / shape.size
    # Each tier rounds up to whole bytes, twice for an all-reduce; a tree sends 2S in all.
    at_most = 2 * payload if collective is Collective.ALL_REDUCE else optimal
    assert optimal - 1e-6 * payload <= traffic.sent_bytes <= at_most + 4 * len(cluster.tiers) + 1e-6 * payload


@given(case=groups(), collective=st.sampled_from(list(OPTIMAL)), payload=st.integers(1, 1 << 36))
def test_no_collective_beats_the_bandwidth_of_its_slowest_cut(
    case: tuple[Cluster, GroupShape], collective: Collective, payload: int
) -> None:
    """All data of the other parts must come into a part of the group through the ports of its ranks."""
    cluster, shape = case
    traffic = price_collective(collective, payload, shape, cluster)
    assert traffic is not None
    seconds = time_alone_s(traffic, ports_of(cluster))
    inside = 1
    for tier_shape, port in zip(shape.tiers, ports_of(cluster), strict=True):
        part, outside = inside, shape.size - inside
        if tier_shape.members > 1 and inside * tier_shape.members == shape.size:
            # `part` ranks, each with this tier's port, take in S/n of each of the `outside` ranks (all-to-all: for
            # each of them), and an all-reduce gives back as much again.
            incoming = payload * outside / shape.size * (part if collective is Collective.ALL_TO_ALL else 1)
            incoming *= OPTIMAL[collective]
            assert seconds >= incoming / (part * port.bytes_per_s) * (1 - 1e-9)
        inside *= tier_shape.members


@given(case=groups(), collective=st.sampled_from(list(OPTIMAL)), payloads=st.lists(st.integers(1, 1 << 36), min_size=2))
def test_more_bytes_never_take_less_time(
    case: tuple[Cluster, GroupShape], collective: Collective, payloads: list[int]
) -> None:
    cluster, shape = case
    times = []
    for payload in sorted(payloads):
        traffic = price_collective(collective, payload, shape, cluster)
        assert traffic is not None
        times.append(time_alone_s(traffic, ports_of(cluster)))
    # Whole bytes: choosing between ring and tree may move a byte at the crossing.
    slack = 8 / min(port.bytes_per_s for port in ports_of(cluster))
    assert all(later >= sooner - slack for sooner, later in itertools.pairwise(times))


@given(case=groups(), payload=st.integers(1, 1 << 36))
def test_an_all_reduce_is_never_slower_than_its_two_halves(case: tuple[Cluster, GroupShape], payload: int) -> None:
    cluster, shape = case
    times = {}
    for collective in (Collective.REDUCE_SCATTER, Collective.ALL_GATHER, Collective.ALL_REDUCE):
        traffic = price_collective(collective, payload, shape, cluster)
        assert traffic is not None
        times[collective] = time_alone_s(traffic, ports_of(cluster))
    halves = times[Collective.REDUCE_SCATTER] + times[Collective.ALL_GATHER]
    assert times[Collective.ALL_REDUCE] <= halves * (1 + 1e-9) + 1e-15


def test_a_share_of_a_byte_is_a_whole_byte() -> None:
    cluster = _switch(8)
    assert _price(Collective.ALL_GATHER, 1, cluster).sent_bytes == ceil(7 / 8)


def test_the_machine_of_the_tests_is_as_written() -> None:
    cluster = _switch(16, bytes_per_s=45e9, latency_s=1.5e-6)
    assert machine(tier("a", "switch", 2))["devices"] == "2"
    (only,) = cluster.tiers
    assert (only.reached_bandwidth_bytes_per_s, only.latency_s) == (45e9, pytest.approx(1.5e-6))
