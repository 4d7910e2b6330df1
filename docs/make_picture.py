"""Draws the README's picture: the report of a scenario as the terminal shows it, as SVG.

Usage: python docs/make_picture.py SCENARIO FILE
"""

from __future__ import annotations

import io
import re
import sys
from pathlib import Path

from rich.console import Console

from simulator.config.scenario import read_scenario
from simulator.report.terminal import print_report
from simulator.simulate import simulate

WIDTH = 110


def main(scenario: str, file: str) -> None:
    """Writes the picture; web fonts are left out, so that it shows without a network."""
    console = Console(record=True, width=WIDTH, force_terminal=True, color_system="truecolor", file=io.StringIO())
    print_report(simulate(read_scenario(scenario)), console)
    svg = console.export_svg(title=f"shardsim run {scenario}", unique_id="report")
    svg = re.sub(r"@font-face \{.*?\}", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<!-- Generated with .*?-->", "", svg)
    svg = re.sub(r"simulated in .*?(?=<)", "simulated&#160;in&#160;seconds", svg)
    Path(file).write_text(svg, encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
