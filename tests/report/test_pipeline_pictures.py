import io
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from simulator.errors import ScenarioError
from simulator.report import pipeline_style as style
from simulator.report.pipeline_actions import PipelineActions, actions_of_schedule, actions_of_step
from simulator.report.pipeline_figure import PictureFormat, draw_picture, picture_format
from simulator.report.pipeline_style import Window
from simulator.report.pipeline_text import print_picture
from tests.report.runs import paired_schedule, simulated, unit_actions

ROOT = Path(__file__).resolve().parents[2]
NUMBER = re.compile(r"<!-- (\d+) -->")
"""Matplotlib writes each text, drawn as shapes, also as a comment."""


def printed(actions: PipelineActions, *, width: int = 80, window: Window | None = None, colour: bool = False) -> str:
    file = io.TextIOWrapper(io.BytesIO(), encoding="ascii", errors="strict")
    console = Console(
        file=file, width=width, force_terminal=colour, color_system="truecolor" if colour else None, no_color=not colour
    )
    print_picture(actions, console, window)
    file.seek(0)
    return file.read()


def paired() -> PipelineActions:
    return actions_of_schedule(paired_schedule(), [np.array([0.0, 1.0, 1.0, 3.0])], [np.array([1.0, 3.0, 3.0, 4.0])])


def test_the_terminal_shows_a_line_for_each_rank_in_plain_letters() -> None:
    assert printed(unit_actions("1f1b", pp=3, microbatches=3), width=32) == (
        "1f1b: 3 pipeline ranks, 3 \n"
        "microbatches, idle 40.0 %\n"
        "rank 0 F0F1F2....B0..B1..B2\n"
        "rank 1 ..F0F1..B0F2B1..B2..\n"
        "rank 2 ....F0B0F1B1F2B2....\n"
        "time   0                 10\n"
        "F forward   B backward   . idle\n"
    )


def test_chunks_and_pairs_are_told_apart_without_colour() -> None:
    lines = printed(paired()).splitlines()
    assert re.fullmatch(r"rank 0 F0=+f1=*B0=*b1=+", lines[1])
    assert "the 2 stages of a rank: capital letters are the first of a rank" in lines


def test_colours_replace_letters_and_number_every_box() -> None:
    text = printed(unit_actions("1f1b", pp=2, microbatches=3), width=60, colour=True)
    plain = re.sub(r"\x1b\[[0-9;]*m", "", text).splitlines()
    assert plain[1].split() == ["rank", "0", *"010212"]
    red, green, blue = style.colour_of(0, 0, 1)
    assert f"48;2;{red};{green};{blue}m" in text


@pytest.mark.parametrize("width", [20, 33, 80, 300])
def test_no_line_is_wider_than_the_terminal(width: int) -> None:
    for line in printed(unit_actions("1f1b", pp=4, microbatches=30), width=width).splitlines():
        assert len(line) <= width


def test_a_wide_step_is_shown_from_its_beginning_and_says_so() -> None:
    actions = unit_actions("1f1b", pp=4, microbatches=100)
    text = printed(actions)
    assert "rank 3 .........F0=B0=" in text
    assert re.search(r"the first \d+\.\d % of it fits into this terminal", text.replace("\n", " "))
    assert "fits into" not in printed(actions, window=Window(begin=0.0, end=20.0))


def test_of_many_ranks_the_first_and_the_last_are_shown() -> None:
    lines = printed(unit_actions("1f1b", pp=100, microbatches=2), width=60).splitlines()
    ranks = [int(line.split()[1]) for line in lines if line.startswith("rank ")]
    assert ranks == [*range(32), *range(68, 100)]
    assert "... 36 ranks not shown ..." in lines


def test_the_update_is_drawn() -> None:
    actions = actions_of_step(simulated())
    assert "U optimizer" in printed(actions)
    assert b"optimizer" in draw_picture(actions, PictureFormat.SVG)
    assert "optimizer" not in printed(unit_actions("1f1b", pp=2, microbatches=2))


def test_every_box_of_the_picture_has_its_number() -> None:
    actions = unit_actions("interleaved-1f1b", pp=4, vpp=2, microbatches=8)
    drawn = draw_picture(actions, PictureFormat.SVG).decode()
    numbers = sorted(int(number) for number in NUMBER.findall(drawn.split('id="matplotlib.axis_2"')[1]))
    assert numbers == sorted(int(each) for rank in actions.ranks for each in rank.microbatch)


def test_numbers_that_do_not_fit_are_left_out() -> None:
    drawn = draw_picture(unit_actions("1f1b", pp=2, microbatches=2000), PictureFormat.SVG).decode()
    assert not [number for number in NUMBER.findall(drawn) if int(number) == 1999]
    width = re.search(r'width="([\d.]+)pt"', drawn)
    assert width is not None
    assert float(width[1]) < 20 * 72


def test_a_window_shows_its_boxes_only() -> None:
    actions = unit_actions("1f1b", pp=2, microbatches=50)
    drawn = draw_picture(actions, PictureFormat.SVG, Window(begin=0.0, end=4.0)).decode()
    assert "<!-- 49 -->" not in drawn


@pytest.mark.parametrize(
    ("kind", "start"), [(PictureFormat.SVG, b"<?xml"), (PictureFormat.PNG, b"\x89PNG"), (PictureFormat.PDF, b"%PDF")]
)
def test_the_same_actions_give_the_same_bytes_in_every_format(kind: PictureFormat, start: bytes) -> None:
    actions = unit_actions("1f1b", pp=2, microbatches=4)
    drawn = draw_picture(actions, kind)
    assert drawn.startswith(start)
    program = (
        "import sys\nfrom tests.report.runs import unit_actions\n"
        "from simulator.report.pipeline_figure import PictureFormat, draw_picture\n"
        f"sys.stdout.buffer.write(draw_picture(unit_actions('1f1b', pp=2, microbatches=4), PictureFormat('{kind}')))"
    )
    again = subprocess.run([sys.executable, "-c", program], capture_output=True, cwd=ROOT, check=True, timeout=60)
    assert again.stdout == drawn


def test_settings_of_the_user_do_not_change_the_picture() -> None:
    import matplotlib as mpl

    actions = unit_actions("1f1b", pp=2, microbatches=2)
    plain = draw_picture(actions, PictureFormat.SVG)
    with mpl.rc_context({"font.size": 30, "axes.grid": True}):
        assert draw_picture(actions, PictureFormat.SVG) == plain


def test_halves_of_a_joined_pair_have_different_colours() -> None:
    drawn = draw_picture(paired(), PictureFormat.SVG).decode()
    for kind, chunk in ((0, 1), (1, 0)):
        assert "#{:02x}{:02x}{:02x}".format(*style.colour_of(kind, chunk, 2)) in drawn


def test_numbers_are_readable_on_every_colour() -> None:
    # WCAG 2.1, 1.4.3: a contrast of 4.5 to 1.
    def brightness(colour: style.Colour) -> float:
        linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in (each / 255 for each in colour)]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    for kind in range(4):
        for chunk in range(4):
            colour = style.colour_of(kind, chunk, 4)
            dark, light = sorted(brightness(each) for each in (colour, style.ink_on(colour)))
            assert (light + 0.05) / (dark + 0.05) >= 4.5, (kind, chunk)


def test_the_ending_chooses_the_format() -> None:
    assert picture_format("a/b.SVG") is PictureFormat.SVG
    for name in ("x.jpg", "x", ".svg/"):
        with pytest.raises(ScenarioError, match=r"mend: end it in \.svg, \.png, \.pdf, or write - for the terminal"):
            picture_format(name)


def test_matplotlib_is_loaded_for_a_picture_file_only() -> None:
    program = (
        "import sys\nfrom typer.testing import CliRunner\nfrom simulator.cli import app\n"
        "arguments = ['run', 'gpt2-small-laptop', '-q', '--timeline', '-', '--trace', '/dev/null']\n"
        "assert CliRunner().invoke(app, arguments).exit_code == 0\n"
        "sys.exit('matplotlib' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=False, timeout=60).returncode == 0


def test_a_schedule_may_have_any_name() -> None:
    actions = replace(unit_actions("1f1b", pp=2, microbatches=2), schedule="my $\\frac$ [bold]table.csv")
    assert b"my $" in draw_picture(actions, PictureFormat.SVG)
    assert printed(actions).startswith("my $\\frac$ [bold]table.csv: 2 pipeline ranks")
