"""Measures how long the memory of one layout takes, without its time, for a model of 128 layers.

Run `python benchmarks/memory_evaluation.py [repeats]`; the default is 50. The first evaluation of each layout, which
builds the model and the order of the schedule, is not counted.
"""

from __future__ import annotations

import sys
import time
from statistics import median

from simulator.cluster import load_profile
from simulator.config.scenario import Scenario
from simulator.cost.validity import broken_rules
from simulator.lowering.evaluation import evaluate
from simulator.model.spec import ModelSpec
from simulator.parallel.layout import Layout
from simulator.parallel.training import Recompute, Training

MODEL = ModelSpec(
    name="dense-128", layers=128, hidden=16384, heads=128, kv_heads=8, ffn=53248, vocab=128_256, gated_mlp=True
)
DEVICES = 4096
LAYOUTS = (
    {"tp": 8, "pp": 1, "zero": 3},
    {"tp": 8, "pp": 8, "zero": 1},
    {"tp": 8, "pp": 16, "zero": 2},
    {"tp": 8, "pp": 16, "vpp": 4, "zero": 1},
    {"tp": 8, "pp": 32, "cp": 2, "zero": 1},
    {"tp": 8, "pp": 64, "zero": 1},
)


def job(layout: dict[str, int], recompute: Recompute) -> Scenario:
    """Returns a step of 2,048 sequences of 8,192 tokens on 4,096 devices."""
    return Scenario(
        name="benchmark",
        model=MODEL,
        cluster=load_profile("h100-superpod"),
        devices=DEVICES,
        layout=Layout(**layout),
        training=Training(sequence_length=8192, global_batch=2048, recompute=recompute),
    )


def main(repeats: int) -> None:
    """Prints one line a layout."""
    print(f"{'layout':44} {'recompute':10} {'peak':>10} {'median':>9} {'best':>9}")
    for layout in LAYOUTS:
        for recompute in (Recompute.NONE, Recompute.FULL):
            scenario = job(layout, recompute)
            if problems := broken_rules(scenario):
                raise SystemExit(problems[0])
            evaluate(scenario)
            times = []
            for _ in range(repeats):
                begin = time.perf_counter()
                found = evaluate(scenario)
                times.append(1e3 * (time.perf_counter() - begin))
            said = ", ".join(f"{name} {value}" for name, value in layout.items())
            peak = f"{found.peak_bytes / 2**30:.1f} GiB"
            print(f"{said:44} {recompute:10} {peak:>10} {median(times):6.2f} ms {min(times):6.2f} ms")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 50)
