"""The timeline as a table: one row a task that ran, of as many rank classes as there is room for."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import PurePath
from typing import TYPE_CHECKING

import numpy as np

from simulator.engine.program import PICOSECONDS_PER_SECOND
from simulator.errors import ScenarioError, SimulatorFault, Violation
from simulator.lowering.step import LoweredStep
from simulator.report.pipeline_actions import pipeline_classes
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


def table_format(name: str) -> TableFormat:
    """Returns the format that the ending of a file's name asks for; CSV for standard output.

    Raises:
        ScenarioError: it is none of them.
    """
    ending = PurePath(name).suffix.lower().removeprefix(".")
    if name == "-":
        return TableFormat.CSV
    if ending in tuple(TableFormat):
        return TableFormat(ending)
    violation = Violation(
        path=f"--timeline {name[:80]}",
        problem=f"ends in {'.' + ending if ending else 'nothing'}, which is no kind of table",
        why="the ending of the name chooses how the table is written",
        mend=f"end it in {' or '.join('.' + each for each in TableFormat)}",
    )
    raise ScenarioError([violation])


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SpanTable:
    """The spans of some rank classes."""

    frame: pl.DataFrame
    """One row a task that ran."""
    left_out: tuple[str, ...]
    """Rank classes that are not in it."""


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


def span_table(simulated: Simulated, classes: Collection[int]) -> SpanTable:
    """Returns the spans of rank classes, by class, stream and time.

    Columns: `class`, `count` (how many ranks it stands for), `pipeline_rank`, `stream`, `routine`, `stage` and
    `microbatch` (none in the begin and the end of the step), `task`, `category`, `begin_s`, `end_s`.

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
    stages = np.array([_stages(simulated, number) for number in range(len(program.classes))], dtype=np.int64)
    stage = stages[spans["class"], spans["routine"]]
    frame = pl.DataFrame(
        {
            "class": _named([each.name for each in program.classes], spans["class"]),
            "count": np.array([each.count for each in program.classes], dtype=np.int64)[spans["class"]],
            "pipeline_rank": np.array(step.pipeline_ranks, dtype=np.int64)[spans["class"]],
            "stream": _named(program.streams, spans["stream"]),
            "routine": _named([each.name for each in program.routines], spans["routine"]),
            "stage": stage,
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
    of_a_stage = pl.col("stage") != _NO_STAGE
    frame = frame.with_columns(
        microbatch=pl.when(of_a_stage).then(pl.col("microbatch")), stage=pl.when(of_a_stage).then(pl.col("stage"))
    )
    left_out = [each.name for number, each in enumerate(program.classes) if number not in set(classes)]
    return SpanTable(frame=frame, left_out=tuple(left_out))


_NO_STAGE = -1


def _stages(simulated: Simulated, number: int) -> list[int]:
    """Returns the stage that each routine works on if a class runs it."""
    stages = simulated.schedule.stages_of(simulated.step.pipeline_ranks[number])
    chunks = [written.chunk for written in simulated.step.routines]
    return [_NO_STAGE if chunk is None or chunk >= len(stages) else stages[chunk] for chunk in chunks]


def _named(names: Sequence[str], numbers: np.typing.NDArray[np.int64]) -> pl.Series:
    import polars as pl

    return pl.Series(names, dtype=pl.String).gather(pl.Series(numbers.astype(np.uint32)))
