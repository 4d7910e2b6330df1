"""How pictures of a pipeline look, on paper and in the terminal: colours, legend, and the part of a step they show."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from simulator.errors import ScenarioError, Violation
from simulator.report.pipeline_actions import KINDS, PipelineActions
from simulator.report.wording import percent
from simulator.schedule import ActionKind
from simulator.units import format_seconds, parse_quantity

Colour = tuple[int, int, int]
"""Red, green and blue, 0 to 255."""

DARK: dict[ActionKind, Colour] = {
    ActionKind.FORWARD: (46, 94, 170),
    ActionKind.BACKWARD: (30, 122, 62),
    ActionKind.BACKWARD_INPUT: (14, 128, 130),
    ActionKind.BACKWARD_WEIGHT: (122, 118, 14),
}
"""Colour of a rank's first stage."""
LIGHT: dict[ActionKind, Colour] = {
    ActionKind.FORWARD: (166, 198, 244),
    ActionKind.BACKWARD: (160, 214, 168),
    ActionKind.BACKWARD_INPUT: (160, 230, 220),
    ActionKind.BACKWARD_WEIGHT: (232, 230, 140),
}
"""Colour of its last one, and of the only one: the lighter ones print better."""
UPDATE: Colour = (150, 112, 178)
IDLE: Colour = (242, 242, 242)
BLACK: Colour = (0, 0, 0)
WHITE: Colour = (255, 255, 255)
NAMES: dict[ActionKind, str] = {
    ActionKind.FORWARD: "forward",
    ActionKind.BACKWARD: "backward",
    ActionKind.BACKWARD_INPUT: "backward, inputs",
    ActionKind.BACKWARD_WEIGHT: "backward, weights",
}
UPDATE_NAME, IDLE_NAME = "optimizer", "idle"
_LIGHT_ENOUGH = 0.179
"""Relative luminance at which black and white have the same contrast: the root of 1.05 * 0.05, less 0.05."""


def colour_of(kind: int, chunk: int, num_chunks: int) -> Colour:
    """Returns the colour of a box: its kind by hue, its chunk by shade from dark to light."""
    dark, light = DARK[KINDS[kind]], LIGHT[KINDS[kind]]
    share = 1.0 if num_chunks == 1 else chunk / (num_chunks - 1)
    return _mix(dark, light, share)


def _mix(one: Colour, other: Colour, share: float) -> Colour:
    red, green, blue = (round(a + (b - a) * share) for a, b in zip(one, other, strict=True))
    return red, green, blue


def ink_on(colour: Colour) -> Colour:
    """Returns black or white, whichever has more contrast on a colour.

    Source: relative luminance of sRGB, WCAG 2.1.
    """
    red, green, blue = (_linear(part / 255) for part in colour)
    return BLACK if 0.2126 * red + 0.7152 * green + 0.0722 * blue >= _LIGHT_ENOUGH else WHITE


def _linear(part: float) -> float:
    return part / 12.92 if part <= 0.03928 else float(((part + 0.055) / 1.055) ** 2.4)


def title_of(actions: PipelineActions) -> str:
    """Returns what the picture shows, in a line."""
    chunks = f", {actions.num_chunks} stages each" if actions.num_chunks > 1 else ""
    ranks = f"{actions.pp} pipeline rank{'s' if actions.pp > 1 else ''}"
    microbatches = f"{actions.microbatches} microbatch{'es' if actions.microbatches > 1 else ''}"
    return f"{actions.schedule}: {ranks}{chunks}, {microbatches}, idle {percent(actions.idle_fraction)}"


def time_text(actions: PipelineActions, time: float) -> str:
    """Returns a time of the picture in words."""
    return format_seconds(time) if actions.in_seconds else f"{time:.6g}"


def kinds_of(actions: PipelineActions) -> list[int]:
    """Returns the kinds of action that there are, in the order of the legend."""
    return sorted({int(kind) for rank in actions.ranks for kind in set(rank.kind.tolist())})


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """The part of a step that a picture shows."""

    begin: float
    """From when."""
    end: float
    """Until when; the unit is that of the picture."""


def whole_step(actions: PipelineActions) -> Window:
    """Returns the window that shows everything."""
    return Window(begin=0.0, end=actions.end)


def parse_window(text: str, actions: PipelineActions) -> Window:
    """Returns the part of a step that `A:B` names.

    Bare numbers are microbatches: from the first begin of microbatch A to the last end of microbatch B - 1. Numbers
    with a unit are times. An end that is left out is that of the step.

    Raises:
        ScenarioError: the text is no such pair, or names nothing of this step.
    """
    first, colon, last = (part.strip() for part in text.partition(":"))
    if not colon:
        raise _refused(text, "has no colon")
    if all(re.fullmatch(r"\d*", part) for part in (first, last)):
        window = _microbatches(text, actions, int(first or 0), int(last or actions.microbatches))
    else:
        begin, end = (_seconds(text, part, otherwise) for part, otherwise in ((first, 0.0), (last, actions.end)))
        window = Window(begin=begin, end=min(end, actions.end))
    if window.end <= window.begin:
        raise _refused(text, "holds nothing of the step")
    return window


def _microbatches(text: str, actions: PipelineActions, first: int, last: int) -> Window:
    begins: list[float] = []
    ends: list[float] = []
    for rank in actions.ranks:
        chosen = (rank.microbatch >= first) & (rank.microbatch < last)
        begins += rank.begin[chosen].tolist()
        ends += rank.end[chosen].tolist()
    if not begins:
        raise _refused(text, f"names no microbatch from 0 to {actions.microbatches - 1}")
    return Window(begin=min(begins), end=max(ends))


def _seconds(text: str, part: str, otherwise: float) -> float:
    try:
        return float(parse_quantity(part, "seconds")) if part else otherwise
    except ValueError as error:
        raise _refused(text, str(error)) from error


def _refused(text: str, problem: str) -> ScenarioError:
    violation = Violation(
        path=f"--window {text[:80]}",
        problem=problem,
        why="it is the part of the step that a picture shows",
        mend="write microbatches, for example 0:16, or times with their unit, for example 10ms:40ms",
    )
    return ScenarioError([violation])


def shown_ranks(count: int, *, room: int) -> tuple[Sequence[int], Sequence[int]]:
    """Returns which of `count` rows a picture with room for `room` of them shows: the first, and the last."""
    if count <= room:
        return range(count), ()
    half = max(1, room // 2)
    return range(half), range(count - half, count)
