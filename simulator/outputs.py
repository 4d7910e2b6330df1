"""Files that a command writes: checked before the work, written whole or not at all."""

from __future__ import annotations

import contextlib
import io
import os
import stat
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TextIO

from simulator.errors import ScenarioError, Violation

if TYPE_CHECKING:
    import polars as pl

    from simulator.report.pipeline_actions import PipelineActions
    from simulator.report.snapshot import Recording
    from simulator.report.trace import Trace

STANDARD_OUTPUT = "-"


def check_outputs(files: Mapping[str, str | None], *, inputs: tuple[str, ...] = ()) -> None:
    """Finds out before the work whether all files can be written.

    Args:
        files: by option (`--json`), the name that the user gave; None: option not given; `-`: standard output.
        inputs: files that are read, and must not be written over.

    Raises:
        ScenarioError: a file cannot be written, or two options name the same one.
    """
    problems: list[Violation] = []
    seen: dict[str, str] = {}
    for option, name in files.items():
        if name is None:
            continue
        same = name if name == STANDARD_OUTPUT else os.path.realpath(name)
        if same in seen:
            problems.append(_refused(option, name, f"is written by {seen[same]} too", "name two different files"))
            continue
        seen[same] = option
        if same in {os.path.realpath(each) for each in inputs}:
            problems.append(_refused(option, name, "is a file that the scenario is read from", "name another file"))
        elif name != STANDARD_OUTPUT and (obstacle := _obstacle(Path(same))):
            problems.append(_refused(option, name, *obstacle))
    if problems:
        raise ScenarioError(problems)


def write_output(option: str, name: str, write: Callable[[TextIO], object]) -> None:
    """Writes a text by way of a temporary file beside it, or to standard output for `-`.

    Args:
        option: for messages, for example `--json`.
        name: the file as the user gave it.
        write: writes the content to an open file.

    Raises:
        ScenarioError: the file cannot be written.
    """
    if name == STANDARD_OUTPUT:
        write(sys.stdout)
    else:
        _write_file(option, name, write, {"mode": "w", "encoding": "utf-8", "newline": "\n"})


def write_binary_output(option: str, name: str, content: bytes) -> None:
    """Writes bytes by way of a temporary file beside it, or to standard output for `-`.

    Raises:
        ScenarioError: the file cannot be written.
    """
    if name == STANDARD_OUTPUT:
        sys.stdout.flush()
        sys.stdout.buffer.write(content)
        return

    def write(file: BinaryIO) -> None:
        file.write(content)

    _write_file(option, name, write, {"mode": "wb"})


def write_trace_file(name: str, trace: Trace) -> int:
    """Writes a trace and returns how many rank classes it leaves out."""
    from simulator.report.trace import write_trace

    left_out: list[str] = []
    write_output("--trace", name, lambda file: left_out.extend(write_trace(trace, file).left_out))
    return len(left_out)


def write_table_file(option: str, name: str, table: pl.DataFrame | None) -> None:
    """Writes a table of spans, or of the use of links, if there is one."""
    from simulator.report.spans import TableFormat, table_format

    if table is None:
        return
    if table_format(name, option) is TableFormat.CSV:
        write_output(option, name, lambda file: file.write(table.write_csv()))
    else:
        content = io.BytesIO()
        table.write_parquet(content)
        write_binary_output(option, name, content.getvalue())


def write_picture_file(name: str, actions: PipelineActions, window: str | None = None) -> int:
    """Writes a picture of the pipeline, or prints it, and returns how many pipeline ranks it leaves out."""
    from simulator.report.pipeline_style import parse_window

    part = None if window is None else parse_window(window, actions)
    if name == STANDARD_OUTPUT:
        from rich.console import Console

        from simulator.report.pipeline_text import print_picture

        print_picture(actions, Console(file=sys.stdout, highlight=False), part)
    else:
        from simulator.report.pipeline_figure import draw_picture, picture_format

        write_binary_output("--picture", name, draw_picture(actions, picture_format(name), part))
    return actions.pp - len(actions.ranks)


def write_snapshot_file(name: str, recording: Recording) -> None:
    """Writes a snapshot of the allocations of a rank class."""
    from simulator.report.recording import snapshot_with_peak

    write_binary_output("--memory-snapshot", name, snapshot_with_peak(recording))


def _write_file(option: str, name: str, write: Callable[[Any], object], opening: dict[str, str]) -> None:
    path = Path(os.path.realpath(name))
    try:
        if path.exists() and not path.is_file():  # a device or a pipe cannot be replaced
            with open(path, **opening) as file:  # type: ignore[call-overload]  # noqa: PTH123
                write(file)
            return
        _write_beside(path, write, opening)
    except OSError as error:
        mend = "make room or choose another place"
        raise ScenarioError([_refused(option, name, f"cannot be written: {error.strerror}", mend)]) from error


def _write_beside(path: Path, write: Callable[[Any], object], opening: dict[str, str]) -> None:
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:40]}.", suffix=".part")
    try:
        with open(handle, **opening) as file:  # type: ignore[call-overload]  # noqa: PTH123  (a handle, not a path)
            write(file)
        Path(temporary).chmod(_mode(path))
        Path(temporary).replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            Path(temporary).unlink()
        raise


def _mode(path: Path) -> int:
    """Returns the permissions of the file that is replaced, or those of a new file."""
    if path.exists():
        return stat.S_IMODE(path.stat().st_mode)
    mask = os.umask(0)
    os.umask(mask)
    return 0o666 & ~mask


def _obstacle(path: Path) -> tuple[str, str] | None:
    """Returns what is in the way of writing a file and the mend, None if nothing is."""
    try:
        if path.is_dir():
            return "is a directory", "name a file in it"
        if not path.parent.is_dir():
            return f"lies in {path.parent}, which is not a directory", "make the directory first"
        if path.exists() and not os.access(path, os.W_OK):
            return "may not be written", "check its permissions"
        if not path.exists() or path.is_file():
            with tempfile.TemporaryFile(dir=path.parent):
                pass
    except (OSError, ValueError) as error:
        return f"cannot be written: {getattr(error, 'strerror', None) or error}", "check the name and the permissions"
    return None


def _refused(option: str, name: str, problem: str, mend: str) -> Violation:
    path = f"{option} {name if len(name) <= 200 else name[:200] + '…'}"
    why = "results are written whole or not at all, so this is checked before the simulation"
    return Violation(path=path, problem=problem, why=why, mend=mend)
