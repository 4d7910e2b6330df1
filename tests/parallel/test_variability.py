"""Ranks that are not alike: which ranks a scenario means, and what it may say of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from simulator.cluster import build_cluster
from simulator.errors import Violation
from simulator.parallel.chosen_ranks import chosen_ranks, nodes_of
from simulator.parallel.degrees import resolve_degrees
from simulator.parallel.layout import Layout
from simulator.parallel.mesh import axis_strides
from simulator.parallel.rules import scenario_violations
from simulator.parallel.scenario import Scenario
from simulator.parallel.training import Training
from simulator.parallel.variability import DEFAULT_STEPS, Chosen, Jitter, Straggler, Tokens, Variability
from tests.cluster.machines import spec as machine_spec
from tests.cluster.machines import tier
from tests.parallel.jobs import superpod
from tests.parallel.test_rules import DENSE


def violations(devices: int = 64, global_batch: int = 32, **keys: Any) -> tuple[Violation, ...]:
    """What is wrong with `variability` on tp 2, pp 4, dp 8: 4 microbatches of 1024 tokens."""
    scenario = Scenario(
        name="job",
        model=DENSE,
        cluster=superpod(),
        devices=devices,
        layout=Layout(tp=2, pp=4),
        training=Training(sequence_length=1024, global_batch=global_batch),
        variability=Variability.model_validate(keys),
    )
    return scenario_violations(scenario)


BROKEN = {
    "rank": (
        {"stragglers": [{"rank": 64, "slowdown": 1.5}]},
        {"stragglers": [{"rank": 63, "slowdown": 1.5}]},
        Violation(
            path="variability.stragglers.0.rank",
            problem="64 is not part of the job",
            why="the job has 64 ranks, counted from 0",
            mend="name ranks from 0 to 63",
        ),
    ),
    "node": (
        {"slow_links": [{"nodes": [7, 8], "tier": "nvlink", "bandwidth": 0.5}]},
        {"slow_links": [{"nodes": [6, 7], "tier": "nvlink", "bandwidth": 0.5}]},
        Violation(
            path="variability.slow_links.0.nodes",
            problem="8 is not part of the job",
            why="the job lies on 8 hosts of 8 devices, counted from 0",
            mend="name hosts from 0 to 7",
        ),
    ),
    "replica": (
        {"stragglers": [{"pipeline_rank": 3, "replica": 8, "slowdown": 2}]},
        {"stragglers": [{"pipeline_rank": 3, "replica": 7, "slowdown": 2}]},
        Violation(
            path="variability.stragglers.0.replica",
            problem="8 is not part of the job",
            why="the job has 8 data-parallel replicas, counted from 0",
            mend="name data-parallel replicas from 0 to 7",
        ),
    ),
    "tier": (
        {"slow_links": [{"rank": 0, "tier": "infinband", "bandwidth": 0.5}]},
        {"slow_links": [{"rank": 0, "tier": "infiniband", "bandwidth": 0.5}]},
        Violation(
            path="variability.slow_links.0.tier",
            problem="infinband is not a tier of h100-superpod",
            why="a slow link is a port of a rank into one tier of the network",
            mend="did you mean infiniband?",
        ),
    ),
    "product": (
        {"stragglers": [{"rank": 5, "slowdown": 50}, {"node": 0, "slowdown": 21}]},
        {"stragglers": [{"rank": 5, "slowdown": 50}, {"node": 0, "slowdown": 20}]},
        Violation(
            path="variability.stragglers",
            problem="the slowdowns of rank 5 multiply to 1050",
            why="factors on one rank multiply, and a rank slower than 1000 x has failed",
            mend="name the rank once",
        ),
    ),
    "rows": (
        {"tokens": {"table": [[1024] * 4] * 7}},
        {"tokens": {"table": [[1024] * 4] * 8}},
        Violation(
            path="variability.tokens.table",
            problem="7 rows, but the layout has 8 data-parallel replicas",
            why="each replica has microbatches of its own",
            mend="give 8 rows",
        ),
    ),
    "columns": (
        {"tokens": {"table": [[1024] * 4, [1024] * 3, *[[1024] * 4] * 6]}},
        {"tokens": {"table": [[1024] * 4, [1] * 4, *[[1024] * 4] * 6]}},
        Violation(
            path="variability.tokens.table",
            problem="row 1 has 3 numbers, but a step has 4 microbatches",
            why="every microbatch of a replica has its tokens",
            mend="give 4 numbers in each row",
        ),
    ),
    "tokens": (
        {"tokens": {"table": [[1024] * 4, [9, 9, 1025, 9], *[[1024] * 4] * 6]}},
        {"tokens": {"table": [[1024] * 4, [9, 9, 1024, 9], *[[1024] * 4] * 6]}},
        Violation(
            path="variability.tokens.table",
            problem="row 1 has 1025 tokens for microbatch 2, but a full one has 1024",
            why="a microbatch has at most sequence_length * micro_batch tokens, those without padding",
            mend="give at most 1024, or raise training.sequence_length",
        ),
    ),
    "steps": (
        {"steps": 10, "jitter": {"compute": 0}},
        {"steps": 10, "jitter": {"compute": 0.1}},
        Violation(
            path="variability.steps",
            problem="10 steps, but there is no jitter",
            why="without anything random all steps are equal",
            mend="add variability.jitter, or leave steps out",
        ),
    ),
}


@pytest.mark.parametrize("rule", BROKEN)
def test_each_rule_fails_with_its_words_and_passes(rule: str) -> None:
    breaks, keeps, says = BROKEN[rule]
    assert violations(**breaks) == (says,)
    assert violations(**keeps) == ()


def test_too_many_ranks_with_jitter_are_refused_and_folding_helps() -> None:
    """262,144 ranks, of which dp is 32,768, with 64 microbatches each."""
    devices, batch = 262_144, 32_768 * 64
    assert violations(devices=devices, global_batch=batch, jitter={"ranks": 0.1}) == (
        Violation(
            path="variability.jitter",
            problem="262144 ranks with jitter of their own run 33554432 passes in a step",
            why="every one is simulated, and more than 20000000 do not fit 4 GiB",
            mend="set variability.jitter.fold to tensor, or lower devices or training.global_batch",
        ),
    )
    assert violations(devices=devices, global_batch=batch, jitter={"ranks": 0.1, "fold": "tensor"}) == ()


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({}, "names no ranks; give one of rank, ranks, node, nodes, pipeline_rank, replica"),
        ({"rank": 1, "node": 2}, "node stands beside rank"),
        ({"rank": 1, "slowdown": 0.9}, "greater than or equal to 1"),
        ({"ranks": []}, "at least 1 item"),
    ],
)
def test_a_straggler_is_chosen_in_one_way_and_is_not_fast(keys: dict[str, Any], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        Straggler(**({"slowdown": 1.5} | keys))


def test_tokens_are_given_in_one_way() -> None:
    with pytest.raises(ValidationError, match="2 of spread, table, file are given; give exactly one"):
        Tokens(spread=0.1, table=((1,),))
    with pytest.raises(ValidationError, match="0 of spread, table, file are given; give exactly one"):
        Tokens()


def test_steps_are_drawn_only_with_jitter() -> None:
    assert Variability().drawn_steps == 0
    assert Variability(jitter=Jitter()).drawn_steps == 0
    assert Variability(jitter=Jitter(ranks=0.1)).drawn_steps == DEFAULT_STEPS
    assert Variability(jitter=Jitter(compute=0.1), steps=7).drawn_steps == 7


def test_ranks_are_chosen_by_number_host_and_place() -> None:
    """tp 2, dp 8, pp 4 on hosts of 8: rank = t + 2 d + 16 p."""
    layout = Layout(tp=2, pp=4)
    degrees = resolve_degrees(layout, devices=64)
    cluster = build_cluster(superpod())

    def chosen(**keys: Any) -> list[int]:
        axes = axis_strides(layout, degrees)
        ranks = chosen_ranks(Chosen(**keys), degrees=degrees, axes=axes, domains=(8, 64), cluster=cluster)
        return ranks.tolist()

    assert chosen(rank=17) == [17]
    assert chosen(ranks=(9, 3, 9)) == [3, 9]
    assert chosen(node=2) == list(range(16, 24))
    assert chosen(nodes=(0, 7)) == [*range(8), *range(56, 64)]
    assert chosen(pipeline_rank=1) == list(range(16, 32))
    assert chosen(replica=3) == [6, 7, 22, 23, 38, 39, 54, 55]
    assert chosen(pipeline_rank=1, replica=3) == [22, 23]


def test_hosts_are_counted_along_the_devices_of_a_rack_also_those_left_out() -> None:
    """64 of the 72 devices of each rack, hosts of 4: ranks 64 to 67 lie on host 18, hosts 16 and 17 have none."""
    cluster = build_cluster(machine_spec(tier("nvl", "switch", 72), tier("ib", "switch", 144)))
    ranks = np.arange(128)
    nodes = nodes_of(ranks, (64, 128), cluster)
    size = cluster.node_size
    assert nodes[63] == 63 // size
    assert nodes[64] == 72 // size
