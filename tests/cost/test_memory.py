"""Swings: how a piece of a step changes memory, for one layout or for an array of candidates at once."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.cost.liveness import layer_tapes
from simulator.cost.memory import (
    MEMORY,
    ZERO,
    Held,
    Levels,
    Memory,
    Swing,
    along,
    given_back,
    measured,
    released,
    taken,
)
from simulator.cost.tape import Tape
from simulator.model.decoder import build_model
from simulator.model.spec import ModelSpec
from simulator.parallel.degrees import Degrees, Int, candidates
from simulator.parallel.recompute import NOTHING
from tests.cost.tapes import splits
from tests.model.architectures import specs
from tests.parallel.jobs import degrees, workload

GRADIENTS, ACTIVATIONS, TEMPORARY = Memory.GRADIENTS, Memory.ACTIVATIONS, Memory.TEMPORARY


def _held(category: Memory, size: Int, name: str = "tensor") -> Held:
    return Held(name=name, operator="operator", category=category, bytes=size)


def _of(levels: Levels) -> dict[Memory, Int]:
    """Categories that are not 0."""
    return {category: level for category, level in zip(MEMORY, levels, strict=True) if np.any(level)}


def test_a_swing_knows_what_its_highest_point_is_made_of() -> None:
    """10 activations, 30 temporary on top, then 5 activations more without them: 40 at the highest, 15 at the end."""
    swing = Swing(
        held=(_held(ACTIVATIONS, 10), _held(TEMPORARY, 30), _held(ACTIVATIONS, 5)),
        events=((0, 1), (1, 1), (1, -1), (2, 1)),
    )
    assert _of(swing.peak) == {ACTIVATIONS: 10, TEMPORARY: 30}
    assert _of(swing.net) == {ACTIVATIONS: 15}


def test_a_swing_that_only_falls_is_highest_at_its_start() -> None:
    swing = given_back("tensor", ACTIVATIONS, 7)
    assert swing.peak == ZERO
    assert _of(swing.net) == {ACTIVATIONS: -7}


def test_a_swing_that_falls_before_it_rises_counts_from_its_start() -> None:
    swing = Swing(held=(_held(ACTIVATIONS, 10), _held(TEMPORARY, 13)), events=((0, -1), (1, 1)))
    assert _of(swing.peak) == {ACTIVATIONS: -10, TEMPORARY: 13}
    assert _of(swing.net) == {ACTIVATIONS: -10, TEMPORARY: 13}


def test_without_events_nothing_changes() -> None:
    swing = Swing(held=(), events=())
    assert (swing.peak, swing.net) == (ZERO, ZERO)
    assert along(ZERO, ()) == (ZERO, ZERO)


def test_along_finds_the_highest_point_inside_a_swing() -> None:
    """100 there; +20 stay; a buffer of 15 comes and goes: 135 at the highest, 120 at the end."""
    initial = tuple(100 * (category is Memory.PARAMETERS) for category in MEMORY)
    passing = Swing(held=(_held(TEMPORARY, 15),), events=((0, 1), (0, -1)))
    peak, level = along(initial, (taken("a", ACTIVATIONS, 20), passing, given_back("b", ACTIVATIONS, 0)))
    assert _of(peak) == {Memory.PARAMETERS: 100, ACTIVATIONS: 20, TEMPORARY: 15}
    assert _of(level) == {Memory.PARAMETERS: 100, ACTIVATIONS: 20}


def test_along_keeps_the_first_of_two_equal_highest_points() -> None:
    swings = (taken("a", ACTIVATIONS, 5), given_back("a", ACTIVATIONS, 5), taken("b", TEMPORARY, 5))
    assert _of(along(ZERO, swings)[0]) == {ACTIVATIONS: 5}


def test_what_is_released_is_what_a_swing_has_left_of_a_category() -> None:
    swing = Swing(
        held=(_held(GRADIENTS, 4, "kept"), _held(GRADIENTS, 6, "passing"), _held(ACTIVATIONS, 8, "other")),
        events=((0, 1), (1, 1), (2, 1), (1, -1)),
    )
    gone = released(swing, GRADIENTS)
    assert [(gone.held[number].name, sign) for number, sign in gone.events] == [("kept", -1)]
    peak, level = along(ZERO, (swing, gone))
    assert sum(peak) == 18
    assert _of(level) == {ACTIVATIONS: 8}


def test_nothing_is_released_of_a_swing_that_leaves_nothing() -> None:
    swing = Swing(held=(_held(GRADIENTS, 4),), events=((0, 1), (0, -1)))
    assert released(swing, GRADIENTS).net == ZERO
    assert released(given_back("gradients", GRADIENTS, 4), GRADIENTS).events == ()


@pytest.mark.parametrize("sizes", [(5, 9), (9, 5), (5, np.array([9, 4])), (np.array([5, 6]), np.array([9, 4]))])
def test_sizes_are_numbers_or_arrays_of_candidates(sizes: tuple[Int, Int]) -> None:
    """Two tensors one after the other; which of them is the highest point is another one for each candidate."""
    first, second = sizes
    swing = Swing(held=(_held(ACTIVATIONS, first), _held(TEMPORARY, second)), events=((0, 1), (0, -1), (1, 1)))
    larger = np.where(np.greater(second, first), 1, 0)
    assert np.array_equal(swing.peak[MEMORY.index(ACTIVATIONS)], first * (1 - larger))
    assert np.array_equal(swing.peak[MEMORY.index(TEMPORARY)], second * larger)
    assert np.array_equal(swing.net[MEMORY.index(TEMPORARY)], np.broadcast_to(second, np.shape(swing.net[0])))


TENSORS = st.lists(st.tuples(st.sampled_from(MEMORY), st.lists(st.integers(0, 9), min_size=3, max_size=3)), min_size=1)


@given(rows=st.lists(TENSORS, max_size=4), seed=st.randoms(use_true_random=False))
def test_swings_of_candidates_equal_those_of_each(
    rows: list[list[tuple[Memory, list[int]]]], seed: st.DataObject
) -> None:
    shapes = [
        (row, tuple((seed.randrange(len(row)), seed.choice((1, -1))) for _ in range(2 * len(row)))) for row in rows
    ]

    def swings(size_of: object) -> list[Swing]:
        return [
            Swing(held=tuple(_held(category, size_of(sizes)) for category, sizes in row), events=events)
            for row, events in shapes
        ]

    together = swings(np.array)
    for candidate in range(3):
        alone = swings(lambda sizes, candidate=candidate: sizes[candidate])
        for many, one in zip(together, alone, strict=True):
            assert _alone(many.peak, candidate) == one.peak
            assert _alone(many.net, candidate) == one.net
        for many, one in zip(along(ZERO, together), along(ZERO, alone), strict=True):
            assert _alone(many, candidate) == one


def _alone(levels: Levels, candidate: int) -> Levels:
    return tuple(int(np.broadcast_to(level, 3)[candidate]) for level in levels)


CUTS = tuple(degrees(tp=tp, cp=cp, ep=ep, dp=ep) for tp, cp, ep in ((2, 2, 2), (4, 2, 2), (2, 4, 4)))


@given(spec=specs())
def test_layers_of_candidates_measure_as_each_alone(spec: ModelSpec) -> None:
    """As a search asks: layouts that make the same copies, their degrees in arrays."""
    shape = workload(64, top_k=spec.experts.top_k if spec.experts else 1)
    together = candidates(**{name: [getattr(cut, name) for cut in CUTS] for name in Degrees.__dataclass_fields__})
    whole = build_model(spec, sequence_length=64)
    for layer in (whole.embedding, *dict.fromkeys(whole.layers), whole.head):
        tapes = layer_tapes(layer, NOTHING, splits(sequence=True, experts=True))
        for tape in (tapes.forward, tapes.backward):
            many = _measured(tape, shape, together)
            for candidate, cut in enumerate(CUTS):
                one = _measured(tape, shape, cut)
                assert _alone(many.peak, candidate) == one.peak
                assert _alone(many.net, candidate) == one.net


def _measured(tape: Tape, shape: object, cut: Degrees) -> Swing:
    return measured(tape, shape, cut, weight_gradient_bytes=2, kept_gradient_bytes=4)
