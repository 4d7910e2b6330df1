"""Rules on ranks that are not alike: what is named exists, tables have the layout's shape, jitter can be simulated."""

from __future__ import annotations

import difflib
from collections.abc import Iterator

import numpy as np

from simulator.errors import Violation
from simulator.parallel.case import Case
from simulator.parallel.chosen_ranks import chosen_ranks, nodes_of
from simulator.parallel.degrees import num_microbatches
from simulator.parallel.mesh import axis_strides, place
from simulator.parallel.variability import MAX_SLOWDOWN, Chosen, Fold, Tokens, Variability

MAX_PASSES_OF_CLASSES = 20_000_000
"""Passes of all rank classes in a step: about 200 bytes each in the engine, so that 4 GiB hold them."""


def variability_violations(variability: Variability, case: Case) -> tuple[Violation, ...]:
    """Returns every rule that `variability` breaks, for a layout that has passed all others."""
    found = [*_steps_need_jitter(variability), *_named_ranks_exist(variability, case)]
    found += _tiers_exist(variability, case)
    if not found:
        found += _slowdowns_stay_in_bounds(variability, case)
    if variability.tokens is not None:
        found += _tokens_fit_the_layout(variability.tokens, case)
    found += _drawn_ranks_can_be_simulated(variability, case)
    return tuple(found)


def _steps_need_jitter(variability: Variability) -> Iterator[Violation]:
    """Steps are drawn only where something is random."""
    if variability.steps is not None and not variability.drawn_steps:
        yield Violation(
            path="variability.steps",
            problem=f"{variability.steps} steps, but there is no jitter",
            why="without anything random all steps are equal",
            mend="add variability.jitter, or leave steps out",
        )


def _entries(variability: Variability) -> Iterator[tuple[str, Chosen]]:
    yield from ((f"variability.stragglers.{at}", entry) for at, entry in enumerate(variability.stragglers))
    yield from ((f"variability.slow_links.{at}", entry) for at, entry in enumerate(variability.slow_links))


def _named_ranks_exist(variability: Variability, case: Case) -> Iterator[Violation]:
    """Ranks, hosts, replicas and pipeline ranks that are named are part of the job."""
    degrees = case.degrees
    limits = {
        "rank": (int(degrees.devices), "ranks"),
        "ranks": (int(degrees.devices), "ranks"),
        "pipeline_rank": (int(degrees.pp), "pipeline ranks"),
        "replica": (int(degrees.dp), "data-parallel replicas"),
    }
    hosts: frozenset[int] | None = None
    for path, entry in _entries(variability):
        for key in Chosen.model_fields:
            value = getattr(entry, key)
            named = () if value is None else value if isinstance(value, tuple) else (value,)
            if key in limits:
                limit, what = limits[key]
                wrong = [number for number in named if number >= limit]
                exist = f"the job has {limit} {what}, counted from 0"
                mend = f"name {what} from 0 to {limit - 1}"
            elif named:
                hosts = _hosts(case) if hosts is None else hosts
                wrong = [number for number in named if number not in hosts]
                last = max(hosts)
                exist = f"the job lies on {len(hosts)} hosts of {case.cluster.node_size} devices, counted from 0"
                mend = f"name hosts from 0 to {last}" + (", those that it uses" if len(hosts) <= last else "")
            else:
                continue
            if wrong:
                yield Violation(
                    path=f"{path}.{key}", problem=f"{wrong[0]} is not part of the job", why=exist, mend=mend
                )


def _hosts(case: Case) -> frozenset[int]:
    """Returns the hosts that ranks of the job lie on."""
    axes = axis_strides(case.layout, case.degrees)
    domains, _ = place(axes, case.layout, case.cluster, has_experts=case.model.experts is not None)
    ranks = np.arange(int(case.degrees.devices), dtype=np.int64)
    return frozenset(np.unique(nodes_of(ranks, domains, case.cluster)).tolist())


def _tiers_exist(variability: Variability, case: Case) -> Iterator[Violation]:
    """A slow link belongs to a tier of the cluster."""
    names = [tier.name for tier in case.cluster.tiers]
    for at, entry in enumerate(variability.slow_links):
        if entry.tier not in names:
            near = difflib.get_close_matches(entry.tier, names, n=1)
            yield Violation(
                path=f"variability.slow_links.{at}.tier",
                problem=f"{entry.tier} is not a tier of {case.cluster.name}",
                why="a slow link is a port of a rank into one tier of the network",
                mend=f"did you mean {near[0]}?" if near else f"write one of {', '.join(names)}",
            )


def _slowdowns_stay_in_bounds(variability: Variability, case: Case) -> Iterator[Violation]:
    """The factors on one rank multiply to something that is still a slow rank."""
    if len(variability.stragglers) < 2:
        return
    axes = axis_strides(case.layout, case.degrees)
    domains, _ = place(axes, case.layout, case.cluster, has_experts=case.model.experts is not None)
    product = np.ones(int(case.degrees.devices))
    for entry in variability.stragglers:
        ranks = chosen_ranks(entry, degrees=case.degrees, axes=axes, domains=domains, cluster=case.cluster)
        product[ranks] *= entry.slowdown
    slowest = int(product.argmax())
    if product[slowest] > MAX_SLOWDOWN:
        yield Violation(
            path="variability.stragglers",
            problem=f"the slowdowns of rank {slowest} multiply to {product[slowest]:g}",
            why=f"factors on one rank multiply, and a rank slower than {MAX_SLOWDOWN:g} x has failed",
            mend="name the rank once",
        )


def _tokens_fit_the_layout(tokens: Tokens, case: Case) -> Iterator[Violation]:
    """A table of tokens has a row for each replica and a column for each microbatch, none above a full microbatch."""
    if tokens.table is None:
        return
    path = "variability.tokens.table" if tokens.file is None else "variability.tokens.file"
    replicas, microbatches = int(case.degrees.dp), int(num_microbatches(case.training, case.degrees))
    if len(tokens.table) != replicas:
        yield Violation(
            path=path,
            problem=f"{len(tokens.table)} rows, but the layout has {replicas} data-parallel replicas",
            why="each replica has microbatches of its own",
            mend=f"give {replicas} rows",
        )
    full = case.training.sequence_length * case.training.micro_batch
    for at, row in enumerate(tokens.table):
        if len(row) != microbatches:
            problem = f"row {at} has {len(row)} numbers, but a step has {microbatches} microbatches"
            why, mend = "every microbatch of a replica has its tokens", f"give {microbatches} numbers in each row"
        elif max(row) > full:
            column = next(column for column, count in enumerate(row) if count > full)
            problem = f"row {at} has {row[column]} tokens for microbatch {column}, but a full one has {full}"
            why = "a microbatch has at most sequence_length * micro_batch tokens, those without padding"
            mend = f"give at most {full}, or raise training.sequence_length"
        else:
            continue
        yield Violation(path=path, problem=problem, why=why, mend=mend)
        return


def _drawn_ranks_can_be_simulated(variability: Variability, case: Case) -> Iterator[Violation]:
    """Where every rank has jitter of its own, all of them are simulated."""
    jitter = variability.jitter
    if jitter is None or not variability.drawn_steps:
        return
    degrees = case.degrees
    ranks = int(degrees.devices)
    classes = ranks // int(degrees.tp) if jitter.fold is Fold.TENSOR else ranks
    passes = classes * int(num_microbatches(case.training, degrees)) * int(degrees.vpp) * 2
    if passes > MAX_PASSES_OF_CLASSES:
        can_fold = jitter.fold is Fold.NONE and degrees.tp > 1
        yield Violation(
            path="variability.jitter",
            problem=f"{classes} ranks with jitter of their own run {passes} passes in a step",
            why=f"every one is simulated, and more than {MAX_PASSES_OF_CLASSES} do not fit 4 GiB",
            mend=("set variability.jitter.fold to tensor, or " if can_fold else "")
            + "lower devices or training.global_batch",
        )
