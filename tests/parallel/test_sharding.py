"""Who holds what: over the ranks of a model replica nothing is lost, nothing is made up, whatever the layout."""

from __future__ import annotations

from collections import Counter, defaultdict
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.model.decoder import build_model
from simulator.model.spec import ModelSpec
from simulator.model.tensors import TensorAxis, Weight
from simulator.parallel.degrees import Degrees, candidates, num_microbatches, resolve_degrees
from simulator.parallel.layout import Axis, Layout
from simulator.parallel.mesh import Group, axis_strides, group_digits
from simulator.parallel.sharding import (
    is_expert,
    is_split_over_tensor,
    local_elements,
    local_size,
    padded_vocab,
    split_degree,
)
from simulator.parallel.stages import layers_per_stage, split_into_stages
from simulator.parallel.training import Training
from tests.model.architectures import gpt, model, specs
from tests.parallel.jobs import degrees
from tests.parallel.test_mesh import bases, coordinates, members, meshes


def _place_in_groups(layout: Layout, cut: Degrees) -> list[dict[TensorAxis, int]]:
    """For every rank, its number in the group over which each tensor axis is cut, read off the mesh."""
    digits = group_digits(axis_strides(layout, cut), layout, cut)
    places: list[dict[TensorAxis, int]] = [{} for _ in range(cut.devices)]
    over = {
        Group.TENSOR: (TensorAxis.HEADS, TensorAxis.KV_HEADS, TensorAxis.FFN, TensorAxis.VOCAB),
        Group.EXPERT: (TensorAxis.EXPERTS,),
        Group.EXPERT_TENSOR: (TensorAxis.EXPERT_FFN,),
    }
    for kind, axes in over.items():
        for base in bases(digits[kind], cut.devices):
            for number, rank in enumerate(members(digits[kind], base)):
                places[rank] |= dict.fromkeys(axes, number)
    return places


def _block(weight: Weight, place: dict[TensorAxis, int], cut: Degrees) -> tuple[int, ...]:
    """Which part of a weight a rank holds: along each axis the number of its part."""
    block = []
    for axis, size in weight.axes:
        parts = int(split_degree(axis, size, cut))
        # Fewer key-value heads than tensor ranks: neighbours hold the same one.
        ranks = cut.tp if axis is TensorAxis.KV_HEADS else parts
        block.append(place[axis] * parts // ranks if parts > 1 else 0)
    return tuple(block)


@given(spec=specs(), job=meshes())
def test_the_ranks_of_a_replica_hold_every_parameter(spec: ModelSpec, job: tuple[Layout, Degrees]) -> None:
    """The sum over the ranks of a stage of what each holds, divided by how many hold the same, is the whole."""
    layout, cut = job
    whole = build_model(spec, sequence_length=1)
    if spec.experts is not None and spec.experts.count % cut.ep:
        return
    places = _place_in_groups(layout, cut)
    stage = [rank for rank, place in enumerate(coordinates(layout, cut)) if place[Axis.PIPELINE] == 0]
    for weight in {weight for layer in (whole.embedding, *set(whole.layers), whole.head) for weight in layer.weights}:
        holders = Counter(_block(weight, places[rank], cut) for rank in stage)
        local = local_elements(weight.axes, cut)
        held = sum(Fraction(local, holders[_block(weight, places[rank], cut)]) for rank in stage)
        assert held == weight.count, weight.name
        # Parts are held equally often, as the reductions over replicas assume.
        assert len(set(holders.values())) == 1
        replication = next(iter(holders.values()))
        if is_expert(weight):
            split = 1 if any(axis is TensorAxis.EXPERT_FFN for axis, _ in weight.axes) else cut.etp
            assert replication == cut.expert_replicas * split
        elif not is_split_over_tensor(weight):
            assert replication == cut.tp * cut.replicas


@given(spec=specs(), pp=st.integers(1, 5), vpp=st.integers(1, 3))
def test_stages_hold_every_weight_once_and_a_tied_table_twice(spec: ModelSpec, pp: int, vpp: int) -> None:
    whole = build_model(spec, sequence_length=1)
    stages = split_into_stages(whole, Layout(pp=pp, vpp=vpp), degrees(pp=pp, vpp=vpp))
    held = sum(weight.count for stage in stages for weight in stage.weights)
    twice = spec.vocab * spec.hidden if spec.tied_embeddings and pp > 1 else 0
    assert held == whole.num_parameters + twice
    assert sum(stage.num_transformer_layers for stage in stages) == spec.layers
    layers = [layer for stage in stages for layer in stage.layers]
    assert layers == [whole.embedding, *whole.layers, whole.head]


@given(layers=st.integers(0, 400), stages=st.integers(1, 64))
def test_layers_are_spread_evenly_and_left_over_ones_lie_in_the_middle(layers: int, stages: int) -> None:
    counts = layers_per_stage(layers, stages)
    assert (len(counts), sum(counts)) == (stages, layers)
    assert max(counts) - min(counts) <= 1
    longer = [stage for stage, count in enumerate(counts) if count > min(counts)]
    assert longer == list(range(longer[0], longer[-1] + 1)) if longer else True
    if longer:
        before, after = longer[0], stages - 1 - longer[-1]
        assert before - after in (0, 1)


def test_llama_405b_lies_on_16_stages_as_its_authors_laid_it() -> None:
    assert layers_per_stage(126, 16) == (7, *[8] * 14, 7)
    stages = split_into_stages(model("llama3.1-405b"), Layout(pp=16), degrees(pp=16))
    assert [stage.num_transformer_layers for stage in stages] == [7, *[8] * 14, 7]
    assert len({stage.key for stage in stages}) == 3


def test_listed_stages_are_taken_as_written() -> None:
    whole = build_model(gpt(layers=6, hidden=64, heads=1), sequence_length=1)
    layout = Layout(pp=2, vpp=2, stages=(0, 2, 3, 1))
    stages = split_into_stages(whole, layout, degrees(pp=2, vpp=2))
    assert [stage.num_transformer_layers for stage in stages] == [0, 2, 3, 1]
    assert [stage.index for stage in stages] == [0, 1, 2, 3]
    assert stages[-1].tied_copy is whole.tied_table
    assert all(stage.tied_copy is None for stage in stages[:-1])


def test_stages_of_two_kinds_of_layers_have_their_own_key() -> None:
    stages = split_into_stages(model("deepseek-v3"), Layout(pp=16), degrees(pp=16))
    assert [dict(stage.key).get("dense", 0) for stage in stages] == [3, *[0] * 15]


@given(vocab=st.integers(1, 300_000), tp=st.integers(1, 64), multiple=st.integers(0, 256))
def test_a_padded_vocabulary_is_the_next_multiple(vocab: int, tp: int, multiple: int) -> None:
    padded = padded_vocab(vocab, tp=tp, multiple=multiple)
    step = max(1, multiple) * tp
    assert padded % step == 0
    assert vocab <= padded < vocab + step


@pytest.mark.parametrize(
    ("axis", "size", "local"),
    [
        (TensorAxis.HEADS, 64, 8),
        (TensorAxis.KV_HEADS, 32, 4),
        (TensorAxis.KV_HEADS, 4, 1),
        (TensorAxis.FFN, 4096, 512),
        (TensorAxis.VOCAB, 50257, 6400),
        (TensorAxis.EXPERTS, 64, 16),
        (TensorAxis.EXPERT_FFN, 1024, 512),
        (TensorAxis.HIDDEN, 4096, 4096),
        (TensorAxis.HEAD_DIM, 128, 128),
        (TensorAxis.LATENT, 512, 512),
        (TensorAxis.KEYS, 8192, 8192),
        (TensorAxis.POSITIONS, 1024, 1024),
        (TensorAxis.ROUTER, 64, 64),
    ],
)
def test_each_tensor_axis_is_cut_over_its_direction(axis: TensorAxis, size: int, local: int) -> None:
    cut = degrees(tp=8, cp=2, dp=4, ep=4, etp=2)
    assert local_size(axis, size, cut, vocab_padding=128) == local


def test_every_tensor_axis_has_been_thought_of() -> None:
    uncut = {TensorAxis.HIDDEN, TensorAxis.HEAD_DIM, TensorAxis.LATENT, TensorAxis.KEYS}
    uncut |= {TensorAxis.POSITIONS, TensorAxis.ROUTER, TensorAxis.CLASSES, TensorAxis.CHANNELS, TensorAxis.PIXELS}
    found = defaultdict(set)
    for axis in TensorAxis:
        found[int(split_degree(axis, 720, degrees(tp=3, ep=5, etp=2)))].add(axis)
    over_tensor = {TensorAxis.HEADS, TensorAxis.KV_HEADS, TensorAxis.FFN, TensorAxis.VOCAB}
    assert found == {1: uncut, 2: {TensorAxis.EXPERT_FFN}, 3: over_tensor, 5: {TensorAxis.EXPERTS}}


# Degrees.


def test_auto_values_are_filled_in() -> None:
    cut = resolve_degrees(Layout(tp=4, cp=2, pp=3, ep=2, zero=1), devices=96)
    assert (cut.dp, cut.shard_group, cut.sequence) == (4, 8, 4)
    assert (cut.devices, cut.replicas, cut.expert_replicas) == (96, 8, 16)
    # Experts are sharded over all that hold the same ones (E3.2), in shard groups over at most as many ranks.
    assert cut.expert_shard_group == 16
    assert resolve_degrees(Layout(tp=4, cp=2, pp=3, ep=2, zero=1, shard_group=4), devices=96).expert_shard_group == 4
    assert resolve_degrees(Layout(dp=16, ep=8, zero=1, shard_group=8), devices=16).expert_shard_group == 2
    # Nothing is sharded under zero 0.
    assert resolve_degrees(Layout(tp=4, cp=2, pp=3, shard_group=4), devices=96).shard_group == 8
    assert resolve_degrees(Layout(tp=4, sp=False), devices=8).sequence == 1
    assert resolve_degrees(Layout(tp=1), devices=8).sequence == 1


@given(
    rows=st.lists(
        st.tuples(*(st.sampled_from([1, 2, 4]) for _ in range(6)), st.sampled_from([1, 2, 4])), min_size=1, max_size=8
    ),
    batch=st.integers(1, 1000),
)
def test_degrees_of_an_array_equal_those_of_each(rows: list[tuple[int, ...]], batch: int) -> None:
    alone = [
        degrees(tp=tp, cp=cp, dp=dp * ep * etp * group, pp=pp, ep=ep, etp=etp, shard_group=group)
        for tp, cp, dp, pp, ep, etp, group in rows
    ]
    names = Degrees.__dataclass_fields__
    together = candidates(**{name: [getattr(cut, name) for cut in alone] for name in names})
    training = Training(sequence_length=1, global_batch=batch, micro_batch=2)
    for name in ("devices", "replicas", "expert_replicas", "expert_shard_group"):
        assert np.array_equal(getattr(together, name), [getattr(cut, name) for cut in alone]), name
    assert np.array_equal(num_microbatches(training, together), [num_microbatches(training, cut) for cut in alone])


@given(spec=specs(), tps=st.lists(st.sampled_from([1, 2, 4]), min_size=1, max_size=5))
def test_shards_of_an_array_equal_those_of_each(spec: ModelSpec, tps: list[int]) -> None:
    whole = build_model(spec, sequence_length=1)
    alone = [degrees(tp=tp, ep=4 // tp, dp=4) for tp in tps]
    names = Degrees.__dataclass_fields__
    together = candidates(**{name: [getattr(cut, name) for cut in alone] for name in names})
    for layer in (whole.embedding, *set(whole.layers), whole.head):
        for weight in layer.weights:
            many = np.broadcast_to(local_elements(weight.axes, together, vocab_padding=128), len(alone))
            assert many.tolist() == [local_elements(weight.axes, cut, vocab_padding=128) for cut in alone]
