"""The picture of a pipeline as papers draw it, as SVG, PNG or PDF: one row a rank, one box an action.

Matplotlib is loaded when a picture is drawn and not before. The same actions give the same bytes.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from simulator.report import pipeline_style as style
from simulator.report.file_format import format_of
from simulator.report.pipeline_actions import KINDS, FloatArray, PipelineActions, RankActions
from simulator.report.pipeline_style import Colour, Window

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

POINTS_PER_INCH = 72.0
PNG_DOTS_PER_INCH = 200
# What follows is chosen by eye, on pictures of 4 to 256 ranks.
_ROW_INCHES, _NARROW_ROW_INCHES, _NARROW_ROWS = 0.24, 0.1, 64
_MIN_WIDTH_INCHES, _MAX_WIDTH_INCHES = 5.5, 60.0
_OVERVIEW_WIDTH_INCHES, _OVERVIEW_HEIGHT_INCHES = 14.0, 6.0
"""Width, and largest height, of a picture whose boxes are too many for numbers."""
_MARGINS_INCHES = (0.6, 0.15, 0.42, 0.4)
"""Left, right, top, bottom."""
_FONT, _MIN_FONT = 7.0, 3.5
"""Points of the numbers in boxes; below the smaller one they are left out."""
_LETTER_WIDTH = 0.64
"""Width of a digit, in heights of the font (DejaVu Sans)."""
_BOX_PADDING_POINTS = 1.6
_EDGE_POINTS = 0.4
_TYPICAL_SHARE = 0.1
"""Boxes shorter than this share of all of them do not decide about the scale."""
_MAX_VECTOR_BOXES = 20_000
"""More boxes than this are drawn as pixels inside the picture, as viewers stumble over so many shapes."""
_MAX_LABELLED_RANKS = 32


class PictureFormat(StrEnum):
    """Kinds of picture files, by their ending."""

    SVG = "svg"
    PNG = "png"
    PDF = "pdf"


def picture_format(name: str) -> PictureFormat:
    """Returns the format that the ending of a file's name asks for.

    Raises:
        ScenarioError: it is none of them.
    """
    mend = f"end it in {', '.join('.' + each for each in PictureFormat)}, or write - for the terminal"
    return format_of(name, PictureFormat, option="--picture", what="picture", mend=mend)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Sheet:
    """Measures of a picture."""

    window: Window
    inches_per_time: float
    row_inches: float
    font: float
    """Points of the numbers in boxes; 0: none."""


def draw_picture(actions: PipelineActions, kind: PictureFormat, window: Window | None = None) -> bytes:
    """Returns the picture as the content of a file.

    Args:
        actions: what to draw.
        kind: format of the file.
        window: part of the step to show; None: all of it.
    """
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    sheet = _sheet(actions, window or style.whole_step(actions))
    left, right, top, bottom = _MARGINS_INCHES
    across = (sheet.window.end - sheet.window.begin) * sheet.inches_per_time
    down = sheet.row_inches * len(actions.ranks)
    width, height = across + left + right, down + top + bottom
    settings: Any = {
        "svg.hashsalt": "shardsim",
        "svg.fonttype": "path",
        "pdf.fonttype": 42,
        "font.family": "DejaVu Sans",
        "axes.unicode_minus": False,
    }
    # The user's own settings of matplotlib have no say, so that the same actions give the same bytes.
    with mpl.rc_context(mpl.rcParamsDefault), mpl.rc_context(settings):
        figure = Figure(figsize=(width, height))
        FigureCanvasAgg(figure)
        axes = figure.add_axes((left / width, bottom / height, across / width, down / height))
        _draw_rows(axes, actions, sheet)
        _draw_axes(axes, actions, sheet)
        _draw_legend(figure, actions)
        content = io.BytesIO()
        figure.savefig(content, format=str(kind), dpi=PNG_DOTS_PER_INCH, metadata=_metadata(kind))
    return content.getvalue()


def _metadata(kind: PictureFormat) -> dict[str, Any]:
    """Nothing that differs from one run to the next."""
    if kind is PictureFormat.PNG:
        return {"Software": "shardsim"}
    creator = {"Creator": "shardsim"}
    return creator | ({"Date": None} if kind is PictureFormat.SVG else {"CreationDate": None, "Producer": None})


def _sheet(actions: PipelineActions, window: Window) -> _Sheet:
    """Chooses the scale so that the number of a microbatch fits its box, within the widest sheet."""
    typical = _typical_duration(actions, window)
    digits = len(str(actions.microbatches - 1))
    wanted = digits * _LETTER_WIDTH * _FONT + _BOX_PADDING_POINTS
    span = window.end - window.begin
    scale = wanted / POINTS_PER_INCH / typical if typical else _MIN_WIDTH_INCHES / span
    scale = min(max(scale, _MIN_WIDTH_INCHES / span), _MAX_WIDTH_INCHES / span)
    row_inches = _ROW_INCHES if len(actions.ranks) <= _NARROW_ROWS else _NARROW_ROW_INCHES
    fits = (typical * scale * POINTS_PER_INCH - _BOX_PADDING_POINTS) / (digits * _LETTER_WIDTH)
    font = min(_FONT, fits, 0.8 * row_inches * POINTS_PER_INCH)
    if font < _MIN_FONT:
        font, scale = 0.0, _OVERVIEW_WIDTH_INCHES / span
        row_inches = min(row_inches, _OVERVIEW_HEIGHT_INCHES / len(actions.ranks))
    return _Sheet(window=window, inches_per_time=scale, row_inches=row_inches, font=font)


def _typical_duration(actions: PipelineActions, window: Window) -> float:
    """The duration that nearly all shown boxes have at least."""
    shown = [(each.end - each.begin)[(each.end > window.begin) & (each.begin < window.end)] for each in actions.ranks]
    durations = np.concatenate(shown) if shown else np.zeros(0)
    durations = durations[durations > 0]
    return float(np.quantile(durations, _TYPICAL_SHARE, method="lower")) if len(durations) else 0.0


def _draw_rows(axes: Axes, actions: PipelineActions, sheet: _Sheet) -> None:
    as_pixels = sum(len(each.kind) for each in actions.ranks) > _MAX_VECTOR_BOXES
    for row, rank in enumerate(actions.ranks):
        _draw_rank(axes, actions, rank, sheet, row=row, as_pixels=as_pixels)
    axes.set_xlim(sheet.window.begin, sheet.window.end)
    axes.set_ylim(len(actions.ranks), 0)
    axes.set_facecolor(_rgb(style.IDLE))


def _draw_rank(
    axes: Axes, actions: PipelineActions, rank: RankActions, sheet: _Sheet, *, row: int, as_pixels: bool
) -> None:
    from matplotlib.collections import PolyCollection

    shown = (rank.end > sheet.window.begin) & (rank.begin < sheet.window.end) & (rank.end > rank.begin)
    top, bottom = _halves(rank.joined)
    colours = [
        style.colour_of(kind, chunk, actions.num_chunks)
        for kind, chunk in zip(rank.kind[shown].tolist(), rank.chunk[shown].tolist(), strict=True)
    ]
    boxes = _boxes(rank.begin[shown], rank.end[shown], row + top[shown], row + bottom[shown])
    # Edges would hide boxes that are only a few times as wide.
    edge = _EDGE_POINTS if sheet.font else 0.0
    axes.add_collection(
        PolyCollection(
            list(boxes),
            facecolors=[_rgb(colour) for colour in colours],
            edgecolors="black" if edge else "face",
            linewidths=edge,
            rasterized=as_pixels,
            clip_on=as_pixels or not _is_whole(actions, sheet.window),  # boxes at the margin keep their edges
        ),
        autolim=False,
    )
    if rank.update is not None:
        begin, end = rank.update
        box = _boxes(np.array([begin]), np.array([end]), np.array([float(row)]), np.array([row + 1.0]))
        update = PolyCollection(list(box), facecolors=[_rgb(style.UPDATE)], edgecolors="black", linewidths=edge)
        axes.add_collection(update, autolim=False)
    if sheet.font:
        _draw_numbers(axes, rank, sheet, colours, row + (top + bottom) / 2, shown)


def _is_whole(actions: PipelineActions, window: Window) -> bool:
    return window.begin <= 0.0 and window.end >= actions.end


def _halves(joined: npt.NDArray[np.bool_]) -> tuple[FloatArray, FloatArray]:
    """Top and bottom of each box in its row: a joined pair lies one above the other."""
    second = np.append(False, joined[:-1])
    return np.where(second, 0.5, 0.0), np.where(joined, 0.5, 1.0)


def _boxes(begin: FloatArray, end: FloatArray, top: FloatArray, bottom: FloatArray) -> npt.NDArray[np.float64]:
    return np.stack(
        [np.stack(corner, axis=-1) for corner in ((begin, top), (end, top), (end, bottom), (begin, bottom))], axis=1
    )


def _draw_numbers(
    axes: Axes,
    rank: RankActions,
    sheet: _Sheet,
    colours: list[Colour],
    middle: FloatArray,
    shown: npt.NDArray[np.bool_],
) -> None:
    """Writes the microbatch into each box that is wide enough for it."""
    columns = (rank.begin, rank.end, middle, rank.microbatch, rank.joined | np.append(False, rank.joined[:-1]))
    begins, ends, middles, microbatches, halves = (column[shown].tolist() for column in columns)
    for begin, end, at, microbatch, is_half, colour in zip(
        begins, ends, middles, microbatches, halves, colours, strict=True
    ):
        begin, end = max(begin, sheet.window.begin), min(end, sheet.window.end)
        text = str(microbatch)
        font = min(sheet.font, 0.4 * sheet.row_inches * POINTS_PER_INCH) if is_half else sheet.font
        width = (end - begin) * sheet.inches_per_time * POINTS_PER_INCH
        if len(text) * _LETTER_WIDTH * font <= width:
            axes.text(
                (begin + end) / 2,
                at,
                text,
                fontsize=font,
                color=_rgb(style.ink_on(colour)),
                horizontalalignment="center",
                verticalalignment="center_baseline",
                clip_on=True,
            )


def _draw_axes(axes: Axes, actions: PipelineActions, sheet: _Sheet) -> None:
    count = len(actions.ranks)
    step = -(-count // _MAX_LABELLED_RANKS)
    rows = range(0, count, step)
    axes.set_yticks([row + 0.5 for row in rows], [f"rank {actions.ranks[row].rank}" for row in rows], fontsize=7)
    axes.tick_params(axis="y", length=0)
    axes.tick_params(axis="x", labelsize=7, length=2)
    scale, unit = _time_unit(actions, sheet.window.end)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value * scale:.6g}")
    axes.set_xlabel(f"time ({unit})" if unit else "time", fontsize=7, labelpad=1)
    for row in range(1, count):
        axes.axhline(row, color="white", linewidth=0.8 if sheet.font else 0.2, zorder=0.5)
    for spine in axes.spines.values():
        spine.set_visible(False)
    if sheet.window.end >= actions.end and any(rank.update for rank in actions.ranks):
        axes.axvline(actions.end, color="black", linewidth=1.2, clip_on=False)


def _time_unit(actions: PipelineActions, end: float) -> tuple[float, str]:
    if not actions.in_seconds:
        return 1.0, ""
    for unit, factor in (("s", 1.0), ("ms", 1e3), ("us", 1e6)):
        if end * factor >= 1:
            return factor, unit
    return 1e9, "ns"


def _draw_legend(figure: Figure, actions: PipelineActions) -> None:
    from matplotlib.legend_handler import HandlerTuple
    from matplotlib.patches import Patch

    def patch(colour: Colour, edge: str = "black") -> Patch:
        return Patch(facecolor=_rgb(colour), edgecolor=edge, linewidth=_EDGE_POINTS)

    entries: list[tuple[tuple[Patch, ...], str]] = []
    for kind in style.kinds_of(actions):
        shades = [style.colour_of(kind, chunk, actions.num_chunks) for chunk in sorted({0, actions.num_chunks - 1})]
        entries.append((tuple(map(patch, shades)), style.NAMES[KINDS[kind]]))
    if any(rank.update for rank in actions.ranks):
        entries.append(((patch(style.UPDATE),), style.UPDATE_NAME))
    entries.append(((patch(style.IDLE, "grey"),), style.IDLE_NAME))
    if actions.num_chunks > 1:
        entries.append(((), "stages of a rank: dark to light"))
    left, _, top, _ = _MARGINS_INCHES
    width, height = figure.get_size_inches()
    title = style.title_of(actions)  # may hold the name of a user's file: no mathematics in it
    figure.text(left / width, 1 - 0.06 / height, title, fontsize=8, verticalalignment="top", parse_math=False)
    figure.legend(
        handles=[handles or (Patch(alpha=0.0),) for handles, _ in entries],
        labels=[label for _, label in entries],
        handler_map={tuple: HandlerTuple(ndivide=None, pad=0.0)},
        loc="lower left",
        bbox_to_anchor=(left / width, 1 - (top - 0.02) / height),
        ncols=len(entries),
        fontsize=6.5,
        frameon=False,
        borderpad=0,
        borderaxespad=0,
        handlelength=1.6,
        handleheight=0.9,
        handletextpad=0.4,
        columnspacing=1.0,
    )


def _rgb(colour: Colour) -> tuple[float, float, float]:
    red, green, blue = colour
    return red / 255, green / 255, blue / 255
