"""Bars, lines and tables that fit the console they are printed on.

Text that comes from the user's files is printed as it is: no markup, no control characters, and nothing that
the console's encoding cannot show.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from rich.cells import cell_len
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

INDENT = 2
_GAP = 2
_EIGHTHS = " ▏▎▍▌▋▊▉█"
_MIN_BAR, _MAX_BAR = 8, 60
_MIN_TEXT = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """A column of a table."""

    header: str
    """Name and, where all cells share it, unit."""
    cells: Sequence[str]
    """One text a row."""
    expendable: int = 0
    """0: always shown; the column with the largest number goes first when the console is too narrow."""
    right: bool = True
    """Whether the cells are aligned right, as numbers are."""
    styles: Sequence[str] = ()
    """Style of each cell, if any."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """A row of a bar list."""

    label: str
    """What is measured."""
    value: float
    """Length of the bar, in the unit of the list's `full` and `longest`."""
    text: str
    """The value in words."""
    style: str = "cyan"
    """Colour of the bar."""


def say(console: Console, text: str, *, style: str = "", indent: int = 0) -> None:
    """Prints a line, wrapped at words and indented as a block."""
    line = Text(showable(console, text), style=style)
    console.print(Padding(line, (0, 0, 0, indent), expand=False) if indent else line, highlight=False)


def heading(console: Console, text: str, note: str = "") -> None:
    """Prints the first line of a section, after an empty one."""
    console.print()
    line = Text(showable(console, text), style="bold")
    if note:
        line.append(f"  {showable(console, note)}", style="not bold dim")
    console.print(line, highlight=False)


def say_phrases(console: Console, phrases: Sequence[str]) -> None:
    """Prints phrases separated by commas, broken into lines between phrases only."""
    line = ""
    for phrase in phrases:
        if line and cell_len(f"{line}, {phrase},") > console.width:
            say(console, f"{line},")
            line = phrase
        else:
            line = f"{line}, {phrase}" if line else phrase
    say(console, line)


def print_table(console: Console, columns: Sequence[Column]) -> None:
    """Prints the columns that fit side by side, and says which are left out; below one another if none would fit."""
    columns = [replace(column, cells=[showable(console, cell) for cell in column.cells]) for column in columns]
    room = console.width - INDENT
    shown, left_out = fitting(columns, width=room)
    if table_width(shown, text_width=_MIN_TEXT) > room:
        _print_records(console, columns)
        return
    table = Table(box=None, pad_edge=False, padding=(0, _GAP, 0, 0), header_style="dim", show_edge=False)
    for column in shown:
        table.add_column(
            Text(showable(console, column.header)),
            justify="right" if column.right else "left",
            no_wrap=column.right,
            overflow="fold",
            min_width=min(_width(column), _MIN_TEXT),
        )
    for row in range(max((len(column.cells) for column in shown), default=0)):
        table.add_row(*(Text(column.cells[row], style=_style(column, row)) for column in shown))
    console.print(Padding(table, (0, 0, 0, INDENT), expand=False), highlight=False)
    if left_out:
        say(console, f"a wider terminal shows also: {', '.join(left_out)}", style="dim", indent=INDENT)


def _print_records(console: Console, columns: Sequence[Column]) -> None:
    for row in range(max((len(column.cells) for column in columns), default=0)):
        for position, column in enumerate(columns):
            header = f"{column.header.strip()}: " if column.header.strip() and position else ""
            text = f"{header}{column.cells[row].strip()}"
            say(console, text, style=_style(column, row), indent=INDENT * (2 if position else 1))


def _style(column: Column, row: int) -> str:
    return column.styles[row] if column.styles else ""


def fitting(columns: Sequence[Column], *, width: int) -> tuple[list[Column], list[str]]:
    """Returns the columns that fit into `width` and the headers of those left out, the most expendable first."""
    shown, left_out = list(columns), []
    while table_width(shown) > width:
        candidate = max(shown, key=lambda column: column.expendable)
        if candidate.expendable == 0:
            break
        shown.remove(candidate)
        left_out.append(candidate.header)
    order = [column.header for column in columns]
    return shown, sorted(left_out, key=order.index)


def table_width(columns: Sequence[Column], *, text_width: int | None = None) -> int:
    """Returns the cells that a table of these columns takes, text wrapped at `text_width` if given."""
    widths = [_width(column) for column in columns]
    if text_width is not None:
        narrow = [min(width, text_width) for width in widths]
        widths = [whole if column.right else cut for column, whole, cut in zip(columns, widths, narrow, strict=True)]
    return sum(widths) + _GAP * max(0, len(widths) - 1)


def _width(column: Column) -> int:
    return max(map(cell_len, (column.header, *column.cells)))


def print_bars(console: Console, bars: Sequence[Bar], *, full: float, longest: float | None = None) -> None:
    """Prints a bar list: label, value in words, share of `full`, bar.

    Args:
        console: where to.
        bars: the rows.
        full: value of 100 %.
        longest: value of the longest bar, if that is not `full`.
    """
    longest = full if longest is None else longest
    bars = [replace(bar, label=showable(console, bar.label)) for bar in bars]
    shares = [share_of(bar.value, full) for bar in bars]
    label_width = max((cell_len(bar.label) for bar in bars), default=0)
    text_width = max((cell_len(bar.text) for bar in bars), default=0)
    share_width = max(map(len, shares), default=0)
    room = console.width - INDENT - label_width - text_width - share_width - 3 * _GAP
    bar_width = min(room, _MAX_BAR) if room >= _MIN_BAR else 0
    for bar, share in zip(bars, shares, strict=True):
        line = Text(" " * INDENT)
        line.append(bar.label + " " * (label_width - cell_len(bar.label) + _GAP))
        line.append(f"{bar.text:>{text_width}}{'':{_GAP}}")
        if room >= -_GAP:
            line.append(f"{share:>{share_width}}", style="dim")
        drawn = draw_bar(bar.value / longest if longest > 0 else 0.0, bar_width, ascii_only=not _is_utf(console))
        if drawn:
            line.append(" " * _GAP)
            line.append(drawn, style=bar.style)
        line.rstrip()
        console.print(line, highlight=False)


def share_of(part: float, whole: float) -> str:
    """Returns a share in percent; what is not zero is never shown as zero."""
    if whole <= 0:
        return "-"
    share = 100 * part / whole
    return "<0.1 %" if 0 < share < 0.05 else f"{share:.1f} %"


def draw_bar(fraction: float, width: int, *, ascii_only: bool = False) -> str:
    """Returns a bar of at most `width` cells, in eighths of a cell; what is above zero is seen."""
    if fraction <= 0 or width <= 0:
        return ""
    if ascii_only:
        return "#" * max(1, round(min(fraction, 1.0) * width))
    eighths = max(1, round(min(fraction, 1.0) * width * 8))
    rest = _EIGHTHS[eighths % 8] if eighths % 8 else ""
    return _EIGHTHS[8] * (eighths // 8) + rest


def showable(console: Console, text: str) -> str:
    """Returns `text` without control characters and without what the console's encoding lacks."""
    printable = "".join(char if char.isprintable() else " " for char in text)
    return printable if _is_utf(console) else printable.encode(console.encoding, "replace").decode(console.encoding)


def _is_utf(console: Console) -> bool:
    return not console.options.ascii_only
