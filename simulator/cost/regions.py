"""What a layer stores from forward to backward, and what it runs again, region by region."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from simulator.cost.flow import Flow
from simulator.model.operators import AttentionCore, ExpertMatMul, MatMul, Move, Operator, Way, is_router
from simulator.model.tensors import Element
from simulator.parallel.recompute import KEEPS_RESULTS, RecomputeChoice


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Region:
    """Operators that are run again together."""

    label: str
    """The part or block."""
    operators: tuple[Operator, ...]
    """In order."""
    external: tuple[str, ...]
    """Tensors that they read and do not make."""
    kept: tuple[str, ...]
    """Tensors that they make and that are not made again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Storage:
    """What stays from forward to backward, and how the rest comes back."""

    stored: tuple[str, ...]
    """Tensors that stay."""
    region_of: dict[str, Region]
    """Region that makes a dropped tensor again."""
    users: Counter[str]
    """How many operators and regions need a tensor in backward."""


def choose_storage(flow: Flow, choice: RecomputeChoice) -> Storage:
    """Returns what is stored: all that an operator saves, but what a region makes again; and what regions read.

    A region that makes nothing which backward needs is not run again, and asks for nothing.
    """
    regions = list(_regions(flow, choice))
    region_of = {name: region for region in regions for operator in region.operators for name in flow.writes(operator)}
    users: Counter[str] = Counter()
    stored: dict[str, None] = {}
    wanted: list[str] = []
    for operator in flow.operators:
        for name in flow.names(operator.saves):
            users[name] += 1
            region = region_of.get(name)
            outside = region is not None and all(operator is not other for other in region.operators)
            if region is None or (region.label in KEEPS_RESULTS and outside):
                stored[name] = None
            else:
                wanted.append(name)
    done: set[int] = set()
    while wanted:
        name = wanted.pop()
        if name in stored:
            continue
        region = region_of[name]
        if id(region) in done:
            continue
        done.add(id(region))
        for source in (*region.external, *region.kept):
            users[source] += 1
            if source in region.kept or source not in region_of or source in stored:
                stored[source] = None
            else:
                wanted.append(source)
    return Storage(stored=tuple(stored), region_of=region_of, users=users)


def _regions(flow: Flow, choice: RecomputeChoice) -> Iterator[Region]:
    """Yields runs of operators that the choice names alike."""
    kept = _every_other_matmul(flow) if choice.keeps_every_other_matmul else ()
    run: list[Operator] = []
    label: str | None = None
    for operator in (*flow.operators, None):
        found = None
        if operator is not None:
            found = choice.region(block=flow.blocks[id(operator)], part=operator.part)
        if operator is None or found != label:
            if label is not None:
                operators = (*_gathers_before(flow, run), *run)
                made = {name for each in operators for name in flow.writes(each)}
                read = flow.names(name for each in operators for name in each.reads)
                external = tuple(name for name in read if name not in made)
                yield Region(label=label, operators=operators, external=external, kept=kept)
            run, label = [], found
        if operator is not None:
            run.append(operator)


def _gathers_before(flow: Flow, run: list[Operator]) -> tuple[Operator, ...]:
    """The gathers of what a region reads: they are run again with it, and what they gather is stored in its parts."""
    read = set(flow.names(name for each in run for name in each.reads))
    gathers = (each for each in flow.operators if isinstance(each, Move) and each.way is Way.GATHER)
    return tuple(each for each in gathers if each not in run and read.intersection(flow.writes(each)))


def _every_other_matmul(flow: Flow) -> tuple[str, ...]:
    """Results of the first, third, fifth matrix product, and of attention, statistics included."""
    products: list[str] = []
    attention: list[str] = []
    for operator in flow.operators:
        made = [name for name in flow.writes(operator) if flow.tensors[name].element is not Element.QUANTISED_COPY]
        if isinstance(operator, MatMul | ExpertMatMul) and not is_router(operator):
            products += made
        elif isinstance(operator, AttentionCore):
            attention += [name for name in made if name in flow.names(operator.saves)]
    return (*products[::2], *attention)
