"""The command line: `shardsim run`, `compare`, `list`, `show`, `schema`, `import`.

Only typer is loaded at import; what a command needs is loaded inside it, so that `--help` answers at once.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

import simulator
from simulator.errors import ScenarioError, Violation
from simulator.exits import DOES_NOT_FIT, exits, stop, tell, working
from simulator.options import (
    ActionsOption,
    CsvOption,
    ExplainOption,
    FitOption,
    JsonOption,
    KindArgument,
    Listed,
    MemoryClassOption,
    MicrobatchesOption,
    PictureOption,
    PpOption,
    QuietOption,
    ScenarioArgument,
    Schema,
    SetOption,
    SnapshotOption,
    TierUseOption,
    TimelineClassOption,
    TimelineOption,
    TimesOption,
    TraceOption,
    VppOption,
    WindowOption,
    overrides_of,
)

if TYPE_CHECKING:
    from rich.console import Console

    from simulator.outcome import Outcome

app = typer.Typer(
    name="shardsim",
    help="Simulates one training step of a very large transformer on a modelled cluster: memory, communication, time.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def main() -> None:
    """Runs the command line."""
    if sys.stdout is None:  # closed by the caller (`>&-`)
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115, PTH123  (open until exit)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, ValueError):
            stream.reconfigure(errors="replace")  # type: ignore[union-attr]  # a terminal without the letter shows ?
    with exits():
        app(prog_name="shardsim")


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"shardsim {simulator.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


@app.command()
def run(
    scenario: ScenarioArgument,
    changes: SetOption = None,
    json: JsonOption = None,
    csv: CsvOption = None,
    trace: TraceOption = None,
    timeline: TimelineOption = None,
    timeline_class: TimelineClassOption = None,
    tier_use: TierUseOption = None,
    picture: PictureOption = None,
    window: WindowOption = None,
    memory_snapshot: SnapshotOption = None,
    memory_class: MemoryClassOption = None,
    explain: ExplainOption = False,
    quiet: QuietOption = False,
    require_fit: FitOption = False,
) -> None:
    """Simulate one scenario and print its report."""
    with exits():
        outputs = {"--json": json, "--csv": csv, "--trace": trace, "--timeline": timeline, "--picture": picture}
        outputs |= {"--memory-snapshot": memory_snapshot, "--tier-use": tier_use}
        files = _checked_files(outputs, [scenario])
        _require_use("--memory-class", memory_class, {"--memory-snapshot": memory_snapshot})
        _require_use("--timeline-class", timeline_class, {"--timeline": timeline, "--trace": trace})
        _require_use("--window", window, {"--picture": picture})
        _check_endings({"--timeline": timeline, "--tier-use": tier_use}, picture)
        from simulator.config.scenario import input_files, read_scenario

        resolved = read_scenario(scenario, overrides_of(changes))
        _checked_files(outputs, input_files(resolved))
        from simulator.outcome import Wanted, simulate_in_full
        from simulator.report.tables import report_csv
        from simulator.report.terminal import print_report

        wanted = Wanted(
            explain=explain,
            trace=trace is not None,
            timeline=timeline is not None,
            timeline_classes=tuple(timeline_class or ()),
            tier_use=tier_use is not None,
            pipeline=picture is not None,
            snapshot=memory_snapshot is not None,
            memory_class=memory_class,
        )
        with working(f"simulating {resolved.name}") as progress:
            outcome = simulate_in_full(resolved, wanted, progress)
        report = outcome.report
        json_text = "" if json is None else _json_text(report.to_dict())
        csv_text = "" if csv is None else report_csv(report)
        _write_text("--json", json, json_text)
        _write_text("--csv", csv, csv_text)
        _write_trace(trace, outcome.trace, timeline_class)
        if timeline is not None and outcome.timeline is not None and not timeline_class:
            _tell_left_out("timeline", report.engine.rank_classes - outcome.timeline["class"].n_unique())
        _write_others(outcome, outputs, window)
        if not quiet and "-" not in files:
            print_report(report, _console())
        if require_fit and not report.memory.fits:
            if quiet or "-" in files:
                tell(f"{resolved.name} does not fit: {report.memory.shortfall_bytes} bytes short")
            stop(DOES_NOT_FIT)


@app.command()
def compare(
    scenarios: Annotated[
        list[str], typer.Argument(metavar="SCENARIO…", help="Scenario files or built-in names; variants are included.")
    ],
    changes: SetOption = None,
    json: JsonOption = None,
    csv: CsvOption = None,
    trace: Annotated[
        str | None, typer.Option("--trace", metavar="FILE", help="Write the timeline of the best one; - is stdout.")
    ] = None,
    quiet: QuietOption = False,
) -> None:
    """Simulate several scenarios, or the variants of one, and print them side by side, best first."""
    with exits():
        outputs = {"--json": json, "--csv": csv, "--trace": trace}
        files = _checked_files(outputs, scenarios)
        from simulator.compare import ranked, read_all
        from simulator.config.scenario import input_files

        resolved = read_all(scenarios, overrides_of(changes))
        inputs = [name for scenario in resolved for name in input_files(scenario)]
        _checked_files(outputs, inputs)
        from simulator.outcome import Wanted, simulate_in_full
        from simulator.report.comparison import comparison_table, print_comparison
        from simulator.report.tables import comparison_csv

        with working(f"simulating {len(resolved)} scenarios") as progress:
            results = ranked(resolved, progress)
        reports = [report for _, report in results]
        timeline = None
        if trace is not None:
            timeline = simulate_in_full(results[0][0], Wanted(levers=False, trace=True)).trace
        everything = {"results": [report.to_dict() for report in reports], "table": comparison_table(reports)}
        json_text = "" if json is None else _json_text(everything)
        csv_text = "" if csv is None else comparison_csv(reports)
        _write_text("--json", json, json_text)
        _write_text("--csv", csv, csv_text)
        _write_trace(trace, timeline)
        if not quiet and "-" not in files:
            print_comparison(reports, _console())


@app.command(name="list")
def list_builtin(
    kind: Annotated[
        str | None, typer.Argument(metavar="[KIND]", help="models, clusters, schedules or scenarios.")
    ] = None,
) -> None:
    """List what is built in."""
    with exits():
        from simulator.config.listing import listing

        for each in [_kind(kind)] if kind is not None else list(Listed):
            if kind is None:
                typer.echo(f"{each}:")
            rows = listing(each.value)
            width = max((len(name) for name, _ in rows), default=0)
            for name, about in rows:
                typer.echo(f"{'' if kind else '  '}{name:<{width}}  {about}".rstrip())


@app.command()
def show(
    kind: KindArgument,
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="As `shardsim list` names it; a cluster also by its file.")
    ],
    pp: PpOption = None,
    vpp: VppOption = None,
    microbatches: MicrobatchesOption = None,
    times: TimesOption = None,
    picture: PictureOption = None,
    csv: ActionsOption = None,
    file: Annotated[bool, typer.Option("--file", help="Of a cluster: only the file, not its network.")] = False,
) -> None:
    """Print a built-in model, cluster, schedule or scenario in full, with its sources; a cluster with its network.

    The other options are those of a schedule: it is drawn, and its table of actions can be written.
    """
    with exits():
        from simulator.config.listing import full_text

        network, text = (
            _cluster_texts(name) if _kind(kind) is Listed.CLUSTERS else ("", full_text(_kind(kind).value, name))
        )
        options = {"--pp": pp, "--vpp": vpp, "--microbatches": microbatches, "--times": times}
        options |= {"--picture": picture, "--csv": csv}
        if _kind(kind) is Listed.SCHEDULES:
            _show_schedule(name, pp=pp, vpp=vpp, microbatches=microbatches, times=times, picture=picture, csv=csv)
            return
        for option, value in options.items():
            if value is not None:
                why = "only a schedule is drawn"
                raise ScenarioError([_violation(option, f"says nothing of {_kind(kind)}", why, "leave it out")])
        typer.echo(text if file or not network else f"{network}\n{text}", nl=False)


def _cluster_texts(name: str) -> tuple[str, str]:
    """Returns the page about the network of a cluster, and the cluster's file."""
    from simulator.cluster import build_cluster
    from simulator.config.cluster_file import cluster_text, read_cluster
    from simulator.report.network import network_page

    spec = read_cluster(name)
    return network_page(build_cluster(spec), spec.description), cluster_text(name)


def _show_schedule(
    name: str,
    *,
    pp: int | None,
    vpp: int | None,
    microbatches: int | None,
    times: str | None,
    picture: str | None,
    csv: str | None,
) -> None:
    files = _checked_files({"--picture": picture, "--csv": csv}, [])
    _check_endings({}, picture)
    from simulator.outputs import write_picture_file
    from simulator.report.schedule_card import parse_times, print_card, schedule_card
    from simulator.schedule.table import write_schedule_csv

    card = schedule_card(name, pp=pp, vpp=vpp, microbatches=microbatches, times=parse_times(times))
    if picture is not None:
        write_picture_file(picture, card.actions)
    _write_text("--csv", csv, write_schedule_csv(card.schedule))
    if "-" not in files:
        print_card(card, _console())


@app.command()
def schema(kind: Annotated[Schema, typer.Argument(help="The kind of file.")] = Schema.SCENARIO) -> None:
    """Print the JSON Schema of a kind of file, for editors."""
    with exits():
        from simulator.config.schema import SchemaKind, json_schema

        typer.echo(_json_text(json_schema(SchemaKind(kind.value))), nl=False)


@app.command(name="import")
def import_config(
    file: Annotated[str, typer.Argument(metavar="FILE", help="A Hugging Face config.json.")],
    output: Annotated[
        str, typer.Option("--output", "-o", metavar="FILE", help="Write the model file there; - is stdout.")
    ] = "-",
) -> None:
    """Turn a Hugging Face config.json into a model file. A scenario can also name the config.json itself."""
    with exits():
        _checked_files({"--output": output}, [file])
        from pathlib import Path

        from simulator.config.huggingface.reading import imported_model
        from simulator.config.model_file import model_yaml

        _write_text("--output", output, model_yaml(imported_model(Path(file))))


def _kind(text: str) -> Listed:
    for kind in Listed:
        if text.lower() in (kind.value, kind.value.removesuffix("s")):
            return kind
    why = "these are the kinds of things that are built in"
    raise ScenarioError([_violation("", f"{text[:40]!r} is not a kind", why, f"write one of {', '.join(Listed)}")])


def _checked_files(files: dict[str, str | None], inputs: Sequence[str]) -> list[str]:
    from simulator.outputs import check_outputs

    check_outputs(files, inputs=tuple(inputs))
    return [name for name in files.values() if name is not None]


def _write_text(option: str, name: str | None, text: str) -> None:
    if name is not None:
        from simulator.outputs import write_output

        write_output(option, name, lambda file: file.write(text))


def _write_trace(name: str | None, trace: Any, classes: Sequence[str] | None = None) -> None:
    if name is not None:
        from simulator.outputs import write_trace_file

        left_out = write_trace_file(name, trace)
        _tell_left_out("trace", 0 if classes else left_out)


def _write_others(outcome: Outcome, files: dict[str, str | None], window: str | None) -> None:
    from simulator.outputs import write_picture_file, write_snapshot_file, write_table_file

    if files["--timeline"] is not None:
        write_table_file("--timeline", files["--timeline"], outcome.timeline)
    if files["--tier-use"] is not None:
        write_table_file("--tier-use", files["--tier-use"], outcome.tier_use)
        _tell_left_out("table of the tiers' use", outcome.tier_use_left_out, chosen="")
    picture, snapshot = files["--picture"], files["--memory-snapshot"]
    if picture is not None and outcome.pipeline is not None:
        missing = write_picture_file(picture, outcome.pipeline, window)
        if missing:
            tell(f"the picture leaves out {missing} pipeline ranks, as all together ran too many tasks to be kept")
    if snapshot is not None and outcome.snapshot is not None:
        write_snapshot_file(snapshot, outcome.snapshot)


def _tell_left_out(what: str, count: int, chosen: str = "; --timeline-class chooses") -> None:
    if count:
        classes = f"{count} rank class{'es' if count > 1 else ''}"
        tell(f"the {what} leaves out {classes} to stay within a size that viewers open{chosen}")


def _require_use(option: str, value: object, users: dict[str, str | None]) -> None:
    """Refuses an option that says something about outputs none of which is written."""
    if value and not any(users.values()):
        names = " or ".join(users)
        why = f"it says what is shown by {names}"
        raise ScenarioError(
            [_violation(option, f"is given without {names}", why, f"add {names} FILE, or leave it out")]
        )


def _check_endings(tables: dict[str, str | None], picture: str | None) -> None:
    """Refuses files of an unknown kind before the work."""
    for option, name in tables.items():
        if name is not None:
            from simulator.report.spans import table_format

            table_format(name, option)
    if picture not in (None, "-"):
        from simulator.report.pipeline_figure import picture_format

        picture_format(str(picture))


def _json_text(value: object) -> str:
    import json

    return json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _console() -> Console:
    from rich.console import Console

    return Console(file=sys.stdout, highlight=False)


def _violation(path: str, problem: str, why: str, mend: str) -> Violation:
    return Violation(path=path, problem=problem, why=why, mend=mend)
