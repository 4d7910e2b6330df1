"""Device groups and their places, against an enumeration of every rank."""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from dataclasses import replace
from math import prod

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from simulator.cluster import Cluster, build_cluster
from simulator.errors import SimulatorFault
from simulator.parallel.degrees import Degrees, resolve_degrees
from simulator.parallel.groups import Digits, count_of, members_within, merge, shape_of, take
from simulator.parallel.layout import DEFAULT_ORDER, Axis, Layout
from simulator.parallel.mesh import DeviceMesh, Group, axis_strides, build_mesh, group_digits
from simulator.parallel.rules import Case, groups_fall_on_whole_steps
from simulator.parallel.training import Training
from tests.cluster.machines import spec, tier
from tests.model.architectures import gpt
from tests.parallel.jobs import degrees, superpod_cluster

POWERS = st.sampled_from([1, 2, 4])
WITH_THREES = st.sampled_from([1, 2, 3, 4, 6])


def can_take(digits: Digits, *, skip: int, count: int) -> bool:
    """Returns whether `take` succeeds."""
    try:
        take(digits, skip=skip, count=count)
    except SimulatorFault:
        return False
    return True


def members(digits: Digits, base: int) -> tuple[int, ...]:
    """The ranks of one group, fastest digit first."""
    ranks = [base]
    for count, stride in digits:
        ranks = [rank + step * stride for step in range(count) for rank in ranks]
    return tuple(ranks)


def bases(digits: Digits, num_ranks: int) -> list[int]:
    """The first rank of every group."""
    return [rank for rank in range(num_ranks) if all(rank // stride % count == 0 for count, stride in digits)]


def all_groups(digits: Digits, num_ranks: int) -> list[tuple[int, ...]]:
    return [members(digits, base) for base in bases(digits, num_ranks)]


def coordinates(layout: Layout, cut: Degrees) -> list[dict[Axis, int]]:
    """The place of every rank on the dense axes, by counting: the first axis of the order runs fastest."""
    sizes = {Axis.TENSOR: cut.tp, Axis.CONTEXT: cut.cp, Axis.DATA: cut.dp, Axis.PIPELINE: cut.pp}
    order = [axis for axis in layout.order if axis is not Axis.EXPERT]
    places = itertools.product(*(range(sizes[axis]) for axis in reversed(order)))
    return [dict(zip(reversed(order), place, strict=True)) for place in places]


def by_key(places: list[dict[Axis, int]], *fixed: Axis) -> set[tuple[int, ...]]:
    """Ranks that agree on the fixed axes, as sets."""
    groups: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for rank, place in enumerate(places):
        groups[tuple(place[axis] for axis in fixed)].append(rank)
    return {tuple(group) for group in groups.values()}


def case_of(layout: Layout, cut: Degrees) -> Case:
    return Case(
        model=gpt(layers=1, hidden=64, heads=1),
        cluster=superpod_cluster(),
        devices=cut.devices,
        layout=layout,
        degrees=cut,
        schedule="1f1b",
        joins_passes=False,
        training=Training(sequence_length=1, global_batch=1),
    )


def has_groups(layout: Layout, cut: Degrees) -> bool:
    try:
        group_digits(axis_strides(layout, cut), layout, cut)
    except SimulatorFault:
        return False
    return True


@st.composite
def meshes(draw: st.DrawFn, sizes: st.SearchStrategy[int] = POWERS) -> tuple[Layout, Degrees]:
    """A layout of at most 4,096 ranks in any order of the axes, with expert and shard groups that cut it evenly."""
    tp, cp, dp, pp = (draw(sizes) for _ in range(4))
    ep, etp = draw(sizes), draw(sizes)
    stage, replicas = tp * cp * dp, cp * dp
    assume(stage % (ep * etp) == 0)
    group = draw(st.sampled_from([size for size in range(1, replicas + 1) if replicas % size == 0]))
    order = tuple(draw(st.permutations(DEFAULT_ORDER)))
    layout = Layout(tp=tp, cp=cp, dp=dp, pp=pp, ep=ep, etp=etp, shard_group=group, order=order)
    cut = resolve_degrees(layout, devices=tp * cp * dp * pp)
    assume(groups_fall_on_whole_steps(case_of(layout, cut)).holds and has_groups(layout, cut))
    return layout, cut


@given(job=meshes())
def test_the_groups_of_every_kind_partition_the_ranks(job: tuple[Layout, Degrees]) -> None:
    layout, cut = job
    digits = group_digits(axis_strides(layout, cut), layout, cut)
    assert set(digits) == set(Group)
    for kind, ranks in digits.items():
        groups = all_groups(ranks, cut.devices)
        assert sorted(itertools.chain(*groups)) == list(range(cut.devices)), kind
        assert {len(group) for group in groups} == {count_of(ranks)}, kind


@given(job=meshes(WITH_THREES))
def test_groups_of_a_dense_axis_differ_in_that_axis_alone(job: tuple[Layout, Degrees]) -> None:
    layout, cut = job
    places = coordinates(layout, cut)
    digits = group_digits(axis_strides(layout, cut), layout, cut)
    wanted = {
        Group.TENSOR: (Axis.CONTEXT, Axis.DATA, Axis.PIPELINE),
        Group.CONTEXT: (Axis.TENSOR, Axis.DATA, Axis.PIPELINE),
        Group.WORLD: (),
    }
    for kind, fixed in wanted.items():
        assert {tuple(sorted(group)) for group in all_groups(digits[kind], cut.devices)} == by_key(places, *fixed)


@given(job=meshes())
def test_shard_groups_and_replicas_span_the_ranks_with_the_same_parameters(job: tuple[Layout, Degrees]) -> None:
    layout, cut = job
    same_parameters = by_key(coordinates(layout, cut), Axis.TENSOR, Axis.PIPELINE)
    digits = group_digits(axis_strides(layout, cut), layout, cut)
    shards, replicas = (all_groups(digits[kind], cut.devices) for kind in (Group.SHARD, Group.REPLICA))
    assert (len(shards[0]), len(replicas[0])) == (cut.shard_group, cut.replicas // cut.shard_group)
    assert _spanned(digits[Group.SHARD], digits[Group.REPLICA], cut.devices) == same_parameters


@given(job=meshes())
def test_expert_groups_span_a_pipeline_stage(job: tuple[Layout, Degrees]) -> None:
    layout, cut = job
    stages = by_key(coordinates(layout, cut), Axis.PIPELINE)
    digits = group_digits(axis_strides(layout, cut), layout, cut)
    kinds = (Group.EXPERT_TENSOR, Group.EXPERT, Group.EXPERT_SHARD, Group.EXPERT_REPLICA)
    counts = [count_of(digits[kind]) for kind in kinds]
    whole = cut.tp * cut.cp * cut.dp // (cut.ep * cut.etp)
    shard = whole if cut.shard_group == cut.dp * cut.cp else min(whole, cut.shard_group)
    assert counts == [cut.etp, cut.ep, shard, cut.expert_replicas // shard]
    assert _spanned(*(digits[kind] for kind in kinds), cut.devices) == stages


def _spanned(*parts: Digits | int) -> set[tuple[int, ...]]:
    """All ranks that steps along any of these groups reach from each other; each once."""
    *digits, num_ranks = parts
    joined = merge(tuple(itertools.chain(*digits)))  # type: ignore[arg-type]
    assert isinstance(num_ranks, int)
    found = {tuple(sorted(group)) for group in all_groups(joined, num_ranks)}
    assert all(len(set(group)) == len(group) for group in found)
    return found


def test_expert_ranks_come_before_or_after_the_data_ranks_as_the_order_says() -> None:
    cut = degrees(tp=2, dp=8, ep=4)
    inner = Layout(order=(Axis.TENSOR, Axis.CONTEXT, Axis.EXPERT, Axis.DATA, Axis.PIPELINE))
    outer = Layout(order=(Axis.TENSOR, Axis.CONTEXT, Axis.DATA, Axis.EXPERT, Axis.PIPELINE))
    near, far = (group_digits(axis_strides(layout, cut), layout, cut) for layout in (inner, outer))
    assert (near[Group.EXPERT], near[Group.EXPERT_SHARD]) == (((4, 1),), ((4, 4),))
    assert (far[Group.EXPERT], far[Group.EXPERT_SHARD]) == (((4, 4),), ((4, 1),))


@pytest.mark.parametrize("etp", [1, 2])
def test_expert_tensor_ranks_are_neighbours(etp: int) -> None:
    cut = degrees(tp=2, dp=8, ep=4, etp=etp)
    digits = group_digits(axis_strides(Layout(), cut), Layout(), cut)
    assert digits[Group.EXPERT_TENSOR] == (((2, 1),) if etp == 2 else ())
    assert members(digits[Group.EXPERT], 0) == tuple(range(0, 4 * etp, etp))


# How groups lie in the network.


@st.composite
def machines(draw: st.DrawFn) -> Cluster:
    """Two or three switch tiers that hold 4,096 devices."""
    inner = draw(st.sampled_from([2, 3, 4, 8]))
    sizes = [inner, *([inner * draw(st.sampled_from([2, 4]))] if draw(st.booleans()) else [])]
    sizes.append(sizes[-1] * 4096)
    return build_cluster(spec(*(tier(f"tier{index}", "switch", size) for index, size in enumerate(sizes))))


@given(job=meshes(WITH_THREES), cluster=machines())
def test_shapes_agree_with_a_count_of_the_ranks_in_each_domain(job: tuple[Layout, Degrees], cluster: Cluster) -> None:
    layout, cut = job
    mesh = build_mesh(layout, cut, cluster)
    _check_domains(mesh)
    for kind, shape in mesh.shapes.items():
        groups = all_groups(mesh.digits[kind], cut.devices)
        assert shape.size == len(groups[0])
        inside = 1
        for domain, part in zip(mesh.domains, shape.tiers, strict=True):
            counts = {count for group in groups for count in Counter(rank // domain for rank in group).values()}
            if kind is Group.WORLD:
                # The last pipeline ranks may fill the last domain in part.
                assert max(counts) <= inside * part.members < 2 * max(counts)
            else:
                assert counts == {inside * part.members}, (kind, domain)
            inside *= part.members
        assert inside >= shape.size
        if kind is not Group.WORLD:
            assert inside == shape.size


def _check_domains(mesh: DeviceMesh) -> None:
    """Domains nest, are no larger than their tier, and the last one joins all."""
    assert mesh.domains[-1] == mesh.degrees.devices
    for tier_, domain in zip(mesh.cluster.tiers, mesh.domains, strict=True):
        assert 1 <= domain <= tier_.size
    for inner, outer in itertools.pairwise(mesh.domains):
        # The domain that joins all may be filled in part by the last pipeline ranks.
        assert outer % inner == 0 or outer == mesh.degrees.devices


@given(job=meshes(), cluster=machines())
def test_a_message_takes_the_tier_that_joins_the_two_ranks(job: tuple[Layout, Degrees], cluster: Cluster) -> None:
    layout, cut = job
    mesh = build_mesh(layout, cut, cluster)
    stride = mesh.stride(Axis.PIPELINE)
    for source, target in itertools.permutations(range(cut.pp), 2):
        first, second = source * stride, target * stride
        joined = next(index for index, domain in enumerate(mesh.domains) if first // domain == second // domain)
        hop = mesh.pipeline_hop(source, target)
        assert hop.tier == joined
        assert (hop.steps, len(hop.lanes)) == (1, 1)


def test_groups_stay_inside_a_node_when_they_fit() -> None:
    mesh = build_mesh(Layout(tp=8, cp=2, pp=4), degrees(tp=8, cp=2, dp=4, pp=4), superpod_cluster())
    assert [tier_.members for tier_ in mesh.shapes[Group.TENSOR].tiers] == [8, 1]
    assert [tier_.members for tier_ in mesh.shapes[Group.CONTEXT].tiers] == [1, 2]
    assert [tier_.members for tier_ in mesh.shapes[Group.WORLD].tiers] == [8, 32]


def test_a_domain_cuts_no_expert_group_unevenly() -> None:
    cluster = build_cluster(spec(tier("nvl", "switch", 72), tier("ib", "switch", 7200)))
    layout = Layout(dp=144, ep=16)
    mesh = build_mesh(layout, resolve_degrees(layout, devices=144), cluster)
    # 72 ranks of a rack would be four and a half groups of 16.
    assert mesh.domains == (48, 144)
    assert [tier_.members for tier_ in mesh.shapes[Group.EXPERT].tiers] == [16, 1]


def test_a_rack_of_72_takes_64_ranks_of_powers_of_two() -> None:
    cluster = build_cluster(spec(tier("nvl", "switch", 72), tier("ib", "switch", 7200)))
    mesh = build_mesh(Layout(tp=8, pp=4), degrees(tp=8, dp=16, pp=4), cluster)
    assert mesh.domains == (64, 512)
    assert mesh.devices_spanned == 8 * 72
    given_ = build_mesh(Layout(tp=8, pp=4, devices_per_domain=32), degrees(tp=8, dp=16, pp=4), cluster)
    assert given_.domains == (32, 512)


@given(pp=st.integers(1, 40), cluster=machines())
def test_pipeline_ranks_fill_domains_whole_though_their_number_does_not_divide(pp: int, cluster: Cluster) -> None:
    mesh = build_mesh(Layout(pp=pp), degrees(pp=pp), cluster)
    _check_domains(mesh)
    for source in range(pp - 1):
        tier_ = mesh.pipeline_hop(source, source + 1).tier
        domain = mesh.domains[tier_]
        assert source // domain == (source + 1) // domain


# Digits.


@st.composite
def digits_of(draw: st.DrawFn) -> Digits:
    counts = draw(st.lists(st.sampled_from([1, 2, 3, 4, 6, 8]), min_size=1, max_size=4))
    found, stride = [], 1
    for count in counts:
        if draw(st.booleans()):
            found.append((count, stride))
        stride *= count
    return tuple(found)


@given(digits=digits_of())
def test_merged_digits_are_the_same_ranks(digits: Digits) -> None:
    merged = merge(digits)
    assert sorted(members(merged, 0)) == sorted(members(digits, 0))
    assert all(count > 1 for count, _ in merged)
    assert all(a[0] * a[1] < b[1] for a, b in itertools.pairwise(merged))


@given(digits=digits_of(), skip=st.integers(1, 12), count=st.integers(1, 12))
def test_taken_digits_are_the_next_ranks_of_the_mixed_radix_number(digits: Digits, skip: int, count: int) -> None:
    ranks = members(digits, 0)
    if not can_take(digits, skip=skip, count=count):
        with pytest.raises(SimulatorFault):
            take(digits, skip=skip, count=count)
        return
    taken = take(digits, skip=skip, count=count)
    assert sorted(members(taken, 0)) == sorted(ranks[index * skip] for index in range(count))


@given(digits=digits_of())
def test_all_or_nothing_can_be_taken(digits: Digits) -> None:
    assert take(digits, skip=1, count=count_of(digits)) == merge(digits)
    assert take(digits, skip=1, count=1) == ()
    with pytest.raises(SimulatorFault, match="have too few ranks"):
        take(digits, skip=1, count=2 * count_of(digits))


def test_a_cut_off_the_digits_is_a_fault() -> None:
    assert take(((8, 1), (4, 64)), skip=8, count=2) == ((2, 64),)
    for skip, count in ((3, 2), (1, 3), (2, 8 * 3)):
        with pytest.raises(SimulatorFault):
            take(((8, 1), (4, 64)), skip=skip, count=count)


@given(digits=digits_of(), domain=st.sampled_from([1, 2, 4, 8, 16, 24, 48, 1 << 20]))
def test_members_of_a_domain_are_counted(digits: Digits, domain: int) -> None:
    ranks = members(digits, 0)
    counts = Counter(rank // domain for rank in ranks)
    nested = all(stride * count <= domain or domain <= stride or domain % stride == 0 for count, stride in digits)
    if nested and len(set(counts.values())) == 1:
        assert members_within(digits, domain) == counts[0]


def test_a_torus_group_uses_the_axes_that_it_covers() -> None:
    tiers = [tier("ici", "torus", 64, dims=["4", "4", "4"], wrap=["true"] * 3)]
    cluster = build_cluster(spec(*tiers))
    mesh = build_mesh(Layout(tp=4), degrees(tp=4, dp=16), cluster)
    assert mesh.slices == ((4, 4, 4),)
    tensor, data, world = (mesh.shapes[kind].tiers[0] for kind in (Group.TENSOR, Group.SHARD, Group.WORLD))
    assert [(lane.dim, lane.share) for lane in tensor.lanes] == [(0, 1.0)]
    assert [(lane.dim, lane.share) for lane in data.lanes] == [(1, 0.5), (2, 0.5)]
    assert [lane.dim for lane in world.lanes] == [0, 1, 2]
    assert (tensor.steps, data.steps, world.steps) == (2, 4, 6)


def test_a_pipeline_hop_on_a_torus_is_as_long_as_the_way() -> None:
    tiers = [tier("ici", "torus", 64, dims=["4", "4", "4"], wrap=["true"] * 3)]
    cluster = build_cluster(spec(*tiers))
    mesh = build_mesh(Layout(tp=16, pp=4), degrees(tp=16, pp=4), cluster)
    steps = {target: mesh.pipeline_hop(0, target).steps for target in (1, 2, 3)}
    assert steps == {1: 1, 2: 2, 3: 1}
    assert {lane.dim for lane in mesh.pipeline_hop(0, 2).lanes} == {2}


def test_places_of_a_mesh_do_not_depend_on_what_is_not_placed() -> None:
    cut = degrees(tp=4, dp=4)
    one, other = (build_mesh(Layout(tp=4), replace(cut, zero=zero), superpod_cluster()) for zero in (0, 3))
    assert (one.domains, one.digits, one.shapes) == (other.domains, other.digits, other.shapes)


def test_every_rank_has_one_place() -> None:
    cut = degrees(tp=2, cp=2, dp=3, pp=2)
    places = coordinates(Layout(), cut)
    assert len({tuple(sorted(place.items())) for place in places}) == cut.devices == prod((2, 2, 3, 2))
    strides = {axis: stride for axis, _, stride in axis_strides(Layout(), cut)}
    ranks = [sum(place[axis] * stride for axis, stride in strides.items()) for place in places]
    assert np.array_equal(ranks, np.arange(cut.devices))
    assert shape_of((), superpod_cluster(), (8, 24), ((), ())).size == 1
