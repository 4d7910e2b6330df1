"""The picture of a pipeline in the terminal: one line a rank, time to the right, a legend below.

In colour a box is a coloured stretch that begins with the number of its microbatch. Without colour it begins with the
letter of its kind (`F3===`), so that nothing is lost where colours are off; only ASCII is used in any case. A step
that is wider than the terminal is shown from its beginning.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby

import numpy as np
from rich.color import Color
from rich.console import Console
from rich.style import Style
from rich.text import Text

from simulator.report import pipeline_style as style
from simulator.report.drawing import say
from simulator.report.pipeline_actions import KINDS, PipelineActions, RankActions
from simulator.report.pipeline_style import Colour, Window
from simulator.report.wording import percent

MAX_ROWS = 64
"""More ranks than this are shown as the first and the last of them."""
_MAX_SPARE_CELLS = 3
"""Cells that the shortest box may have beyond its text: a wider terminal leaves the rest free."""
_MIN_CELLS = 8
_IDLE_CELL, _FILL_CELL, _UPDATE_CELL = ".", "=", "U"
_SHORT_SHARE = 0.1
"""Boxes shorter than this share of all of them do not decide about the scale."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Screen:
    """Measures of a picture."""

    window: Window
    cells_per_time: float
    width: int
    coloured: bool
    label_width: int


def print_picture(actions: PipelineActions, console: Console, window: Window | None = None) -> None:
    """Prints the picture, as wide as the console.

    Args:
        actions: what to draw.
        console: where to.
        window: part of the step to show; None: all of it, or as much of its beginning as there is room for.
    """
    asked = window or style.whole_step(actions)
    screen = _screen(actions, console, asked)
    say(console, style.title_of(actions), style="bold")
    first, last = style.shown_ranks(len(actions.ranks), room=MAX_ROWS)
    for row in first:
        _print_row(actions, actions.ranks[row], screen, console)
    if last:
        say(console, f"... {last[0] - first[-1] - 1} ranks not shown ...", style="dim")
    for row in last:
        _print_row(actions, actions.ranks[row], screen, console)
    _print_axis(actions, screen, console)
    _print_legend(actions, screen, console)
    if screen.window.end < asked.end:
        share = (screen.window.end - screen.window.begin) / (asked.end - asked.begin)
        say(
            console,
            f"the first {percent(share)} of it fits into this terminal; --window A:B shows another part, "
            "--picture FILE.svg all of it",
            style="dim",
        )


def _screen(actions: PipelineActions, console: Console, asked: Window) -> _Screen:
    """Chooses the scale: every box has room for its text and a cell to tell it from the next one, if there is room."""
    coloured = console.color_system is not None and not console.no_color
    label_width = len(f"rank {max((each.rank for each in actions.ranks), default=0)}") + 1
    room = max(_MIN_CELLS, console.width - label_width - 1)
    span = asked.end - asked.begin
    needed = len(str(max(actions.microbatches - 1, 0))) + 1
    shortest = _short_duration(actions, asked)
    if shortest:  # whole cells, so that equal boxes are equally wide
        scale = min(max(needed, int(room / span * shortest)), needed + _MAX_SPARE_CELLS) / shortest
    else:
        scale = room / span
    width = min(room, max(1, round(span * scale)))
    window = Window(begin=asked.begin, end=min(asked.end, asked.begin + width / scale))
    return _Screen(window=window, cells_per_time=scale, width=width, coloured=coloured, label_width=label_width)


def _short_duration(actions: PipelineActions, window: Window) -> float:
    """The duration that nearly all boxes have at least; of a joined pair each half counts."""
    parts = []
    for each in actions.ranks:
        halves = each.joined | np.append(False, each.joined[:-1])
        durations = np.where(halves, 0.5, 1.0) * (each.end - each.begin)
        parts.append(durations[(each.end > window.begin) & (each.begin < window.end) & (durations > 0)])
    durations = np.concatenate(parts) if parts else np.zeros(0)
    return float(np.quantile(durations, _SHORT_SHARE, method="lower")) if len(durations) else 0.0


@dataclass(slots=True)
class _Row:
    """A line of cells in the making."""

    letters: list[str]
    colours: list[Colour | None]

    def fill(self, begin: int, end: int, text: str, colour: Colour) -> None:
        """Puts a box over cells `begin` to `end`, with as much of its text as fits."""
        for cell in range(max(begin, 0), min(end, len(self.letters))):
            at = cell - begin
            self.letters[cell] = text[at] if at < len(text) else text[-1]
            self.colours[cell] = colour


def _print_row(actions: PipelineActions, rank: RankActions, screen: _Screen, console: Console) -> None:
    row = _Row([" " if screen.coloured else _IDLE_CELL] * screen.width, [None] * screen.width)
    for at in range(len(rank.kind)):
        begin, end = float(rank.begin[at]), float(rank.end[at])
        if end <= screen.window.begin or begin >= screen.window.end or end <= begin:
            continue
        middle = (begin + end) / 2
        if rank.joined[at]:
            end = middle
        elif at and rank.joined[at - 1]:
            begin = middle
        colour = style.colour_of(int(rank.kind[at]), int(rank.chunk[at]), actions.num_chunks)
        row.fill(*_cells(screen, begin, end), _box_text(rank, at, screen), colour)
    if rank.update is not None:
        letter = " " if screen.coloured else _UPDATE_CELL
        row.fill(*_cells(screen, *rank.update), letter, style.UPDATE)
    line = Text(f"{f'rank {rank.rank}':<{screen.label_width}}")
    for colour, run in groupby(zip(row.colours, row.letters, strict=True), key=lambda cell: cell[0]):
        line.append("".join(letter for _, letter in run), style=_cell_style(colour) if screen.coloured else "")
    console.print(line, highlight=False, no_wrap=True, crop=True, soft_wrap=False)


def _cells(screen: _Screen, begin: float, end: float) -> tuple[int, int]:
    """First cell of a stretch of time and the one after its last; what takes time has a cell at least."""
    first, last = (round((time - screen.window.begin) * screen.cells_per_time) for time in (begin, end))
    return first, max(last, first + 1)


def _box_text(rank: RankActions, at: int, screen: _Screen) -> str:
    """The box's letters; the last one fills what is left of it."""
    number = str(int(rank.microbatch[at]))
    room = _cells(screen, float(rank.begin[at]), float(rank.end[at]))
    is_half = bool(rank.joined[at]) or (at > 0 and bool(rank.joined[at - 1]))
    width = (room[1] - room[0]) / (2 if is_half else 1)
    if screen.coloured:
        return f"{number} " if len(number) <= width else " "
    letter = str(KINDS[int(rank.kind[at])])
    letter = letter if rank.chunk[at] == 0 else letter.lower()
    return letter + (number if len(number) < width else "") + _FILL_CELL


def _cell_style(colour: Colour | None) -> Style:
    if colour is None:
        return Style(bgcolor=Color.from_rgb(*style.IDLE))
    return Style(bgcolor=Color.from_rgb(*colour), color=Color.from_rgb(*style.ink_on(colour)))


def _print_axis(actions: PipelineActions, screen: _Screen, console: Console) -> None:
    begin, end = (style.time_text(actions, time) for time in (screen.window.begin, screen.window.end))
    gap = max(1, screen.width - len(begin) - len(end))
    say(console, f"{'time':<{screen.label_width}}{begin}{' ' * gap}{end}", style="dim")


def _print_legend(actions: PipelineActions, screen: _Screen, console: Console) -> None:
    line = Text()
    for kind in style.kinds_of(actions):
        name, letter = style.NAMES[KINDS[kind]], str(KINDS[kind])
        if screen.coloured:
            for chunk in sorted({0, actions.num_chunks - 1}):
                line.append("   ", style=_cell_style(style.colour_of(kind, chunk, actions.num_chunks)))
            line.append(f" {name}   ")
        else:
            line.append(f"{letter} {name}   ")
    if any(rank.update for rank in actions.ranks):
        mark, colours = ("   ", _cell_style(style.UPDATE)) if screen.coloured else (_UPDATE_CELL, "")
        line.append(mark, style=colours)
        line.append(f" {style.UPDATE_NAME}   ")
    line.append("   " if screen.coloured else _IDLE_CELL, style=_cell_style(None) if screen.coloured else "")
    line.append(f" {style.IDLE_NAME}")
    console.print(line, highlight=False)
    if actions.num_chunks > 1:
        told = "from dark to light" if screen.coloured else "capital letters are the first of a rank"
        say(console, f"the {actions.num_chunks} stages of a rank: {told}", style="dim")
