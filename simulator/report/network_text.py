"""What the report tells of the network at a terminal: traffic by axis, links, who talks to whom, where groups lie."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from simulator.report import wording
from simulator.report.drawing import Column, heading, print_table
from simulator.report.network_result import Flow
from simulator.report.result import AxisTraffic, Communication, Report

if TYPE_CHECKING:
    from rich.console import Console

MAX_MATRIX_RANKS = 8
"""Pipeline ranks up to which the matrix is printed; JSON has it for any number."""


def print_communication(report: Report, console: Console) -> None:
    """Prints what the network carries."""
    traffic = report.communication
    if not traffic.sent_bytes_total and not any(row.sent_bytes_per_rank or row.time_s for row in traffic.by_axis):
        heading(console, "Communication", "none: no rank sends anything")
        return
    _print_axes(traffic, console)
    if traffic.by_tier:
        _print_tiers(traffic, console)
    if traffic.links:
        _print_links(traffic, console)
    if traffic.placement:
        _print_placement(traffic, console)
    _print_matrix(traffic.matrix, console)


def _print_axes(traffic: Communication, console: Console) -> None:
    sent, received = (wording.si(total, "B") for total in (traffic.sent_bytes_total, traffic.received_bytes_total))
    heading(console, "Communication by axis", f"a step; all ranks send {sent} and receive {received}")
    rows = traffic.by_axis
    columns = [
        Column(header="axis", cells=[row.axis for row in rows], right=False),
        Column(header="collective", cells=[row.collective for row in rows], right=False),
        Column(header="calls", cells=[wording.number(row.calls_per_rank) for row in rows], expendable=1),
        Column(header="payload", cells=[wording.si(row.payload_bytes, "B") for row in rows], expendable=2),
        Column(header="sent/rank", cells=[wording.si(row.sent_bytes_per_rank, "B") for row in rows]),
        Column(header="time", cells=[wording.seconds(row.time_s) for row in rows]),
        Column(header="exposed", cells=[wording.seconds(row.exposed_s) for row in rows]),
        Column(header="hidden", cells=[wording.seconds(_hidden_s(row)) for row in rows], expendable=3),
    ]
    print_table(console, columns)


def _hidden_s(row: AxisTraffic) -> float:
    return max(0.0, row.time_s - row.exposed_s)


def _print_tiers(traffic: Communication, console: Console) -> None:
    heading(console, "Communication by network tier")
    tiers = traffic.by_tier
    columns = [
        Column(header="tier", cells=[tier.tier for tier in tiers], right=False),
        Column(header="all ranks", cells=[wording.si(tier.total_bytes, "B") for tier in tiers]),
        Column(header="per rank", cells=[wording.si(tier.bytes_per_rank_mean, "B") for tier in tiers], expendable=1),
        Column(header="busy", cells=[wording.percent(tier.busy_fraction) for tier in tiers]),
        Column(header="device bandwidth", cells=[wording.si(tier.capacity_bytes_per_s, "B/s") for tier in tiers]),
    ]
    print_table(console, columns)


def _print_links(traffic: Communication, console: Console) -> None:
    busiest, links = traffic.busiest_link, traffic.links
    note = ""
    if busiest is not None:
        way = f" {busiest.direction}" if busiest.direction else ""
        note = f"busiest: {busiest.link}{way} of {busiest.class_}, {wording.percent(busiest.use_fraction)}"
    heading(console, "Links", note)
    columns = [
        Column(header="link", cells=[f"{link.link} {link.direction}".strip() for link in links], right=False),
        Column(header="class", cells=[link.class_ for link in links], right=False, expendable=1),
        Column(header="in use", cells=[wording.percent(link.use_fraction) for link in links]),
        Column(header="busy", cells=[wording.percent(link.busy_fraction) for link in links]),
        Column(header="capacity", cells=[wording.si(link.capacity_bytes_per_s, "B/s") for link in links]),
        Column(header="carried", cells=[wording.si(link.carried_bytes, "B") for link in links], expendable=2),
    ]
    print_table(console, columns)


def _print_placement(traffic: Communication, console: Console) -> None:
    heading(console, "Where the groups lie", "nominal bandwidth of a rank when all send")
    places = traffic.placement
    columns = [
        Column(header="axis", cells=[place.axis for place in places], right=False),
        Column(header="ranks", cells=[wording.number(place.ranks) for place in places], expendable=3),
        Column(header="tier", cells=[place.tier for place in places], right=False),
        Column(header="slowest link", cells=[place.slowest_link for place in places], right=False),
        Column(header="bandwidth", cells=[wording.si(place.slowest_bytes_per_s, "B/s") for place in places]),
        Column(header="hops", cells=[wording.number(place.hops) for place in places], expendable=2),
        Column(header="latency", cells=[wording.seconds(place.latency_s) for place in places], expendable=1),
    ]
    print_table(console, columns)


def _print_matrix(matrix: Sequence[Flow], console: Console) -> None:
    """Prints the matrix of bytes between pipeline ranks, all axes together, where it is small and says something."""
    ranks = sorted({flow.from_pipeline_rank for flow in matrix})
    if not 1 < len(ranks) <= MAX_MATRIX_RANKS:
        return
    sums: dict[tuple[int, int], int] = {}
    for flow in matrix:
        if flow.to_pipeline_rank is not None:
            key = flow.from_pipeline_rank, flow.to_pipeline_rank
            sums[key] = sums.get(key, 0) + flow.total_bytes
    heading(console, "Who talks to whom", "bytes from pipeline rank to pipeline rank")
    columns = [Column(header="from", cells=[str(rank) for rank in ranks], right=False)]
    for target in ranks:
        cells = [wording.si(sums[rank, target], "B") if (rank, target) in sums else "-" for rank in ranks]
        columns.append(Column(header=f"to {target}", cells=cells, expendable=1 + target))
    print_table(console, columns)
