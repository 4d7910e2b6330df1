"""What lies outside the device and what crosses the host link for it, against ZeRO-Offload and ZeRO-Infinity."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.cluster import build_cluster, load_profile
from simulator.cost.offload import (
    HostResource,
    OffloadedStates,
    fetched_bytes,
    host_bytes_per_s,
    offloaded_states,
    resident_states,
)
from simulator.cost.states import state_bytes
from simulator.model.decoder import build_model
from simulator.model.tensors import TensorAxis, Weight
from simulator.parallel.degrees import Degrees
from simulator.parallel.precision import Dtype, Precision
from simulator.parallel.training import Offload, Optimizer, Training
from tests.model.architectures import specs
from tests.parallel.jobs import degrees

MIXED = Precision(gradients=Dtype.BF16, reduce=Dtype.BF16)
"""ZeRO's recipe: 2 + 2 + 12."""
COUNT, RANKS = 6_400_000_000, 64
VECTOR = Weight(name="parameters", axes=((TensorAxis.HIDDEN, COUNT),))
SHARE = COUNT // RANKS
PLACES = ("none", "cpu", "nvme")


def _training(states: str = "none", weights: str = "none", **more: Any) -> Training:
    filled: dict[str, Any] = {"precision": MIXED} | more
    offload = Offload(optimizer=states, parameters=weights)
    return Training(sequence_length=1, global_batch=1, offload=offload, **filled)


def _offloaded(cut: Degrees, training: Training, *weights: Weight) -> OffloadedStates:
    states = state_bytes(weights, cut, training, vocab_padding=0)
    return offloaded_states(weights, states, cut, training, vocab_padding=0)


def test_zero_offload_moves_gradients_down_and_weights_up() -> None:
    # Ren 2021: 12 bytes of states on the host, and 2 + 2 of gradients and weights that travel; E7.1: 28 at the update.
    assert _offloaded(degrees(dp=RANKS, zero=2), _training("cpu"), VECTOR) == OffloadedStates(
        host_bytes=16 * SHARE, gradients_down_bytes=2 * SHARE, weights_up_bytes=2 * SHARE, update_bytes=28 * SHARE
    )


def test_fp32_gradients_cost_four_bytes_on_the_link_and_30_in_host_memory() -> None:
    found = _offloaded(degrees(dp=RANKS, zero=1), _training("cpu", precision="bf16"), VECTOR)
    assert (found.gradients_down_bytes, found.update_bytes) == (4 * SHARE, 30 * SHARE)


def test_a_replicated_optimizer_is_updated_whole_on_every_host() -> None:
    found = _offloaded(degrees(dp=RANKS, zero=0), _training("cpu"), VECTOR)
    assert (found.host_bytes, found.weights_up_bytes) == (16 * COUNT, 2 * COUNT)


def test_states_on_nvme_are_read_and_written_once_and_pass_through_two_windows() -> None:
    found = _offloaded(degrees(dp=RANKS, zero=2), _training("nvme"), VECTOR)
    assert (found.nvme_bytes, found.nvme_read_bytes, found.nvme_written_bytes) == (12 * SHARE,) * 3
    assert found.host_bytes == (2 + 2) * SHARE + 2 * 12 * SHARE // 8


def test_zero_infinity_writes_states_and_weights_back() -> None:
    # E3.14: 12 bytes of states and 2 of weights.
    found = _offloaded(degrees(dp=RANKS, zero=3), _training("nvme", "nvme"), VECTOR)
    assert found.nvme_bytes == found.nvme_written_bytes == 14 * SHARE
    assert (found.nvme_read_bytes, found.weights_up_bytes) == (12 * SHARE, 0)


@pytest.mark.parametrize("optimizer", ["cpu", "nvme"])
def test_weights_on_the_host_are_held_once_and_stay_there(optimizer: str) -> None:
    found = _offloaded(degrees(dp=RANKS, zero=3), _training(optimizer, "cpu"), VECTOR)
    window = 2 * 12 * SHARE // 8 if optimizer == "nvme" else 12 * SHARE
    assert found.host_bytes == 2 * SHARE + 2 * SHARE + window
    assert found.weights_up_bytes == 0


def test_a_layers_shard_is_fetched_for_each_use() -> None:
    cut = degrees(dp=RANKS, zero=3)
    assert fetched_bytes([VECTOR], cut, _training("cpu", "cpu"), vocab_padding=0) == 2 * SHARE
    assert fetched_bytes([VECTOR], cut, _training("cpu"), vocab_padding=0) == 0


def test_nothing_is_offloaded_unless_told() -> None:
    assert _offloaded(degrees(dp=8, zero=3), _training(), VECTOR) == OffloadedStates()


@given(
    spec=specs(),
    optimizer=st.sampled_from(PLACES),
    parameters=st.sampled_from(PLACES),
    rule=st.sampled_from(Optimizer),
    zero=st.integers(0, 3),
)
def test_what_stays_and_what_is_offloaded_is_all_of_the_state(
    spec: Any, optimizer: str, parameters: str, rule: Optimizer, zero: int
) -> None:
    whole = build_model(spec, sequence_length=1)
    weights = [weight for layer in (whole.embedding, *whole.layers, whole.head) for weight in layer.weights]
    training, cut = _training(optimizer, parameters, optimizer=rule), degrees(dp=4, zero=zero)
    states = state_bytes(weights, cut, training, vocab_padding=0)
    stays = resident_states(states, training)
    outside = offloaded_states(weights, states, cut, training, vocab_padding=0)
    on_nvme = (states.optimizer if optimizer == "nvme" else 0) + (states.parameters if parameters == "nvme" else 0)
    assert outside.nvme_bytes == on_nvme
    in_host = (states.optimizer if optimizer == "cpu" else 0) + (states.parameters if parameters == "cpu" else 0)
    assert outside.host_bytes >= in_host
    total = states.parameters + states.gradients + states.optimizer
    assert stays.parameters + stays.gradients + stays.optimizer + in_host + on_nvme == total


def test_ranks_of_a_node_share_memory_and_drives_but_not_links() -> None:
    cluster = build_cluster(load_profile("gb200-nvl72"))
    rates = host_bytes_per_s(cluster, ranks_per_node=4)
    assert rates == {
        HostResource.LINK_DOWN: pytest.approx(360e9),
        HostResource.LINK_UP: pytest.approx(360e9),
        HostResource.MEMORY: 250e9,
    }
    rates = host_bytes_per_s(build_cluster(load_profile("h100-superpod")), ranks_per_node=8)
    assert rates[HostResource.NVME] == 50e9 / 8
