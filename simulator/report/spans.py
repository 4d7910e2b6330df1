"""The timeline as a table: one row a task that ran, of as many rank classes as there is room for."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from enum import StrEnum
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from simulator.engine.program import PICOSECONDS_PER_SECOND
from simulator.errors import SimulatorFault
from simulator.lowering.step import LoweredStep
from simulator.report.file_format import format_of
from simulator.report.pipeline_actions import call_of_action, call_of_span, pipeline_classes
from simulator.report.simulated import Simulated, class_number
from simulator.report.trace import DEFAULT_MAX_SPANS, choose_classes, spans_per_class

if TYPE_CHECKING:
    import polars as pl

MAX_PICTURE_SPANS = 20_000_000
"""Task executions that a picture may need; they take 0.7 GB."""


class TableFormat(StrEnum):
    """Kinds of table files, by their ending."""

    CSV = "csv"
    PARQUET = "parquet"


def table_format(name: str, option: str = "--timeline") -> TableFormat:
    """Returns the format that the ending of a file's name asks for; CSV for standard output.

    Args:
        name: the file.
        option: the option that names it, for messages.

    Raises:
        ScenarioError: it is none of them.
    """
    if name == "-":
        return TableFormat.CSV
    mend = f"end it in {' or '.join('.' + each for each in TableFormat)}"
    return format_of(name, TableFormat, option=option, what="table", mend=mend)


def classes_to_show(step: LoweredStep, named: Sequence[str] = (), *, max_spans: int = DEFAULT_MAX_SPANS) -> list[int]:
    """Returns the numbers of the classes that a table or a trace shows.

    Args:
        step: the program.
        named: names or numbers of classes; none: as many as there is room for.
        max_spans: the room.

    Raises:
        ScenarioError: there is no class of a name.
    """
    names = [rank_class.name for rank_class in step.program.classes]
    if named:
        return sorted({class_number(names, each, option="--timeline-class") for each in named})
    return sorted(choose_classes(spans_per_class(step.program), max_spans=max_spans))


def classes_to_draw(step: LoweredStep, *, max_spans: int = MAX_PICTURE_SPANS) -> list[int]:
    """Returns the numbers of the classes that a picture of the pipeline needs, as far as there is room for them."""
    needed = pipeline_classes(step.program, step.pipeline_ranks)
    sizes = spans_per_class(step.program)
    chosen = choose_classes([sizes[number] for number in needed], max_spans=max_spans)
    return sorted(needed[position] for position in chosen)


def span_table(simulated: Simulated, classes: Collection[int]) -> pl.DataFrame:
    """Returns the spans of rank classes, by class, stream and time.

    Columns: `class`, `count` (how many ranks it stands for), `pipeline_rank`, `stream`, `routine`, `action` and
    `microbatch` (both null in the begin and the end of the step), `task`, `category`, `begin_s`, `end_s`. An action is
    written as `F3.1`: kind, virtual stage, microbatch; of a joined pair `F3.1&B0.2`, and the microbatch is the first's.

    Args:
        simulated: a simulated step, with the spans of these classes.
        classes: their numbers.

    Raises:
        SimulatorFault: no spans were recorded.
    """
    import polars as pl

    step, spans = simulated.step, simulated.timeline.spans
    if spans is None:
        raise SimulatorFault("a table of spans needs a timeline with spans; run the engine with record_spans")
    program = step.program
    spans = spans[np.isin(spans["class"], list(classes))]
    first = np.cumsum([0, *(len(routine.tasks) for routine in program.routines)])
    tasks = [task for routine in program.routines for task in routine.tasks]
    task_of_span = first[spans["routine"]] + spans["task"]
    actions = [_actions(simulated, number, spans) for number in np.unique(spans["class"]).tolist()]
    action = pl.concat([pl.Series("action", [], dtype=pl.String), *actions])
    frame = pl.DataFrame(
        {
            "class": _named([each.name for each in program.classes], spans["class"]),
            "count": np.array([each.count for each in program.classes], dtype=np.int64)[spans["class"]],
            "pipeline_rank": np.array(step.pipeline_ranks, dtype=np.int64)[spans["class"]],
            "stream": _named(program.streams, spans["stream"]),
            "routine": _named([each.name for each in program.routines], spans["routine"]),
            "action": action,
            "microbatch": spans["index"].astype(np.int64),
            "task": _named([each.name for each in tasks], task_of_span),
            "category": _named(
                [str(each) for each in program.categories],
                np.array([task.category for task in tasks], dtype=np.int64)[task_of_span],
            ),
            "begin_s": spans["begin_ps"] / PICOSECONDS_PER_SECOND,
            "end_s": spans["end_ps"] / PICOSECONDS_PER_SECOND,
        }
    )
    return frame.with_columns(microbatch=pl.when(pl.col("action").is_not_null()).then(pl.col("microbatch")))


def _actions(simulated: Simulated, number: int, spans: npt.NDArray[np.void]) -> pl.Series:
    """Returns the action that each span of a class belongs to, by stream and time; null outside of actions."""
    import polars as pl

    program, schedule, rank = simulated.step.program, simulated.schedule, simulated.step.pipeline_ranks[number]
    routines = program.classes[number].calls[:, 0]
    texts: list[str | None] = [None] * len(routines)
    for call, action in zip(call_of_action(schedule, rank, len(routines)), schedule.actions(rank), strict=True):
        before = texts[call]
        texts[call] = str(action) if before is None else f"{before}&{action}"
    streams = np.unique(spans["stream"][spans["class"] == number]).tolist()
    calls = np.concatenate([call_of_span(program, routines, stream=stream) for stream in streams])
    return pl.Series("action", texts, dtype=pl.String).gather(pl.Series(calls.astype(np.uint32)))


def _named(names: Sequence[str], numbers: npt.NDArray[np.int64]) -> pl.Series:
    import polars as pl

    return pl.Series(names, dtype=pl.String).gather(pl.Series(numbers.astype(np.uint32)))
