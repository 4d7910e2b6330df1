"""All groups of a kind lie alike in the network, which is why one rank of each pipeline rank stands for all."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise, product
from math import prod

from hypothesis import example, given, settings

from simulator.cluster import build_cluster
from simulator.config.scenario import Scenario
from simulator.lowering.builder import Direction
from simulator.parallel.degrees import resolve_degrees
from simulator.parallel.groups import Digits
from simulator.parallel.layout import Axis
from simulator.parallel.mesh import DeviceMesh, Group, build_mesh
from simulator.simulate import run_steps
from tests.system.jobs import scenarios, tiny, tiny_model
from tests.system.pipelines import actions_of_calls, source_of, target_of

often = settings(max_examples=60, deadline=None, derandomize=True)


@often
@given(scenario=scenarios())
def test_groups_of_a_kind_part_the_ranks_and_lie_alike_in_every_tier(scenario: Scenario) -> None:
    mesh = _mesh(scenario)
    for group, digits in mesh.digits.items():
        groups = _groups(digits, scenario.devices)
        assert Counter(rank for ranks in groups for rank in ranks) == Counter(range(scenario.devices))
        assert {len(ranks) for ranks in groups} == {mesh.shapes[group].size}
        together = 1
        for tier, domain in enumerate(mesh.domains):
            together *= mesh.shapes[group].tiers[tier].members
            counts = {count for ranks in groups for count in Counter(rank // domain for rank in ranks).values()}
            if group is Group.WORLD:  # the last domain of a tier may hold fewer stages than the others
                assert max(counts) == min(together, scenario.devices)
            else:
                assert counts == {together}


@often
@given(scenario=scenarios())
def test_every_message_between_two_pipeline_ranks_goes_over_the_same_tier(scenario: Scenario) -> None:
    mesh = _mesh(scenario)
    stride, pp = mesh.stride(Axis.PIPELINE), scenario.layout.pp
    for source, target in product(range(pp), repeat=2):
        if source == target:
            continue
        tiers = set()
        for rank in range(scenario.devices):
            if rank // stride % pp == source:
                other = rank + (target - source) * stride
                shared = [tier for tier, domain in enumerate(mesh.domains) if rank // domain == other // domain]
                tiers.add(min(shared, default=len(mesh.domains) - 1))
        assert tiers == {mesh.pipeline_hop(source, target).tier}


@often
@given(scenario=scenarios())
@example(scenario=tiny(tp=4, pp=4, model=tiny_model(layers=8)))
def test_every_message_is_booked_on_the_tier_between_its_ranks(scenario: Scenario) -> None:
    """Stages that do the same work share routines only if their neighbours are as far away."""
    simulated = run_steps(scenario)
    mesh, schedule, step = simulated.mesh, simulated.schedule, simulated.step
    for rank, rank_class in enumerate(step.program.classes):
        calls = zip(rank_class.calls[1:-1, 0].tolist(), actions_of_calls(schedule, rank), strict=True)
        for routine, actions in calls:
            for direction, other_end in ((Direction.SEND, target_of), (Direction.RECEIVE, source_of)):
                stages = [other_end(schedule, action) for action in actions]
                others = [schedule.stage_to_rank[stage] for stage in stages if stage is not None]
                crossed = [
                    tier
                    for exchange in step.exchanges[routine]
                    if exchange.axis == "pp" and exchange.direction is direction
                    for tier, count in enumerate(exchange.traffic.tier_bytes)
                    if count
                ]
                assert crossed == [mesh.pipeline_hop(rank, other).tier for other in others if other != rank]


@often
@given(scenario=scenarios())
def test_a_domain_has_a_device_for_each_of_its_ranks(scenario: Scenario) -> None:
    mesh = _mesh(scenario)
    for tier, domain, box in zip(mesh.cluster.tiers, mesh.domains, mesh.slices, strict=True):
        assert domain <= tier.size
        assert not box or prod(box) == domain
        assert all(side <= length for side, length in zip(box, tier.dims, strict=False))
    for inner, outer in pairwise(mesh.domains):
        assert outer % inner == 0 or outer == scenario.devices
    assert mesh.domains[-1] <= scenario.devices


def _mesh(scenario: Scenario) -> DeviceMesh:
    degrees = resolve_degrees(scenario.layout, devices=scenario.devices)
    return build_mesh(scenario.layout, degrees, build_cluster(scenario.cluster))


def _groups(digits: Digits, devices: int) -> list[list[int]]:
    """The ranks of every group, from the digits of one."""
    first = [sum(step) for step in product(*([stride * k for k in range(count)] for count, stride in digits))]
    seen: set[int] = set()
    groups = []
    for base in range(devices):
        if base not in seen:
            groups.append([base + offset for offset in first])
            seen.update(groups[-1])
    return groups
