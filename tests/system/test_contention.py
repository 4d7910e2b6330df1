"""What shares a link shares it max-min fairly: hand-computed rates of transfers that run side by side.

A port reaches 8 GB/s. Sizes are in MB and times in ms, so 8 MB alone on a port take 1 ms.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from simulator.cluster import ClusterSpec
from simulator.config.scenario import Scenario
from simulator.cost.collectives import Collective
from simulator.cost.offload import HostResource
from simulator.engine import Program, RankClass
from simulator.engine.reference import run_reference
from simulator.lowering.builder import (
    CATEGORIES,
    COMPUTE_STREAM,
    Category,
    Direction,
    Exchange,
    Registry,
    RoutineBuilder,
)
from simulator.lowering.members import folded_members, single_members
from simulator.lowering.offload import HostLowering
from simulator.lowering.resources import ResourceBook, slots_of
from simulator.lowering.transfers import Transfers
from simulator.model.spec import Experts
from simulator.parallel.layout import Axis
from simulator.parallel.mesh import Group
from simulator.parallel.training import Offload
from simulator.simulate import run_steps
from tests.system.jobs import tiny, tiny_model
from tests.system.narrow import narrow

MB = 1_000_000
PIPELINE_FIRST = (Axis.PIPELINE, Axis.TENSOR, Axis.CONTEXT, Axis.EXPERT, Axis.DATA)
WIDE = narrow(1, 64, ratios=(1,))
"""Devices on one switch."""
PODS = narrow(1, 4, 64, ratios=(1, 4))
"""Pods of four devices, which share uplinks of 4 x 8 / 4 = 8 GB/s."""


Wanted = Exchange | tuple[tuple[HostResource, ...], float]
"""A transfer over ports; or over resources of the host, with its megabytes."""


def job(cluster: ClusterSpec, **layout: Any) -> Scenario:
    return replace(tiny(microbatches=2, **layout), cluster=cluster)


def sized(exchange: Exchange | None, megabytes: float) -> Exchange:
    """An exchange without latency of which each rank sends so much over every port that it uses."""
    assert exchange is not None
    demands = tuple((port, round(megabytes * MB)) for port, _ in exchange.traffic.demands)
    return replace(exchange, traffic=replace(exchange.traffic, latency_s=0.0, demands=demands))


def times_ms(scenario: Scenario, beside: dict[int, list[Wanted]], *, fold: bool = True) -> dict[int, list[float]]:
    """Milliseconds of exchanges that begin together, by pipeline rank.

    Args:
        scenario: the job.
        beside: for each pipeline rank what its ranks do side by side.
        fold: one class for each pipeline rank; false: for each rank, of which the times must be equal.
    """
    base = run_steps(scenario)
    mesh, costs = base.mesh, base.costs
    slots = slots_of(costs, mesh)
    registry = Registry(uplinks=slots.uplinks)
    registry.streams.number(COMPUTE_STREAM)
    members = folded_members(mesh) if fold else single_members(mesh)
    routines = []
    for exchanges in beside.values():
        build = RoutineBuilder(name="beside", registry=registry, meets=lambda _party: False)
        for number, wanted in enumerate(exchanges):
            if isinstance(wanted, tuple):
                amounts = dict.fromkeys(wanted[0], round(wanted[1] * MB))
                host = HostLowering(offload=scenario.training.offload, slots=slots.host, update_efficiency=1.0)
                build.aside("copy", stream=f"{number}", category=Category.OFFLOAD, demands=host.demands(amounts))
            else:
                build.beside(wanted, stream=f"{number}", party=Group.SHARD, category=Category.DATA)
        routines.append(build.done().routine)
    book = ResourceBook(costs=costs, mesh=mesh, members=members)
    classes = []
    for number, rank in enumerate(members.pipeline_ranks):
        resources, sharers = book.bind(number)
        calls = [(list(beside).index(rank), 0)] if rank in beside else []
        classes.append(
            RankClass(
                name=members.names[number],
                count=members.counts[number],
                calls=np.array(calls, dtype=np.int32).reshape(-1, 2),
                resources=resources,
                sharers=sharers,
            )
        )
    program = Program(
        streams=tuple(registry.streams.numbers),
        categories=tuple(CATEGORIES),
        counters=(),
        events=(),
        num_indices=1,
        routines=tuple(routines),
        classes=tuple(classes),
        resources=tuple(book.resources),
    )
    spans = run_reference(program).spans
    assert spans is not None
    found: dict[int, list[float]] = {}
    for number, rank in enumerate(members.pipeline_ranks):
        ends = [float(span["end_ps"]) / 1e9 for span in spans[spans["class"] == number]]
        assert found.setdefault(rank, ends) == ends
    return {rank: found[rank] for rank in beside}


def collective(scenario: Scenario, group: Group, kind: Collective, megabytes: float) -> Exchange:
    return sized(Transfers(run_steps(scenario).mesh).collective(group, kind, MB), megabytes)


def send(scenario: Scenario, megabytes: float, *, source: int = 0, target: int = 1) -> Exchange:
    return sized(Transfers(run_steps(scenario).mesh).message(MB, source, target, Direction.SEND), megabytes)


both_forms = pytest.mark.parametrize("fold", [True, False], ids=["folded", "alone"])


@both_forms
def test_a_gradient_reduction_and_a_pipeline_send_halve_their_port(fold: bool) -> None:
    """8 and 24 MB at 4 GB/s each: the send ends after 2 ms, then 16 MB are left at 8 GB/s."""
    scenario = job(WIDE, dp=4, pp=2)
    reduction = collective(scenario, Group.SHARD, Collective.REDUCE_SCATTER, 24)
    found = times_ms(scenario, {0: [send(scenario, 8), reduction]}, fold=fold)
    assert found == {0: [pytest.approx(2.0), pytest.approx(4.0)]}


@both_forms
def test_data_parallel_over_a_narrow_spine_leaves_its_port_to_an_all_to_all_in_the_pod(fold: bool) -> None:
    """Four ranks of a pod share 8 GB/s: 2 GB/s each for the reduction. The all-to-all has the other 6 of the port.

    12 MB at 6 GB/s take 2 ms; then 8 MB of the reduction are left, still at 2 GB/s.
    """
    scenario = job(PODS, model=tiny_model(experts=Experts(count=4, top_k=1, ffn=64)), dp=8, ep=4)
    exchange = collective(scenario, Group.EXPERT, Collective.ALL_TO_ALL, 12)
    reduction = collective(scenario, Group.EXPERT_SHARD, Collective.ALL_REDUCE, 12)
    assert times_ms(scenario, {0: [exchange, reduction]}, fold=fold) == {0: [pytest.approx(2.0), pytest.approx(6.0)]}
    within = times_ms(scenario, {0: [exchange, exchange]}, fold=fold)
    assert within == {0: [pytest.approx(3.0), pytest.approx(3.0)]}


@both_forms
def test_a_lone_group_has_its_port_in_full_and_many_groups_share_the_spine(fold: bool) -> None:
    """Each of four pipeline ranks has one rank in each pod; 8 GB/s leave the pod.

    Alone 8 MB take 1 ms. Four at 2 GB/s: 2 MB of the first take 1 ms, then the others have 8/3 GB/s for 2 MB more.
    """
    scenario = job(PODS, dp=2, pp=4, order=PIPELINE_FIRST)
    whole = collective(scenario, Group.SHARD, Collective.ALL_REDUCE, 8)
    assert times_ms(scenario, {2: [whole]}, fold=fold) == {2: [pytest.approx(1.0)]}
    parts = {rank: [sized(whole, 2 if rank == 0 else 4)] for rank in range(4)}
    expected = {rank: [pytest.approx(1.0 if rank == 0 else 1.75)] for rank in range(4)}
    assert times_ms(scenario, parts, fold=fold) == expected


@both_forms
def test_uplinks_are_shared_by_ranks_not_by_classes(fold: bool) -> None:
    """Two tensor ranks of each of two pipeline ranks in a pod: four flows at 2 GB/s, and after 1 ms two at 4 GB/s.

    6 MB of the second: 2 MB in the first millisecond, 4 MB at 4 GB/s in another.
    """
    order = (Axis.TENSOR, Axis.PIPELINE, Axis.CONTEXT, Axis.EXPERT, Axis.DATA)
    scenario = job(PODS, tp=2, dp=2, pp=2, order=order)
    whole = collective(scenario, Group.SHARD, Collective.ALL_REDUCE, 8)
    found = times_ms(scenario, {0: [sized(whole, 2)], 1: [sized(whole, 6)]}, fold=fold)
    assert found == {0: [pytest.approx(1.0)], 1: [pytest.approx(2.0)]}


@both_forms
def test_a_pipeline_send_over_the_spine_is_held_by_a_reduction_that_shares_it(fold: bool) -> None:
    """Pipeline ranks 0 and 1 fill a pod with two ranks each; 1 sends to 2 in the next pod while 0 and 1 reduce inside.

    The port of rank 1 is halved: the sends of its two ranks have 4 GB/s each, which fills the 8 GB/s uplink.
    """
    scenario = job(PODS, dp=2, pp=4)
    inside = collective(scenario, Group.SHARD, Collective.ALL_REDUCE, 16)
    message = send(scenario, 8, source=1, target=2)
    alone = times_ms(scenario, {1: [message]}, fold=fold)
    found = times_ms(scenario, {0: [inside], 1: [message, inside]}, fold=fold)
    assert alone == {1: [pytest.approx(2.0)]}
    assert found == {0: [pytest.approx(2.0)], 1: [pytest.approx(2.0), pytest.approx(3.0)]}


def test_copies_up_and_down_have_a_link_each_and_one_host_memory() -> None:
    """Copies of 8 MB both ways, each over its link, and an update of 8 MB, all on host memory at M bytes a second.

    All three have M/3 if that is less than a link's rate.
    """
    scenario = job(WIDE, dp=4, training={"offload": Offload(optimizer="cpu")})
    rates = run_steps(scenario).costs.host_bytes_per_s
    memory, link = rates[HostResource.MEMORY], rates[HostResource.LINK_DOWN]
    down, up, update = (
        ((HostResource.LINK_DOWN, HostResource.MEMORY), 8.0),
        ((HostResource.LINK_UP, HostResource.MEMORY), 8.0),
        ((HostResource.MEMORY,), 8.0),
    )
    assert times_ms(scenario, {0: [down]}) == {0: [pytest.approx(8 * MB / min(memory, link) * 1e3)]}
    if memory / 3 < link:
        expected = [pytest.approx(3 * 8 * MB / memory * 1e3)] * 3
    else:  # the links hold the copies, the update has the rest
        rest = memory - 2 * link
        expected = [pytest.approx(8 * MB / link * 1e3)] * 2 + [pytest.approx(8 * MB / rest * 1e3)]
    assert times_ms(scenario, {0: [down, up, update]}) == {0: expected}
