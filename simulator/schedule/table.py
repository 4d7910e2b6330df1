"""Schedules as tables of actions, in the CSV format of torch.distributed.pipelining.

One row a pipeline rank, one cell an action: stage, kind, microbatch. `2F0` is the forward of microbatch 0 on stage 2;
`B` is the whole backward, `I` and `W` its two halves; `(0F4;3B1)OVERLAP_F_B` runs a forward and a backward overlapped;
an empty cell is a bubble. Which rank holds a stage is read off the table.

Where the two differ:

- Bubbles say nothing, since an action runs once its inputs are there, and are not written.
- Tables that torch has lowered hold communication too (`0SEND_F1`, `0UNSHARD`, `0REDUCE_GRAD` ...). Those cells are
  skipped: what is sent and gathered follows from the order of the actions.
- torch knows one chain of stages. A bidirectional schedule is written with a first line `# directions: 2`, which torch
  refuses; its stages p to 2p - 1 are the second chain (`PipelineSchedule`). Other lines that begin with # are comments.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from simulator.errors import Problem, ScenarioError, Violation
from simulator.schedule.actions import BACKWARD_CODE, FORWARD_CODE, ActionArray, ActionKind, PipelineSchedule

_CODES = {kind.value: kind.code for kind in ActionKind}
_KINDS = tuple(ActionKind)
# Nine digits fit an int32, and no schedule has a billion stages.
_ACTION = re.compile(r"(\d{1,9})([FBIW])(\d{1,9})")
_PAIR = re.compile(r"\(\s*(\d{1,9})([FB])(\d{1,9})\s*;\s*(\d{1,9})([FB])(\d{1,9})\s*\)OVERLAP_F_B")
_COMMUNICATION = re.compile(r"\d+(?:SEND_F|RECV_F|SEND_B|RECV_B|UNSHARD|RESHARD|REDUCE_GRAD)\d*")
_DIRECTIONS = re.compile(r"#\s*directions:\s*([12])\s*")
_COMMENT = "#"
_SHOWN = 40
"""Characters of a cell that a message shows."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TableRow:
    """One row of a table: the order of one rank."""

    line: int
    """Line of the file, from 1."""
    text: str
    """The line itself."""
    actions: ActionArray
    """Its actions in order, [actions, 4]."""
    cells: tuple[int, ...]
    """Cell that each action stands in, from 0; the two of a pair share one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """What a table says, before it is known to be a schedule."""

    file: str
    """Name of the file, for messages."""
    directions: int
    """Chains of stages."""
    rows: tuple[TableRow, ...]
    """One for each pipeline rank."""

    def problem(self, violation: Violation, *, rank: int, place: int | None = None) -> Problem:
        """Returns a violation with its place: an action of a rank, or the row of the rank."""
        row = self.rows[rank]
        if place is None:
            return Problem(violation=violation, file=self.file, line=row.line, column=1)
        return Problem(violation=violation, file=self.file, line=row.line, column=_column(row.text, row.cells[place]))

    def where(self, rank: int, place: int | None = None) -> str:
        """Returns the place of an action as people count: ranks from 0, cells from 1."""
        return f"rank {rank}" if place is None else f"rank {rank}, cell {self.rows[rank].cells[place] + 1}"


def write_schedule_csv(schedule: PipelineSchedule) -> str:
    """Returns a schedule as a table: one line a rank, its actions in order, without bubbles.

    `read_schedule_csv` gives the same schedule back, all but its name.
    """
    lines = [f"# directions: {schedule.directions}"] if schedule.directions > 1 else []
    for order in schedule.ranks:
        cells, opened = [], ""
        for kind, stage, microbatch, joined in order.tolist():
            cell = f"{stage}{_KINDS[kind]}{microbatch}"
            if joined:
                opened = f"({cell};"
            else:
                cells.append(f"{opened}{cell})OVERLAP_F_B" if opened else cell)
                opened = ""
        lines.append(",".join(cells))
    return "\n".join(lines) + "\n"


def read_table(text: str, *, file: str) -> Table:
    """Returns the actions of a table, cell by cell.

    Args:
        text: Content of the file.
        file: Its name, for messages.

    Raises:
        ScenarioError: A cell that is no action, with its line and column; or there are no rows.
    """
    directions = 1
    rows: list[TableRow] = []
    for number, line in enumerate(text.removeprefix("\ufeff").rstrip().splitlines(), start=1):
        if line.startswith(_COMMENT):
            if stated := _DIRECTIONS.fullmatch(line):
                directions = int(stated.group(1))
            continue
        actions: list[tuple[int, int, int, int]] = []
        cells: list[int] = []
        for place, cell in enumerate(line.split(",")):
            found = _actions_of(cell.strip(' \t"'))
            if found is None:
                raise ScenarioError([_unreadable(cell, file=file, line=number, text=line, rank=len(rows), place=place)])
            actions += found
            cells += [place] * len(found)
        order = np.array(actions, dtype=np.int32).reshape(-1, 4)
        order.flags.writeable = False
        rows.append(TableRow(line=number, text=line, actions=order, cells=tuple(cells)))
    if not rows:
        violation = Violation(
            path="",
            problem="no rows",
            why="a schedule table has one row for each pipeline rank",
            mend="write one line of cells a rank, such as 0F0,0F1,0B0,0B1",
        )
        raise ScenarioError([Problem(violation=violation, file=file, line=1, column=1)])
    return Table(file=file, directions=directions, rows=tuple(rows))


def _actions_of(cell: str) -> list[tuple[int, int, int, int]] | None:
    """The actions of a cell: none of a bubble or of communication, two of a pair; None if it cannot be read."""
    if not cell:
        return []
    if match := _ACTION.fullmatch(cell):
        stage, kind, microbatch = match.groups()
        return [(_CODES[kind], int(stage), int(microbatch), 0)]
    if match := _PAIR.fullmatch(cell):
        stage, kind, microbatch, other_stage, other_kind, other_microbatch = match.groups()
        if {_CODES[kind], _CODES[other_kind]} == {FORWARD_CODE, BACKWARD_CODE}:
            return [
                (_CODES[kind], int(stage), int(microbatch), 1),
                (_CODES[other_kind], int(other_stage), int(other_microbatch), 0),
            ]
    return [] if _COMMUNICATION.fullmatch(cell) else None


def _unreadable(cell: str, *, file: str, line: int, text: str, rank: int, place: int) -> Problem:
    shown = cell.strip() if len(cell) <= _SHOWN else f"{cell.strip()[:_SHOWN]}..."
    violation = Violation(
        path=f"rank {rank}, cell {place + 1}",
        problem=f"{shown!r} is not an action",
        why="a cell is stage, kind, microbatch with kind F, B, I or W; a pair of one forward and one whole backward; "
        "a communication of torch; or empty",
        mend="write it like 2F0, 2B0, 2I0, 2W0 or (0F4;3B1)OVERLAP_F_B",
    )
    return Problem(violation=violation, file=file, line=line, column=_column(text, place))


def _column(text: str, cell: int) -> int:
    """Column of the first character of a cell, from 1."""
    cells = text.split(",")
    before = sum(len(other) + 1 for other in cells[:cell])
    return before + len(cells[cell]) - len(cells[cell].lstrip()) + 1
