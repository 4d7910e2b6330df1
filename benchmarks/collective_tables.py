"""Measured times of collectives on one node, read from tables, beside what a cluster profile predicts.

Shared by `fit_collectives.py` and `collective_accuracy.py`. The tables are no part of the project: see
`docs/accuracy.md` for their origin and columns.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
import polars as pl

from simulator.cluster import Cluster, build_cluster
from simulator.cluster.profiles import load_profile
from simulator.cost.collectives import Collective, CollectiveChoice, ports_of, price_collective, time_alone_s
from simulator.cost.collectives.experts import Routing, kernel_of, price_tokens, token_bytes
from simulator.parallel.groups import GroupShape, shape_of

PARTS = {"a100_sxm": "a100-superpod", "h100_sxm": "h100-superpod", "b200_sxm": "b200-superpod"}
"""Profile of each accelerator of the tables."""
COLLECTIVES = {
    "all_reduce": Collective.ALL_REDUCE,
    "all_gather": Collective.ALL_GATHER,
    "reduce_scatter": Collective.REDUCE_SCATTER,
    "all_to_all": Collective.ALL_TO_ALL,
}
LARGE = 1 << 20
"""Bytes of a buffer from which on errors count as those of large ones."""
NODE = 8
SEED = 20261121
TRAIN_SHARE = 0.7
# Coefficients that are figures of a tier and not entries of its `calibration`.
TIER_FIGURES = ("efficiency", "in_network_efficiency")


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One measured collective, or one kernel of a token exchange."""

    group: str
    """Under which name errors are counted."""
    key: tuple[object, ...]
    """What it is, without its size and repeats: rows of one key and size are split together."""
    size_bytes: int
    """Of the buffer."""
    measured_s: float
    call: Mapping[str, int | bool | str]
    """What to price."""


@cache
def node_of(part: str) -> Cluster:
    """Returns one node of the accelerator's profile."""
    return build_cluster(load_profile(PARTS[part]), NODE)


@cache
def group_of(part: str, ranks: int) -> GroupShape:
    """Returns the first ranks of a node as a group."""
    return shape_of(((ranks, 1),), node_of(part), (NODE,), ((),))


def collective_rows(data: Path, part: str) -> list[Row]:
    """Returns the rows of nccl.parquet for one accelerator."""
    table = pl.read_parquet(data / "nccl.parquet").filter(pl.col("gpu") == part)
    return [
        Row(
            group=row["collective"],
            key=(row["collective"], row["num_gpus"], row["nccl_dtype"]),
            size_bytes=row["buffer_bytes"],
            measured_s=row["time_s"],
            call={
                "collective": row["collective"],
                "ranks": row["num_gpus"],
                "payload_bytes": row["buffer_bytes"],
                "in_network": row["nccl_dtype"] == "half",
            },
        )
        for row in table.iter_rows(named=True)
    ]


def token_rows(data: Path, part: str) -> list[Row]:
    """Returns the rows of deepep.parquet for one accelerator, dispatch in fp8 and combine in bf16."""
    table = pl.read_parquet(data / "deepep.parquet").filter(pl.col("gpu") == part)
    rows: list[Row] = []
    for row in table.iter_rows(named=True):
        routing = {"experts": row["num_experts"], "top_k": row["num_topk"]}
        for name, width in (("dispatch", 1), ("combine", 2)):
            size = token_bytes(row["hidden_size"], bytes_per_element=width)
            rows.append(
                Row(
                    group=f"{name}, {row['dispatch_sms']} multiprocessors",
                    key=(name, *routing.values(), row["hidden_size"]),
                    size_bytes=row["num_token"] * size,
                    measured_s=row[f"{name}_s"],
                    call={
                        "combine": width == 2,
                        "tokens": row["num_token"],
                        "size_bytes": size,
                        "multiprocessors": row["dispatch_sms"],
                        **routing,
                    },
                )
            )
    return rows


def changed(cluster: Cluster, coefficients: Mapping[str, float]) -> Cluster:
    """Returns the cluster with other coefficients of its innermost tier."""
    inner = cluster.tiers[0]
    figures = {name: value for name, value in coefficients.items() if name in TIER_FIGURES}
    others = {name: value for name, value in coefficients.items() if name not in TIER_FIGURES}
    return replace(cluster, tiers=(replace(inner, **figures, calibration={**inner.calibration, **others}),))


def predicted_s(row: Row, cluster: Cluster, part: str) -> float:
    """Returns the time that the package predicts for a row."""
    call = row.call
    if "collective" in call:
        traffic = price_collective(
            COLLECTIVES[str(call["collective"])],
            int(call["payload_bytes"]),
            group_of(part, int(call["ranks"])),
            cluster,
            CollectiveChoice(in_network=bool(call["in_network"])),
        )
        assert traffic is not None
    else:
        kernel = kernel_of(cluster, combine=bool(call["combine"]))
        assert kernel is not None
        traffic = price_tokens(
            int(call["tokens"]),
            int(call["size_bytes"]),
            Routing(experts=int(call["experts"]), top_k=int(call["top_k"])),
            group_of(part, NODE),
            cluster,
            kernel=kernel,
            multiprocessors=int(call["multiprocessors"]),
            combine=bool(call["combine"]),
        )
    return time_alone_s(traffic, ports_of(cluster))


def is_large(row: Row) -> bool:
    """Returns whether a row counts among the large buffers; token exchanges all do."""
    return "collective" not in row.call or row.size_bytes >= LARGE


def held_out(rows: Sequence[Row]) -> list[bool]:
    """Returns which rows no fit sees: a seeded 30 % of (collective, ranks, type, size)."""
    shapes = sorted({(str(row.key), row.size_bytes) for row in rows})
    chosen = np.random.default_rng(SEED).random(len(shapes)) >= TRAIN_SHARE
    out = {shape for shape, away in zip(shapes, chosen, strict=True) if away}
    return [(str(row.key), row.size_bytes) in out for row in rows]


def log_error(row: Row, cluster: Cluster, part: str) -> float:
    """Returns the logarithm of predicted over measured time."""
    return math.log(predicted_s(row, cluster, part) / row.measured_s)
