"""Draws the picture of docs/timeline.md: three schedules of the same work, below one another, as SVG.

Usage: python docs/draw_schedule.py FOLDER
"""

from __future__ import annotations

import sys
from pathlib import Path

from simulator.report.pipeline_figure import PictureFormat, draw_picture
from simulator.report.schedule_card import parse_times, schedule_card

SHOWN = ("1f1b", "interleaved-1f1b", "zb-h1", "dualpipe")


def main(folder: str) -> None:
    """Writes one picture a schedule: 4 ranks, 8 microbatches, passes of one unit each."""
    for name in SHOWN:
        card = schedule_card(name, pp=4, microbatches=8, times=parse_times("1,1,1"))
        Path(folder, f"{name}.svg").write_bytes(draw_picture(card.actions, PictureFormat.SVG))


if __name__ == "__main__":
    main(sys.argv[1])
