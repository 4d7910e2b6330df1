"""What the report tells of the network: it adds up, and names what it should."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from simulator.cli import app
from simulator.config.scenario import Scenario, read_scenario
from simulator.engine.program import PICOSECONDS_PER_SECOND
from simulator.parallel.layout import Axis
from simulator.report.flows import flows_of
from simulator.report.links import link_uses_of, volumes_of
from simulator.report.orders import candidates_of, orders_of
from simulator.report.places import places_of
from simulator.report.simulated import Simulated
from simulator.report.summary import slowest_class, summarise
from simulator.report.tier_use import _in_slices, tier_use_table
from simulator.simulate import run_steps
from tests.system.jobs import scenarios, tiny, tiny_model

often = settings(max_examples=25, deadline=None, derandomize=True)
DEEP = tiny_model(layers=8)


def pipeline_of_four() -> Simulated:
    return run_steps(tiny(tp=2, pp=4, dp=4, model=DEEP), record_spans=True)


@often
@given(scenario=scenarios())
def test_volumes_and_the_matrix_add_up_to_all_bytes_sent(scenario: Scenario) -> None:
    simulated = run_steps(scenario)
    communication = summarise(simulated).communication
    assert sum(row.total_bytes for row in communication.volumes) == communication.sent_bytes_total
    assert sum(flow.total_bytes for flow in communication.matrix) == communication.sent_bytes_total
    for rows in (communication.volumes, communication.matrix):
        by_axis: Counter[str] = Counter()
        for row in rows:
            by_axis[row.axis] += row.total_bytes
        booked: Counter[str] = Counter()
        for axis in communication.by_axis:
            booked[axis.axis] += axis.total_sent_bytes
        assert +by_axis == +booked
    by_tier: Counter[str] = Counter()
    for volume in communication.volumes:
        by_tier[volume.tier] += volume.total_bytes
    assert +by_tier == +Counter({tier.tier: tier.total_bytes for tier in communication.by_tier})


def test_stages_talk_to_their_neighbours_and_groups_among_themselves() -> None:
    simulated = pipeline_of_four()
    flows = flows_of(simulated.step, simulated.schedule)
    messages = {(flow.from_pipeline_rank, flow.to_pipeline_rank): flow for flow in flows if flow.axis == "pp"}
    forward, backward = {(0, 1), (1, 2), (2, 3)}, {(1, 0), (2, 1), (3, 2)}
    assert set(messages) == forward | backward
    # 8 ranks of a stage, 4 microbatches of 256 tokens x 512 in bf16, a tensor rank's half of each.
    assert {flow.total_bytes for flow in messages.values()} == {8 * 4 * 256 * 512 * 2 // 2}
    assert all(flow.from_pipeline_rank == flow.to_pipeline_rank for flow in flows if flow.axis == "tp")
    # Only the gradient norm is of all ranks.
    assert sum(flow.total_bytes for flow in flows if flow.to_pipeline_rank is None) < 32 * 100


def test_virtual_stages_close_the_pipeline_to_a_ring_and_bidirectional_ones_to_pairs() -> None:
    interleaved = run_steps(tiny(pp=4, vpp=2, model=DEEP))
    pairs = {
        (flow.from_pipeline_rank, flow.to_pipeline_rank)
        for flow in flows_of(interleaved.step, interleaved.schedule)
        if flow.axis == "pp"
    }
    assert {(3, 0), (0, 3)} <= pairs
    mirrored = run_steps(tiny(pp=4, model=DEEP, schedule="dualpipe", microbatches=8))
    sums = {
        (flow.from_pipeline_rank, flow.to_pipeline_rank)
        for flow in flows_of(mirrored.step, mirrored.schedule)
        if flow.axis == "dp" and flow.to_pipeline_rank is not None
    }
    assert sums == {(0, 3), (3, 0), (1, 2), (2, 1)}


def test_the_use_of_links_is_what_they_carried_over_what_they_could() -> None:
    simulated = pipeline_of_four()
    step, timeline = simulated.step, simulated.timeline
    uses = link_uses_of(step, simulated.mesh, simulated.costs, timeline)
    assert [use.link for use in uses] == ["nvlink port", "infiniband port"]
    for use in uses:
        assert 0 < use.use_fraction <= use.busy_fraction <= 1
        slot = 0 if use.link == "nvlink port" else 2
        number = [rank_class.name for rank_class in step.program.classes].index(use.class_)
        resource = step.program.classes[number].resources[slot + (use.direction == "in")]
        carried = int(timeline.resource_bytes[resource])
        time_s = timeline.makespan_ps / PICOSECONDS_PER_SECOND
        assert use.use_fraction == pytest.approx(carried / use.capacity_bytes_per_s / time_s)


def test_a_spine_behind_the_port_of_a_device_is_an_uplink_and_its_bytes_are_told_apart() -> None:
    simulated = run_steps(tiny(tp=8, dp=512, cluster="h100-roce-meta24k"))
    links = {row.link for row in volumes_of(simulated.step, simulated.mesh.cluster, simulated.costs.ports)}
    assert links == {"nvlink port", "nic port", "roce-spine uplink"}


def test_traffic_on_a_torus_is_told_by_axis() -> None:
    simulated = run_steps(tiny(tp=4, dp=16, cluster="tpu-v4-pod"))
    links = {row.link for row in volumes_of(simulated.step, simulated.mesh.cluster, simulated.costs.ports)}
    assert {"ici axis 0", "ici axis 1"} <= links


def test_each_axis_has_the_tier_of_its_groups() -> None:
    places = {place.axis: place for place in places_of(run_steps(tiny(tp=2, pp=4, dp=4, model=DEEP)).mesh)}
    assert {axis: (place.ranks, place.tier) for axis, place in places.items()} == {
        "tp": (2, "nvlink"),
        "dp": (4, "nvlink"),
        "pp": (4, "infiniband"),
    }
    assert places["pp"].slowest_bytes_per_s == 50e9
    assert places["pp"].slowest_link == "infiniband port"


def test_orders_move_every_axis_of_more_than_one_rank_and_leave_out_the_present_one() -> None:
    scenario = tiny(tp=2, pp=4, dp=4, model=DEEP)
    orders = list(orders_of(scenario))
    assert len(orders) == len(set(orders)) == 5
    assert scenario.layout.order not in orders
    assert all(sorted(order) == sorted(Axis) for order in orders)


def test_no_order_is_tried_where_all_ranks_lie_in_one_domain() -> None:
    simulated = run_steps(tiny(tp=2, dp=4, order=("dp", "tp", "cp", "ep", "pp")))
    assert candidates_of(simulated, slowest_class(simulated.timeline)) == []


@given(
    times=st.lists(st.tuples(st.integers(0, 999), st.integers(1, 1000)), min_size=1, max_size=20),
    slices=st.integers(1, 7),
)
def test_each_transfer_is_counted_once_over_all_slices(times: list[tuple[int, int]], slices: int) -> None:
    begin = np.array([first for first, _ in times], dtype=np.float64)
    end = np.minimum(begin + np.array([length for _, length in times], dtype=np.float64), 1000.0)
    found = _in_slices(begin, end, 1000, slices)
    assert found.sum() == pytest.approx(len(times))
    edges = np.linspace(0, 1000, slices + 1)
    for low, high, share in zip(edges[:-1], edges[1:], found, strict=True):
        inside = np.clip(np.minimum(end, high) - np.maximum(begin, low), 0, None) / (end - begin)
        assert share == pytest.approx(inside.sum(), abs=1e-9)


@pytest.mark.parametrize("slices", [1, 100])
def test_the_use_of_a_tier_over_the_step_is_all_that_it_carried(slices: int) -> None:
    simulated = pipeline_of_four()
    table = tier_use_table(simulated, slices)
    counts = [rank_class.count for rank_class in simulated.step.program.classes]
    carried = simulated.timeline.resource_bytes.reshape(len(counts), -1)
    capacity = np.array([resource.bytes_per_s for resource in simulated.step.program.resources]).reshape(carried.shape)
    time_s = simulated.timeline.makespan_ps / PICOSECONDS_PER_SECOND
    expected = np.average(carried / capacity / time_s, axis=0, weights=counts)
    for slot, (link, way) in enumerate(
        (link, way) for link in ("nvlink port", "infiniband port") for way in ("out", "in")
    ):
        rows = table.filter((pl.col("link") == link) & (pl.col("direction") == way))
        assert rows.height == slices
        assert rows["use_fraction"].mean() == pytest.approx(expected[slot], rel=1e-6)
        assert rows["end_s"].max() == pytest.approx(time_s)
    assert (table["highest_use_fraction"] >= table["use_fraction"]).all()


def test_the_use_of_the_tiers_is_written_as_a_table(tmp_path: Path) -> None:
    target = tmp_path / "use.csv"
    done = CliRunner().invoke(app, ["run", "straggler-node-64", "--quiet", "--tier-use", str(target)])
    assert done.exit_code == 0, done.output
    table = pl.read_csv(target)
    assert table.columns == [
        *("tier", "link", "direction", "begin_s", "end_s", "use_fraction", "highest_use_fraction", "class")
    ]
    assert table.height == 400


def test_a_table_of_an_unknown_kind_is_refused_before_the_work() -> None:
    done = CliRunner().invoke(app, ["run", "straggler-node-64", "--tier-use", "use.doc"])
    assert done.exit_code == 2
    assert "--tier-use use.doc: ends in .doc, which is no kind of table" in done.output


def test_uplinks_that_ranks_share_are_counted_once() -> None:
    """Eight leaves of 32 devices: each has 32 ports of 47.5 GB/s over 7."""
    simulated = run_steps(read_scenario("oversubscribed-spine"), record_spans=True)
    (use,) = (
        use
        for use in link_uses_of(simulated.step, simulated.mesh, simulated.costs, simulated.timeline)
        if use.link == "spine uplink"
    )
    assert use.capacity_bytes_per_s == pytest.approx(32 * 47.5e9 / 7)
    time_s = simulated.timeline.makespan_ps / PICOSECONDS_PER_SECOND
    assert use.carried_bytes == pytest.approx(8 * use.use_fraction * use.capacity_bytes_per_s * time_s)
    rows = tier_use_table(simulated).filter((pl.col("link") == use.link) & (pl.col("direction") == use.direction))
    assert rows["use_fraction"].mean() == pytest.approx(use.use_fraction, rel=1e-6)
