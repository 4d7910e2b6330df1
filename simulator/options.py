"""The options that commands share, as typer reads them from a signature."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

ScenarioArgument = Annotated[str, typer.Argument(metavar="SCENARIO", help="A scenario file or a built-in name.")]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a value by dotted path; repeatable.")
]
JsonOption = Annotated[
    str | None, typer.Option("--json", metavar="FILE", help="Write the result as JSON; - is stdout.")
]
CsvOption = Annotated[str | None, typer.Option("--csv", metavar="FILE", help="Write the result as CSV; - is stdout.")]
TraceOption = Annotated[
    str | None, typer.Option("--trace", metavar="FILE", help="Write the timeline for ui.perfetto.dev; - is stdout.")
]
SnapshotOption = Annotated[
    str | None,
    typer.Option("--memory-snapshot", metavar="FILE", help="Write a snapshot for pytorch.org/memory_viz; - is stdout."),
]
MemoryClassOption = Annotated[
    str | None,
    typer.Option("--memory-class", metavar="NAME", help="Its rank class, name or number; default: the fullest."),
]
ExplainOption = Annotated[
    bool, typer.Option("--explain", help="Also simulate single changes that save memory, even if the job fits.")
]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="Print no report.")]
FitOption = Annotated[bool, typer.Option("--require-fit", help="Exit with status 3 if the job does not fit.")]


class Listed(StrEnum):
    """Kinds of built-in things; singular names are accepted too."""

    MODELS = "models"
    CLUSTERS = "clusters"
    SCHEDULES = "schedules"
    SCENARIOS = "scenarios"


class Schema(StrEnum):
    """Kinds of files with a JSON Schema."""

    SCENARIO = "scenario"
    CLUSTER = "cluster"
    MODEL = "model"


KindArgument = Annotated[str, typer.Argument(metavar="KIND", help="models, clusters, schedules or scenarios.")]
