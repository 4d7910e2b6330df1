"""Pipeline schedules side by side: all that are built in, and the tables of their authors with ours beside them.

Usage: python benchmarks/schedules.py [--write]

`--write` writes the page docs/schedules.md, all of which comes from here; a test holds the two equal.
"""

from __future__ import annotations

import argparse
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import yaml
from published import HERE

from simulator.schedule import SCHEDULES, PipelineSchedule, StageProfile, build_schedule, time_schedule
from simulator.schedule.auto_zero_bubble import Shortest, auto_zero_bubble, peak_activations

FIGURES = HERE / "published_schedules.yaml"
PAGE = HERE.parent / "docs" / "schedules.md"
Row = Mapping[str, Any]
Times = tuple[float, float, float]

RANKS, MICROBATCHES = 8, 32
"""Of the table of all schedules."""
CHUNKS = {"interleaved-1f1b": 2, "interleaved-zb": 2, "looped-bfs": 2, "zb-v": 2, "dualpipe-v": 2}
"""Stages of a rank, where they are not one."""
WHEN = {
    "gpipe": "few microbatches, or as a reference: memory grows with m",
    "1f1b": "the default: least memory, least traffic",
    "interleaved-1f1b": "fewer microbatches than a few p, and a network that carries v times the messages",
    "looped-bfs": "data-parallel traffic that must hide: each stage's gradients are complete early",
    "zb-h1": "instead of 1F1B wherever the framework splits the backward: the same peak on rank 0",
    "zb-h2": "memory for twice the microbatches, and an optimizer step that does not wait for all ranks",
    "zb-v": "memory for p microbatches and messages both ways at each rank",
    "interleaved-zb": "interleaved 1F1B with memory to spare",
    "zb-auto": "stages that are not equal, slow hops, or a given amount of memory",
    "dualpipe": "all-to-alls of experts as long as compute, hidden in pairs; memory for two copies of the weights",
    "dualpipe-v": "the same with one copy of the weights",
}
DUALPIPE_TIMES = ((1.0, 1.0, 1.0, None), (4.0, 4.0, 3.0, None), (4.0, 4.0, 3.0, 9.0))
"""(F, I, W, F&B); no F&B: a pair takes as long as its two passes."""
UNFUSED_KEPT, UNFUSED_FIXED = 32, 34
"""Bytes an element that wait for W, and all but those of attention's scores (Qi et al. 2024, table 1)."""


def profile_of(
    pp: int, stages: int, times: Times, *, hop: float = 0.0, limit: float = np.inf, freed: float = 0.0, copies: int = 1
) -> StageProfile:
    """Returns equal stages; `times` and a memory of 1 are those of the model's share of one rank.

    Args:
        pp: Pipeline ranks.
        stages: Stages of the schedule, those of all directions.
        times: F, I and W.
        hop: Time of a message.
        limit: Room of each rank.
        freed: Share of an activation that I frees.
        copies: Of the model among the stages: directions.
    """
    share = pp * copies / stages
    forward, backward_input, backward_weight = (np.full(stages, each * share) for each in times)
    return StageProfile(
        forward=forward,
        backward_input=backward_input,
        backward_weight=backward_weight,
        hop=hop,
        activation=np.full(stages, share),
        freed_by_input=np.full(stages, freed),
        limit=np.full(pp, float(limit)),
    )


def matching_profile(schedule: PipelineSchedule, times: Times, *, hop: float = 0.0) -> StageProfile:
    """Returns equal stages for a schedule, of one direction or two."""
    return profile_of(schedule.pp, schedule.num_stages, times, hop=hop, copies=schedule.directions)


def bubble_rate(schedule: PipelineSchedule, times: Times, hop: float) -> float:
    """Returns (cost - m (F + I + W)) / cost, where the cost is the longest span of a rank (Qi et al. 2024)."""
    cost = time_schedule(schedule, matching_profile(schedule, times, hop=hop)).longest_span
    return float((cost - schedule.microbatches * sum(times)) / cost)


def found_for(limit: float, row: Row, times: Times, hop: float, *, vpp: int = 1) -> PipelineSchedule:
    """Returns the automatic schedule with room for `limit` times p microbatches, as short a span as can be found."""
    unfused = 5 * row["heads"] * 1024 / row["hidden"] if "heads" in row else 40
    profile = profile_of(
        row["p"],
        row["p"] * vpp,
        times,
        hop=hop,
        limit=limit * row["p"],
        freed=1 - UNFUSED_KEPT / (UNFUSED_FIXED + unfused),
    )
    return auto_zero_bubble(row["p"], vpp, row["m"], profile, shortest=Shortest.SPAN)


def rates_of(row: Row, columns: Sequence[str], times: Times, hop: float) -> list[float]:
    """Returns our bubble rate for each column of a published row."""
    builders: dict[str, Callable[[], PipelineSchedule]] = {
        "1f1b-i": lambda: _built("interleaved-1f1b", row, vpp=row["chunks"]),
        "zb-v": lambda: _built("zb-v", row, vpp=2),
        "zb-1p": lambda: found_for(1, row, times, hop),
        "zb-2p": lambda: found_for(2, row, times, hop),
    }
    return [bubble_rate(builders[name]() if name in builders else _built(name, row), times, hop) for name in columns]


def _built(name: str, row: Row, *, vpp: int = 1) -> PipelineSchedule:
    return build_schedule(name, pp=row["p"], vpp=vpp, microbatches=row["m"])


def solved_times(row: Row, columns: Sequence[str]) -> tuple[Times, float]:
    """Returns F, I, W and the hop, as shares of F + I + W, that give the printed rates of 1F1B and ZB-H1; F = I."""
    printed = dict(zip(columns, row["rates"], strict=True))
    third = (1 / 3, 1 / 3, 1 / 3)
    # 1F1B's rate depends on the hop alone and grows with it; ZB-H1's then falls as W grows.
    hop = _bisected(lambda hop: bubble_rate(_built("1f1b", row), third, hop) - printed["1f1b"], 0.0, 0.2)
    weight = _bisected(lambda w: printed["zb-h1"] - bubble_rate(_built("zb-h1", row), _split(w), hop), 0.05, 1 / 3)
    return _split(weight), hop


def _split(weight: float) -> Times:
    return (1 - weight) / 2, (1 - weight) / 2, weight


def _bisected(value: Callable[[float], float], low: float, high: float) -> float:
    """Returns where a growing function is zero."""
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if value(middle) < 0 else (low, middle)
    return (low + high) / 2


def table(head: Sequence[str], rows: Iterable[Sequence[str]], *, words: Iterable[int] = (0,)) -> str:
    """Returns a Markdown table; the columns of these numbers hold words, the others figures."""
    rule = ["---" if column in words else "---:" for column in range(len(head))]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (head, rule, *rows))


def all_schedules() -> str:
    """Returns the table of every built-in schedule, F = I = W = 1 on a rank's share of the model."""
    times = (1.0, 1.0, 1.0)
    work = MICROBATCHES * sum(times)
    rows = []
    for name, kind in SCHEDULES.items():
        vpp = CHUNKS.get(name, 1)
        limited = profile_of(RANKS, RANKS * vpp, times, limit=2 * RANKS) if kind.needs_profile else None
        schedule = build_schedule(name, pp=RANKS, vpp=vpp, microbatches=MICROBATCHES, profile=limited)
        profile = matching_profile(schedule, times)
        timing = time_schedule(schedule, profile)
        rows.append(
            [
                f"`{name}`" + (f", v = {vpp}" if vpp > 1 else ""),
                f"{timing.makespan - work:.4g}",
                f"{timing.longest_span - work:.4g}",
                f"{peak_activations(schedule, profile).max():.4g}",
                f"{sum(schedule.messages_sent())}",
                f"{len(schedule.stages_of(0)) * RANKS / schedule.chain:.4g}",
                _source(name),
                WHEN[name],
            ]
        )
    head = ("schedule", "bubble", "in a rank's span", "activations", "messages", "weights", "source", "when to use")
    return table(head, rows, words=(0, 6, 7))


def _source(name: str) -> str:
    about = " ".join((inspect.getdoc(SCHEDULES[name].build) or "").split())
    return about.partition("Source: ")[2].partition(";")[0]


def formulas(row: Row) -> str:
    """Returns the paper's table of formulas with their values for one row of times, printed / ours."""
    forward, backward_input, weight, _ = row["ms"]
    p, m = row["p"], row["m"]
    rows = []
    for name, part, text, activations in (
        ("1f1b", forward + backward_input + weight, "(p - 1)(F + I + W)", p),
        ("zb-h1", forward + backward_input - weight, "(p - 1)(F + I - W)", p),
        ("zb-h2", forward + backward_input - 2 * weight, "(p - 1)(F + I - 2W)", 2 * p - 1),
    ):
        schedule = _built(name, row)
        profile = matching_profile(schedule, (forward, backward_input, weight))
        bubble = time_schedule(schedule, profile).longest_span - m * (forward + backward_input + weight)
        peak = peak_activations(schedule, profile).max()
        bubbles = f"{(p - 1) * part:.3f} / {bubble:.3f}"
        rows.append([f"`{name}`", f"`{text}`", bubbles, f"{activations} / {peak:.4g}"])
    return table(("schedule", "bubble", f"of the {row['model']} model, ms", "activations"), rows, words=(0, 1))


def compared(columns: Sequence[str], rows: Sequence[Row], find: Callable[[Row], list[float]]) -> tuple[str, str]:
    """Returns two tables, printed / ours: of bubble rates, and of bubbles over that of 1F1B."""
    rates, ratios = [], []
    for row in rows:
        setup = [row["model"], str(row["p"]), str(row["m"])]
        ours, printed = find(row), row["rates"]
        rates.append([*setup, *(f"{one:.4f} / {other:.4f}" for one, other in zip(printed, ours, strict=True))])
        # A rate r is a bubble of r / (1 - r) times the work.
        relative = [[rate / (1 - rate) / (each[0] / (1 - each[0])) for rate in each[1:]] for each in (printed, ours)]
        ratios.append([*setup, *(f"{one:.3f} / {other:.3f}" for one, other in zip(*relative, strict=True))])
    head = ("model", "p", "m")
    return table((*head, *columns), rates), table((*head, *columns[1:]), ratios)


def dualpipe(figures: Row) -> str:
    """Returns DeepSeek's table with the values of its formulas, printed / ours."""
    rows = []
    base: dict[int, float] = {}
    for entry in figures["rows"]:
        schedule = build_schedule(entry["schedule"], pp=RANKS, vpp=1, microbatches=MICROBATCHES)
        cells = []
        for number, (forward, backward_input, weight, pair) in enumerate(DUALPIPE_TIMES):
            times = (forward, backward_input, weight)
            whole = backward_input + weight
            joined = forward + whole if pair is None else pair
            printed = {
                "1f1b": (RANKS - 1) * (forward + whole),
                "zb-h1": (RANKS - 1) * (forward + whole - 2 * weight),
                "dualpipe": (RANKS / 2 - 1) * (joined + whole - 3 * weight),
            }[entry["schedule"]]
            timing = time_schedule(schedule, matching_profile(schedule, times), joined=pair)
            ours = float(timing.idle.max())
            base.setdefault(number, ours)
            cells += [f"{printed:.4g} / {ours:.4g}", f"{ours / base[number]:.3f}"]
        profile = matching_profile(schedule, (1.0, 1.0, 1.0))
        rows.append(
            [
                entry["method"],
                f"`{entry['bubble']}`",
                *cells,
                f"{entry['parameters']} / {len(schedule.stages_of(0)) * RANKS / schedule.chain:.4g}",
                f"{entry['activations']} = {eval_pp(entry['activations'])} / "
                f"{peak_activations(schedule, profile).max():.4g}",
            ]
        )
    named = [
        f"F, I, W = {forward:g}, {backward_input:g}, {weight:g}" + ("" if pair is None else f", F&B = {pair:g}")
        for forward, backward_input, weight, pair in DUALPIPE_TIMES
    ]
    head = ["method", "bubble"]
    for text in named:
        head += [text, "over 1F1B's"]
    return table((*head, "parameters", "activations"), rows, words=(0, 1))


def eval_pp(formula: str) -> int:
    """Returns the value of `PP` or `PP + 1`."""
    return RANKS + int(formula.partition("+")[2] or 0)


def page() -> str:
    """Returns docs/schedules.md."""
    figures = yaml.safe_load(FIGURES.read_text(encoding="utf-8"))
    first, second = figures["zero_bubble"], figures["zero_bubble_v"]

    def profiled(row: Row) -> list[float]:
        *times, hop = row["ms"]
        return rates_of(row, first["columns"], tuple(times), hop)

    rates, ratios = compared(first["columns"], first["rows"], profiled)

    def predicted(row: Row) -> list[float]:
        return rates_of(row, second["columns"], *solved_times(row, second["columns"]))

    rates_v, ratios_v = compared(second["columns"], second["rows"], predicted)
    return TEXT.format(
        ranks=RANKS,
        microbatches=MICROBATCHES,
        all=all_schedules(),
        source=first["source"],
        formulas=formulas(first["rows"][0]),
        rates=rates,
        ratios=ratios,
        source_v=second["source"],
        rates_v=rates_v,
        ratios_v=ratios_v,
        source_dualpipe=figures["dualpipe"]["source"],
        dualpipe=dualpipe(figures["dualpipe"]),
    )


TEXT = """# Pipeline schedules

All of this page is written by `python benchmarks/schedules.py --write`. It is about schedules on paper: passes of given
length and messages that take a hop, no other communication. What a step takes on a cluster is for `shardsim run`.
F, I and W are the forward, the backward of inputs and the backward of weights of one microbatch on one rank's share of
the model; p ranks, m microbatches, v stages of a rank.

## Built in

p = {ranks}, m = {microbatches}, F = I = W = 1, no hop. *Bubble* is the time from the first begin to the last end of all
ranks, less the work of one; *in a rank's span* the same from its own begin to its own end, for the rank that takes
longest, which is what a step costs if no rank's update waits for the others. *Activations* are the most that a rank
holds, in those of one microbatch on its share of the model, kept until W; *weights* are in shares of the model;
*messages* are those of all ranks in a step. `zb-auto` has room for 2p activations here.
`shardsim show schedules NAME` tells more of each.

{all}

`schedule:` of a scenario is a name of this table; the path of a table of actions (`.csv`, as
torch.distributed.pipelining writes them), relative to the scenario file; or for `zb-auto` a mapping with a limit:

```yaml
schedule: zb-auto                                 # the memory of the device, less 6 % for its allocator
schedule: {{name: zb-auto, memory_limit: 64 GB}}    # of a device in all: what states leave of it is for activations
schedule: {{name: zb-auto, activation_limit: 2.0}}  # in activations of a microbatch on a rank, times p: 1 is 1F1B's
```

## The zero-bubble paper

Its formulas, *printed / ours*, without hop; activations are those of the first rank, in microbatches.

{formulas}

Bubble rates, (cost - m (F + I + W)) / cost, where the cost is the longest span of a rank: *printed / ours*. Times and
hops are those that the authors profiled. ZB-1p and ZB-2p are searched for within the memory of p and of 2p
microbatches, as `zb-auto` is; how much of an activation waits for W is their table 1. The memory that they measured is
in [accuracy.md](accuracy.md), under "Zero bubble".

Source: {source}.

{rates}

Ours are the printed ones to the last digit for 1F1B, ZB-H1, ZB-H2 and ZB-1p. For ZB-2p they are the same or lower: more
ways of choosing are tried than the paper's. 1F1B-I is up to 0.0035 higher: its bubble has 2(pv - 1) messages in it
(E5.4), and the printed one fits p fewer. Bubbles over that of 1F1B, row by row, *printed / ours*:

{ratios}

The times of the runs with ZB-V are not printed. Two numbers of each row, W and the hop as shares of F + I + W with
F = I, follow from its columns of 1F1B and ZB-H1; the other columns are then predictions. The authors' ZB-V moves every
W as far back as its memory allows, which the order by hand does not.

Source: {source_v}.

{rates_v}

Bubbles over that of 1F1B, *printed / ours*:

{ratios_v}

## DualPipe

p = {ranks}, m = {microbatches}; B = I + W is the whole backward, F&B an overlapped pair, which gains nothing where its
time is not given. The bubble is the longest idle time of a rank: *value of the printed formula / ours*, then ours over
1F1B's. Activations are in those of one microbatch on a rank. ZB1P is `zb-h1` here.

Source: {source_dualpipe}.

{dualpipe}
"""


def main() -> None:
    """Print or write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="write docs/schedules.md")
    text = page()
    if parser.parse_args().write:
        PAGE.write_text(text, encoding="utf-8")
    else:
        print(text)


if __name__ == "__main__":
    main()
