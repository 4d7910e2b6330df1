"""Predicted beside measured times of collectives, as tables.

Usage: python benchmarks/collective_accuracy.py [--data DIRECTORY] [--write]

DIRECTORY holds nccl.parquet and deepep.parquet; without it only the published figures of several nodes are printed,
which are in `published_collectives.yaml`. `--write` puts the tables into docs/accuracy.md, between its two marks.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from collective_tables import (
    COLLECTIVES,
    PARTS,
    Row,
    collective_rows,
    held_out,
    is_large,
    log_error,
    node_of,
    token_rows,
)
from published import HERE, write_section

from simulator.cluster import build_cluster
from simulator.cluster.profiles import load_profile
from simulator.cost.collectives import CollectiveChoice, ports_of, price_collective, time_alone_s
from simulator.parallel.groups import shape_of

PUBLISHED = HERE / "published_collectives.yaml"
BEGIN, END = "<!-- begin: written by benchmarks/collective_accuracy.py -->", "<!-- end of collectives -->"
GIGA = 1e9
HIGH = 0.9


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Returns a Markdown table; all columns but the first are numbers."""
    lines = [head, ["---", *["--:"] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def errors_of(part: str, rows: Sequence[Row]) -> np.ndarray:
    """Returns predicted over measured less 1, by row."""
    return np.array([math.expm1(log_error(row, node_of(part), part)) for row in rows])


def summary(errors: np.ndarray, out: np.ndarray) -> list[str]:
    """Returns number of rows, median and 90 % quantile of the absolute error, median error, and the held-out median."""
    if not len(errors):
        return ["0", "", "", "", ""]
    size = np.abs(errors)
    away = f"{100 * np.median(size[out]):.1f}%" if out.any() else ""
    return [
        str(len(errors)),
        f"{100 * np.median(size):.1f}%",
        f"{100 * np.quantile(size, HIGH):.1f}%",
        f"{100 * np.median(errors):+.1f}%",
        away,
    ]


def node_tables(data: Path) -> str:
    """Returns the tables of one node: NCCL by collective and size, token exchanges by multiprocessors."""
    head = ["rows", "median", "90 %", "bias", "held out"]
    nccl: list[list[str]] = []
    tokens: list[list[str]] = []
    for part, profile in PARTS.items():
        rows = collective_rows(data, part)
        errors, out = errors_of(part, rows), np.array(held_out(rows))
        for name in COLLECTIVES:
            for large in (True, False):
                here = np.array([row.group == name and is_large(row) == large for row in rows])
                size = "1 MiB and more" if large else "below 1 MiB"
                nccl.append([profile, COLLECTIVES[name], size, *summary(errors[here], out[here])])
        rows = token_rows(data, part)
        if rows:
            errors, out = errors_of(part, rows), np.array(held_out(rows))
            for group in sorted({row.group for row in rows}, key=lambda name: (name[0], int(name.split()[1]))):
                here = np.array([row.group == group for row in rows])
                name, multiprocessors = group.removesuffix(" multiprocessors").split(", ")
                tokens.append([profile, name, multiprocessors, *summary(errors[here], out[here])])
    return "\n\n".join(
        [
            "NCCL on 2, 4 and 8 devices of one node, absolute error of time:",
            table(["profile", "collective", "buffer", *head], nccl),
            "DeepEP on 8 devices of one node, dispatch in fp8 and combine in bf16, by multiprocessors:",
            table(["profile", "kernel", "multiprocessors", *head], tokens),
        ]
    )


def published_tables() -> str:
    """Returns the tables of published bus bandwidths; none of them was fitted."""
    parts: list[str] = []
    for run in yaml.safe_load(PUBLISHED.read_text(encoding="utf-8"))["runs"]:
        rows = [_published_row(run, *point) for point in run["points"]]
        parts += [
            f"{run['name']}. Source: {run['source']}",
            table(["devices", "buffer", "algorithm", "predicted GB/s", "published GB/s", "error"], rows),
        ]
    return "\n\n".join(parts)


def _published_row(run: dict[str, Any], ranks: int, mib: int, published: float) -> list[str]:
    devices = max(ranks, build_cluster(load_profile(run["cluster"]), ranks).node_size)
    cluster = build_cluster(load_profile(run["cluster"]), max(8, devices))
    domains = tuple(tier.size for tier in cluster.tiers)
    shape = shape_of(((ranks, 1),), cluster, domains, ((),) * len(domains))
    collective = COLLECTIVES[run["collective"]]
    choice = CollectiveChoice(in_network=run.get("in_network", True))
    payload = mib << 20
    traffic = price_collective(collective, payload, shape, cluster, choice)
    assert traffic is not None
    passes = 2 if run["collective"] == "all_reduce" else 1
    bus = passes * (ranks - 1) / ranks * payload / time_alone_s(traffic, ports_of(cluster)) / GIGA
    size = f"{mib / 1024:g} GiB" if mib >= 1024 else f"{mib} MiB"
    return [
        str(ranks),
        size,
        traffic.algorithm,
        f"{bus:.1f}",
        f"{published:.1f}",
        f"{100 * (bus / published - 1):+.1f}%",
    ]


def main() -> None:
    """Prints the tables, or writes them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    if options.write and options.data is None:
        parser.error("--write needs --data: the section holds all tables")
    text = "\n\n".join([*([node_tables(options.data)] if options.data else []), published_tables()])
    if options.write:
        write_section(BEGIN, END, text)
    else:
        print(text)


if __name__ == "__main__":
    main()
