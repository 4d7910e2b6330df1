"""Random small machines of every topology, for properties of the folded network."""

from __future__ import annotations

import math
from typing import Any

from hypothesis import strategies as st

from simulator.cluster import Cluster, build_cluster
from tests.cluster.machines import spec, tier

PORTS = {"inner": "100 GB/s", "nic": "24 GB/s", "wide": "24 GB/s"}
"""Bandwidth of a device's ports."""


@st.composite
def clusters(draw: st.DrawFn, *, rails: bool = False, largest: int = 96) -> Cluster:
    """One to four tiers: an inner domain, then a network of switches in one or more tiers, then links perhaps."""
    inner = draw(st.sampled_from(["switch", "mesh"] if rails else ["switch", "mesh", "torus", "planes"]))
    tiers = [_inner(draw, inner)]
    size = int(tiers[0]["size"])
    port = draw(st.sampled_from(["shared", "own"])) if inner in ("switch", "planes") and not rails else "own"
    port = "nic" if port == "own" else "inner"
    if inner in ("switch", "planes") and port == "inner":
        tiers[0]["port"] = "inner"
    if rails or draw(st.booleans()):
        found = _network(draw, size, largest, port, rails=rails)
        tiers += found
        size = int(tiers[-1]["size"])
    if not rails and size * 2 <= largest and len(tiers) < 4 and draw(st.booleans()):
        tiers.append(_links(draw, size, min(4, largest // size), draw(st.sampled_from(["wide", *_open(tiers, port)]))))
    return build_cluster(spec(*tiers))


def _open(tiers: list[dict[str, Any]], port: str) -> list[str]:
    """The shared port, if its outermost switches serve all rails."""
    levels = tiers[-1].get("levels", [{}])
    return [port] if tiers[-1].get("port") == port and levels[-1].get("per_rail", "false") == "false" else []


def _inner(draw: st.DrawFn, kind: str) -> dict[str, Any]:
    if kind == "torus":
        dims = tuple(draw(st.lists(st.integers(1, 4), min_size=1, max_size=2)))
        wrap = [draw(st.sampled_from(["true", "false"])) for _ in dims]
        return tier("inner", "torus", math.prod(dims), dims=[str(length) for length in dims], wrap=wrap)
    size = draw(st.sampled_from([2, 4]))
    if kind == "planes":
        level = {"name": "plane", "size": str(size), "switches": str(draw(st.sampled_from([2, 4])))}
        return tier("inner", "switch", size, levels=[level])
    return tier("inner", kind, size)


def _network(draw: st.DrawFn, size: int, largest: int, port: str, *, rails: bool) -> list[dict[str, Any]]:
    """One or two tiers of one to three layers each, with or without rails."""
    tiers: list[dict[str, Any]] = []
    own_rails = size if port == "nic" and size in (2, 4) and (rails or draw(st.booleans())) else 1
    on_rails = own_rails > 1
    for name in draw(st.sampled_from([["pod"], ["pod", "spine"]])):
        levels: list[dict[str, Any]] = []
        for layer in draw(st.sampled_from([["a"], ["a", "b"], ["a", "b", "c"]])):
            size *= draw(st.sampled_from([2, 3]))
            if size > largest:
                size //= 2 if size % 3 else 3
                break
            on_rails = on_rails and (not levels or draw(st.booleans()))
            count = (own_rails if on_rails else 1) * draw(st.sampled_from([1, 2]))
            levels.append({"name": layer, "size": str(size), "per_rail": str(on_rails).lower(), "switches": str(count)})
            levels[-1]["latency"] = f"{0.5 + 0.25 * len(levels) + 2 * len(tiers)} us"
        if not levels:
            break
        more = {"oversubscription": str(draw(st.sampled_from([1, 2, 7])))} if tiers else {}
        if own_rails > 1:
            more["rails"] = str(own_rails)
        size = int(levels[-1]["size"])
        tiers.append(
            tier(name, "switch", size, bandwidth=PORTS[port], latency=f"{3 + len(tiers)} us", port=port)
            | more
            | {"levels": levels}
        )
        if on_rails:
            break
    return tiers


def _links(draw: st.DrawFn, size: int, most: int, port: str) -> dict[str, Any]:
    count = draw(st.integers(2, max(2, most)))
    if draw(st.booleans()):
        links: dict[str, Any] = {"bandwidth": f"{draw(st.integers(1, 200))} GB/s", "distance": "100"}
    else:
        links = {
            "pairs": [
                {
                    "between": [str(a), str(b)],
                    "bandwidth": f"{draw(st.integers(1, 100))} GB/s",
                    "distance": str(draw(st.integers(0, 500))),
                }
                for a in range(count)
                for b in range(a + 1, count)
            ]
        }
    return tier("wide", "switch", size * count, bandwidth=PORTS[port], latency="9 us", port=port, links=links)
