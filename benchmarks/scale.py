"""Measures what a whole `shardsim run` costs, from 1,024 devices to 1,048,576, and prints a table.

Usage: python benchmarks/scale.py [--repeats N] [--command PATH]

Needs only the standard library and the installed command. Each row is the median of N processes, started after one
that is not counted (the first run of an installation compiles the engine and keeps it). `wall` is a whole process with
`--quiet` and a JSON file, start-up and reading of files included; `simulation` is what the report says of steps 2 to 9;
`memory` is the peak resident size of the process. A job that does not fit takes several times as long, as the program
also simulates the single changes that might make it fit.

Inside a group only the number of devices changes: data parallelism takes them, and the batch grows with it, so that a
pipeline runs the same microbatches.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

SCENARIOS = Path(__file__).resolve().parent.parent / "scenarios"
COUNTS = (1024, 4096, 16384, 65536, 131072, 1048576)
LLAMA_RANKS, LLAMA_MICROBATCHES = 8 * 16, 128
DENSE_RANKS, DENSE_MICROBATCHES = 64 * 256, 1024
KIB = 1024
MIB = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One line of the table."""

    name: str
    arguments: tuple[str, ...]
    """Scenario and `--set` options."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What one process took."""

    wall_s: float
    peak_bytes: int
    """Peak resident size."""


def scaled(devices: int, *, scenario: str, ranks: int, microbatches: int, settings: Sequence[str]) -> tuple[str, ...]:
    """Returns the arguments of a scenario on other devices: as many pipelines of `ranks` ranks as fit."""
    replicas = devices // ranks
    changes = [
        *settings,
        f"devices={devices}",
        f"layout.dp={replicas}",
        f"training.global_batch={microbatches * replicas}",
    ]
    return (str(SCENARIOS / f"{scenario}.yaml"), *(part for change in changes for part in ("--set", change)))


def cases() -> list[tuple[str, list[Case]]]:
    """Returns the groups of the table."""
    llama = [
        Case(
            name="llama3.1-405b, tp 8, pp 16",
            arguments=scaled(
                devices,
                scenario="dense-100t-h100",
                ranks=LLAMA_RANKS,
                microbatches=LLAMA_MICROBATCHES,
                settings=["model=llama3.1-405b", "layout.tp=8", "layout.pp=16"],
            ),
        )
        for devices in COUNTS
    ]
    dense = [
        Case(
            name="dense-100t, tp 64, pp 256",
            arguments=scaled(
                devices,
                scenario="dense-100t-h100",
                ranks=DENSE_RANKS,
                microbatches=DENSE_MICROBATCHES,
                settings=[],
            ),
        )
        for devices in COUNTS
        if devices >= DENSE_RANKS
    ]
    whole = [Case(name=path.stem, arguments=(str(path),)) for path in sorted(SCENARIOS.glob("*-100t-*.yaml"))]
    return [
        (f"Llama 3.1 405B, {LLAMA_MICROBATCHES} microbatches", llama),
        (f"100T dense, {DENSE_MICROBATCHES:,} microbatches", dense),
        ("100T scenarios as they are", whole),
    ]


def run_process(command: Sequence[str]) -> Cost:
    """Runs a command to its end.

    Raises:
        SystemExit: it failed.
    """
    with tempfile.TemporaryFile() as output:
        begin_s = time.perf_counter()
        actions = [(os.POSIX_SPAWN_DUP2, output.fileno(), 1)]
        child = os.posix_spawn(command[0], command, os.environ, file_actions=actions)
        _, status, usage = os.wait4(child, 0)
        wall_s = time.perf_counter() - begin_s
    if os.waitstatus_to_exitcode(status):
        sys.exit(f"{' '.join(command)} ended with status {os.waitstatus_to_exitcode(status)}")
    unit = 1 if sys.platform == "darwin" else KIB
    return Cost(wall_s=wall_s, peak_bytes=usage.ru_maxrss * unit)


def measure(case: Case, *, shardsim: str, repeats: int) -> str:
    """Returns the table line of a case."""
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "result.json"
        command = [shardsim, "run", *case.arguments, "--quiet", "--json", str(result)]
        costs = [run_process(command) for _ in range(repeats)]
        report = json.loads(result.read_text(encoding="utf-8"))
    engine, fits = report["engine"], "yes" if report["memory"]["fits"] else "no"
    wall_s, peak_mib = median(cost.wall_s for cost in costs), median(cost.peak_bytes for cost in costs) / MIB
    return (
        f"| {case.name} | {report['scenario']['devices']:,} | {fits} | {wall_s:.2f} s | {engine['wall_s']:.2f} s "
        f"| {engine['events']:,} | {engine['events'] / engine['wall_s'] / 1e6:.1f} M | {peak_mib:.0f} MiB |"
    )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=1, help="counted processes a row (1)")
    parser.add_argument("--command", default="", help="the shardsim command, if not the one beside this Python")
    options = parser.parse_args()
    beside = Path(sys.executable).parent / "shardsim"
    shardsim = options.command or (str(beside) if beside.exists() else shutil.which("shardsim"))
    if not shardsim:
        sys.exit("shardsim is not installed; pip install -e . puts its command beside this Python")
    groups = cases()
    run_process([shardsim, "run", *groups[0][1][0].arguments, "--quiet"])
    run_process([shardsim, "--help"])
    help_s = median(run_process([shardsim, "--help"]).wall_s for _ in range(5))
    print(f"shardsim --help: {help_s:.2f} s; {os.cpu_count()} processors")
    print("\n| job | devices | fits | wall | simulation | events | events a second | memory |")
    print("| --- | --: | --- | --: | --: | --: | --: | --: |")
    for title, group in groups:
        print(f"| **{title}** | | | | | | | |")
        for case in group:
            print(measure(case, shardsim=shardsim, repeats=options.repeats), flush=True)


if __name__ == "__main__":
    main()
