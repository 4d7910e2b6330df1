"""The table of actions that `schedule:` of a scenario names by the path of a CSV file."""

from __future__ import annotations

from pathlib import Path

from simulator.config.document import is_file, read_text
from simulator.config.form import place_of, placed
from simulator.config.scenario_form import TABLE_ENDING
from simulator.config.tree import Node
from simulator.config.wording import shortened
from simulator.errors import Problem, ScenarioError, Violation
from simulator.parallel.schedule_choice import LimitedSchedule, ScheduleChoice
from simulator.schedule import read_schedule_csv

MAX_TABLE_BYTES = 256 << 20
"""Largest table that is read: 20 million actions."""


def read_schedule(
    written: str | LimitedSchedule | None, root: Node, folder: Path
) -> tuple[ScheduleChoice, list[Problem]]:
    """Returns what a scenario says of its schedule, with the order of actions in place of the path of a table.

    Args:
        written: value of `schedule`, of the right form.
        root: tree of the scenario, for places.
        folder: that of the scenario file, which paths are relative to; else they are to the working directory.
    """
    if not isinstance(written, str) or not written.endswith(TABLE_ENDING):
        return written or "", []
    for file in (folder / written, Path(written)):
        if is_file(file):
            break
    else:
        violation = Violation(
            path="schedule",
            problem=f"there is no file {shortened(written, 80)}, neither beside the scenario nor in the working "
            "directory",
            why="a schedule that ends in .csv is a table of actions, as torch.distributed.pipelining writes them",
            mend="check the path, or set schedule to a built-in name",
        )
        return "", [placed(violation, place_of(root, ("schedule",)))]
    try:
        return read_schedule_csv(read_text(file, str(file), max_bytes=MAX_TABLE_BYTES), file=str(file)), []
    except ScenarioError as error:
        return "", [each for each in error.problems if isinstance(each, Problem)]
