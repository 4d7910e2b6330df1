"""What a command says on standard error while it works, and how it ends: its exit status."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from typing import NoReturn

from simulator.errors import ScenarioError

BAD_INPUT, DOES_NOT_FIT, FAULT, INTERRUPTED = 2, 3, 1, 130
"""Exit statuses besides 0."""
MAX_PRINTED_PROBLEMS = 200
_NEW_ISSUE = "please report it with the scenario and this message"


@contextlib.contextmanager
def exits() -> Iterator[None]:
    """Turns what ends a command early into its exit status and message."""
    try:
        yield
        sys.stdout.flush()
    except ScenarioError as error:
        shown = error.problems[:MAX_PRINTED_PROBLEMS]
        more = len(error.problems) - len(shown)
        print(ScenarioError(shown), file=sys.stderr)
        if more:
            print(f"… and {more} more problems", file=sys.stderr)
        stop(BAD_INPUT)
    except KeyboardInterrupt:
        tell("interrupted")
        stop(INTERRUPTED)
    except BrokenPipeError:  # the reader has gone (`| head`)
        _abandon_output()
        stop(0)
    except OSError as error:
        _abandon_output()
        tell(f"cannot read or write: {error}")
        stop(BAD_INPUT)
    except Exception as error:
        if type(error).__module__.partition(".")[0] in ("typer", "click"):  # usage errors and exits belong to typer
            raise
        if os.environ.get("SHARDSIM_TRACEBACK") == "1":
            raise
        tell(f"fault of the program: {type(error).__name__}: {str(error)[:500]}")
        print(f"  {_NEW_ISSUE}; SHARDSIM_TRACEBACK=1 shows where it happened", file=sys.stderr)
        stop(FAULT)


@contextlib.contextmanager
def working(text: str) -> Iterator[Callable[[float], None] | None]:
    """Shows on a terminal's standard error that something goes on, and how far it is; elsewhere nothing.

    Yields what is to be told the share of the work that is done; None where nobody looks.
    """
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, SpinnerColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn

    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TaskProgressColumn())
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(text, total=None)
        yield lambda share: bar.update(task, total=1.0, completed=share)


def _abandon_output() -> None:
    """Points standard output elsewhere, as Python flushes it once more at exit."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def tell(message: str) -> None:
    """Prints a message of the program on standard error."""
    print(f"shardsim: {message}", file=sys.stderr)


def stop(status: int) -> NoReturn:
    """Ends the program."""
    raise SystemExit(status)
