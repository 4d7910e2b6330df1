"""Draws the picture of docs/timeline.md: a schedule by itself, as SVG.

Usage: python docs/draw_schedule.py NAME FILE
"""

from __future__ import annotations

import sys
from pathlib import Path

from simulator.report.pipeline_figure import draw_picture, picture_format
from simulator.report.schedule_card import parse_times, schedule_card


def main(name: str, file: str) -> None:
    """Writes the picture of a schedule: 4 ranks, 8 microbatches, every pass as long as a forward."""
    card = schedule_card(name, pp=4, microbatches=8, times=parse_times("1,1,1"))
    Path(file).write_bytes(draw_picture(card.actions, picture_format(file)))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
