"""Single changes of a scenario that lower its memory: what to try when it does not fit."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from simulator.parallel.layout import Layout
from simulator.parallel.scenario import Scenario
from simulator.parallel.training import Recompute

MAX_ZERO = 3


def single_changes(scenario: Scenario) -> Iterator[tuple[str, Scenario]]:
    """Yields each change as `key: value` and the scenario with it; not all of them need be valid.

    Where a degree changes, the data-parallel degree follows (`dp: auto`), so that the devices stay the same.
    """
    layout, training = scenario.layout, scenario.training
    if training.recompute is not Recompute.FULL:
        for mode in (Recompute.SELECTIVE, Recompute.FULL):
            if mode is not training.recompute:
                yield (
                    f"training.recompute: {mode}",
                    replace(scenario, training=training.model_copy(update={"recompute": mode})),
                )
    for zero in range(layout.zero + 1, MAX_ZERO + 1):
        yield f"layout.zero: {zero}", _with_layout(scenario, {"zero": zero})
    if layout.sp is False and layout.tp > 1:
        yield "layout.sp: true", _with_layout(scenario, {"sp": True})
    for key in ("tp", "pp", "cp", "ep"):
        doubled = 2 * getattr(layout, key)
        if key == "ep" and scenario.model.experts is None:
            continue
        changes: dict[str, object] = {key: doubled}
        if key != "ep":
            changes |= {"dp": "auto", "shard_group": "auto"}
        if key == "pp":
            changes["stages"] = "auto"
        yield f"layout.{key}: {doubled}", _with_layout(scenario, changes)
    if training.micro_batch > 1:
        half = training.micro_batch // 2
        yield (
            f"training.micro_batch: {half}",
            replace(scenario, training=training.model_copy(update={"micro_batch": half})),
        )


def _with_layout(scenario: Scenario, changes: dict[str, object]) -> Scenario:
    layout: Layout = scenario.layout.model_copy(update=changes)
    return replace(scenario, layout=layout)
