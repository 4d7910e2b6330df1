"""Fit the coefficients of `simulator.cost.kernels` to measured tables, and print errors on held-out shapes.

Usage: python benchmarks/fit_kernels.py DIRECTORY [--out FILE.json]

DIRECTORY holds gemm.parquet, attention_forward.parquet and moe_grouped_gemm.parquet (see docs/compute-model.md for
their columns). Nothing else needs the tables. The split is by shape and seeded, so that a rerun prints the same.
Needs pandas, pyarrow and scipy, which the package itself does not.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.optimize import differential_evolution

from simulator.cost.attention import attention_time_s
from simulator.cost.kernels import KernelModel, gemm_time_s, grouped_gemm_time_s

SEED = 20261121
TRAIN_SHARE = 0.7
FIT_SHAPES = 2000
LARGE = 1024
TUNED_QUANTILE = 0.75
SMALL_SHAPE_WEIGHT = 0.3

GPU_TILES = ((64, 64), (64, 128), (128, 64), (128, 128), (128, 256), (256, 128))
CLUSTER_TILES = (*GPU_TILES, (256, 256))

# Peak [FLOP/s], memory [bytes/s] and its reached share (hbm_measured, weights of 2 GB and more), multiprocessors,
# tiles (256 x 256 where two multiprocessors or warpgroups share a tile), ceiling of E6.7 by number format.
PARTS = {
    "a100_sxm": (312e12, 2039e9, 0.829, 108, GPU_TILES, {"bfloat16": 0.869}),
    "h100_sxm": (989.4e12, 3350e9, 0.857, 132, CLUSTER_TILES, {"bfloat16": 0.803, "fp8": 0.709}),
    "b200_sxm": (2250e12, 7700e9, 0.842, 148, CLUSTER_TILES, {"bfloat16": 0.776, "fp8": 0.763}),
}
ATTENTION_HEAD_DIMS = (64, 128, 256)


def start_model(part: str) -> KernelModel:
    """Return the bf16 model of a part with its physical figures and coefficients to be fitted."""
    peak, memory, reached, multiprocessors, tiles, ceilings = PARTS[part]
    return KernelModel(
        peak_flops_per_s=peak,
        memory_bytes_per_s=memory,
        multiprocessors=multiprocessors,
        input_bytes=2,
        tiles=tiles,
        depth_multiple=1,
        gemm_ceiling_fraction=ceilings["bfloat16"],
        gemm_prologue_elements=100,
        gemm_tile_half_elements=5,
        memory_efficiency_fraction=reached,
        launch_s=3e-6,
        sustained_fraction=0.9,
        throttle_time_s=2e-3,
        quantise_launch_s=0,
        quantise_bytes_per_element=0,
        attention_head_dims=ATTENTION_HEAD_DIMS,
        attention_forward_fractions=(0.5, 0.6, 0.6),
        attention_backward_ratio=1,
        attention_half_sequence_tokens=500,
        attention_tail_fraction=1,
        attention_sustained_fraction=1,
        attention_peak_flops_per_s=peak,
        grouped_gemm_fraction=1,
    )


def split_by_shape(table: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return train and held-out rows; a row of `table` is one shape."""
    train = np.random.default_rng(SEED).random(len(table)) < TRAIN_SHARE
    return table[train], table[~train]


def fit(
    predict: Callable[[Sequence[float], pd.DataFrame], np.ndarray],
    bounds: Sequence[tuple[float, float]],
    train: pd.DataFrame,
    weight: np.ndarray,
) -> tuple[float, ...]:
    """Return the parameters with the least weighted mean absolute log error, each inside its bounds."""
    log_time = np.log(train.time_s.to_numpy())
    found = differential_evolution(
        lambda values: float(np.average(np.abs(np.log(predict(values, train)) - log_time), weights=weight)),
        bounds,
        seed=SEED,
        popsize=8,
        maxiter=60,
        tol=1e-4,
        polish=False,
    )
    return tuple(float(value) for value in found.x)


def errors(predicted: np.ndarray, table: pd.DataFrame) -> dict[str, float]:
    """Return median and 90th percentile of the absolute relative error, and the median signed error."""
    relative = predicted / table.time_s.to_numpy() - 1
    return {
        "shapes": len(table),
        "median": float(np.median(np.abs(relative))),
        "p90": float(np.quantile(np.abs(relative), 0.9)),
        "bias": float(np.median(relative)),
    }


def print_row(name: str, kind: str, rows: str, found: dict[str, float]) -> None:
    """Print one row of the Markdown table of errors."""
    print(
        f"| {name} | {kind} | {rows} | {found['shapes']} | {found['median']:.1%} | {found['p90']:.1%} "
        f"| {found['bias']:+.1%} |",
        flush=True,
    )


def fit_gemm(
    table: pd.DataFrame, base: KernelModel, part: str, number_format: str
) -> tuple[KernelModel, dict[str, float]]:
    """Fit dense GEMMs of one part and format; return the model and its errors on large held-out shapes."""
    rows = table[(table.gpu == part) & (table.gemm_dtype == number_format)]
    if number_format == "fp8":
        base = dataclasses.replace(base, peak_flops_per_s=2 * base.peak_flops_per_s, input_bytes=1)
        # SGLang's quantising kernel makes its largest GEMMs up to twice as slow as TRTLLM's, which calls cuBLASLt as
        # training frameworks do.
        rows = rows[rows.framework == "TRTLLM"]
    shapes = rows.groupby(["m", "n", "k"]).time_s.median().reset_index()  # across libraries
    train, held_out = split_by_shape(shapes)
    train = train.sample(min(FIT_SHAPES, len(train)), random_state=SEED)
    fp8 = number_format == "fp8"

    def model_of(values: Sequence[float]) -> KernelModel:
        ceiling, prologue, half, launch, sustained, throttle, quantise = values
        return dataclasses.replace(
            base,
            gemm_ceiling_fraction=ceiling,
            gemm_prologue_elements=prologue,
            gemm_tile_half_elements=half,
            launch_s=base.launch_s if fp8 else launch * 1e-6,
            quantise_launch_s=launch * 1e-6 if fp8 else 0,
            sustained_fraction=sustained,
            throttle_time_s=throttle * 1e-3,
            quantise_bytes_per_element=quantise,
        )

    def predict(values: Sequence[float], shapes: pd.DataFrame) -> np.ndarray:
        return gemm_time_s(model_of(values), m=shapes.m, n=shapes.n, k=shapes.k)

    def is_large(shapes: pd.DataFrame) -> pd.Series:
        return (shapes.m >= LARGE) & (shapes.n >= LARGE) & (shapes.k >= LARGE)

    ceiling = PARTS[part][-1][number_format]
    quantise = (0.0, 12.0) if fp8 else (0.0, 0.0)
    bounds = [(0.6 * ceiling, ceiling), (0, 600), (0, 60), (1, 20), (0.6, 1.0), (0.2, 30), quantise]
    weight = np.where(is_large(train), 1.0, SMALL_SHAPE_WEIGHT)
    values = fit(predict, bounds, train, weight)
    model = model_of(values)
    large = held_out[is_large(held_out)]
    kind = f"GEMM {number_format}"
    found = errors(predict(values, large), large)
    print_row(part, kind, "m, n, k >= 1024", found)
    print_row(part, kind, "all", errors(predict(values, held_out), held_out))
    slow = large[large.time_s > 1e-3]
    print_row(part, kind, "m, n, k >= 1024, > 1 ms", errors(predict(values, slow), slow))
    return model, found


def fit_attention(table: pd.DataFrame, model: KernelModel, part: str) -> tuple[KernelModel, dict[str, float]]:
    """Fit causal forward attention to the faster library; return the model and its errors.

    SGLang calls FlashAttention kernels and is the faster of the two stacks on every part; training calls the same
    family of kernels, so a median over the stacks would be too slow.
    """
    rows = table[(table.gpu == part) & (table.framework == "SGLang") & table.head_dim.isin(ATTENTION_HEAD_DIMS)]
    model = dataclasses.replace(model, attention_sustained_fraction=model.sustained_fraction)
    keys = ["batch_size", "sequence_length", "num_heads", "head_dim"]
    shapes = rows.groupby(keys).time_s.median().reset_index()  # across numbers of key-value heads
    shapes = shapes[shapes.batch_size * shapes.num_heads >= 8]
    train, held_out = split_by_shape(shapes)
    head_dims = tuple(d for d in ATTENTION_HEAD_DIMS if (shapes.head_dim == d).any())

    def model_of(values: Sequence[float]) -> KernelModel:
        return dataclasses.replace(
            model,
            attention_head_dims=head_dims,
            attention_forward_fractions=tuple(values[2:]),
            attention_half_sequence_tokens=values[0],
            attention_tail_fraction=values[1],
        )

    def predict(values: Sequence[float], shapes: pd.DataFrame) -> np.ndarray:
        return attention_time_s(
            model_of(values),
            batch=shapes.batch_size,
            heads=shapes.num_heads,
            query_tokens=shapes.sequence_length,
            key_tokens=shapes.sequence_length,
            head_dim_qk=shapes.head_dim,
            head_dim_v=shapes.head_dim,
        )

    bounds = [(0.0, 4000.0), (0.0, 1.0), *[(0.1, 0.95)] * len(head_dims)]
    values = fit(predict, bounds, train, np.ones(len(train)))
    found = errors(predict(values, held_out), held_out)
    print_row(part, "attention forward", "b a >= 8", found)
    for head_dim in head_dims:
        rows = held_out[held_out.head_dim == head_dim]
        print_row(part, "attention forward", f"d = {head_dim}", errors(predict(values, rows), rows))
    return model_of(values), found


def fit_grouped(table: pd.DataFrame, model: KernelModel, part: str) -> tuple[KernelModel, dict[str, float]]:
    """Read the grouped fraction off expert MLPs of a single expert rank; return the model and its errors.

    Only moe_ep_size = 1 is used: there the rows of the rank are tokens x topk beyond doubt. With more expert ranks
    the times of a100 and h100 stay equal up to moe_ep_size = topk, which contradicts the stated meaning of the
    column. The times fall in two heaps, kernels about as fast as dense ones and kernels at a third of that (the
    tables do not name the kernel); the upper quartile stands for the tuned kernels that training uses. The activation
    between the two grouped GEMMs and the gather and sum of rows are added as memory traffic.
    """
    rows = table[(table.gpu == part) & (table.moe_dtype == "bfloat16") & (table.moe_ep_size == 1)]
    rows = rows[rows.num_tokens * rows.topk >= 128 * rows.num_experts]
    train, held_out = split_by_shape(rows)

    def predict(values: Sequence[float], shapes: pd.DataFrame) -> np.ndarray:
        chosen = dataclasses.replace(model, grouped_gemm_fraction=values[0])
        per_expert = (shapes.num_tokens * shapes.topk / shapes.num_experts).to_numpy()
        width, hidden = (shapes.inter_size / shapes.moe_tp_size).to_numpy(), shapes.hidden_size.to_numpy()
        experts = shapes.num_experts.to_numpy()
        up = grouped_gemm_time_s(chosen, rows_per_expert=per_expert, experts=experts, n=2 * width, k=hidden)
        down = grouped_gemm_time_s(chosen, rows_per_expert=per_expert, experts=experts, n=hidden, k=width)
        moved = per_expert * experts * (6 * width + 4 * hidden)  # SwiGLU, then sum over the experts of a token
        return up + down + moved / chosen.reached_memory_bytes_per_s

    def ratio(shapes: pd.DataFrame) -> np.ndarray:
        return predict((1.0,), shapes) / shapes.time_s.to_numpy()

    values = (float(np.quantile(ratio(train), TUNED_QUANTILE)),)
    found = errors(predict(values, held_out), held_out)
    print_row(part, "grouped GEMM bf16", "ep = 1, >= 128 rows an expert", found)
    tuned = held_out[ratio(held_out) > np.median(ratio(train))]
    print_row(part, "grouped GEMM bf16", "the faster half of these", errors(predict(values, tuned), tuned))
    return dataclasses.replace(model, grouped_gemm_fraction=values[0]), found


def main() -> None:
    """Read the tables, fit every part and print the table of errors."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", type=Path, help="directory of the measured tables")
    parser.add_argument("--out", type=Path, help="write the fitted models and errors here as JSON")
    arguments = parser.parse_args()
    gemm = pd.read_parquet(arguments.directory / "gemm.parquet")
    attention = pd.read_parquet(arguments.directory / "attention_forward.parquet")
    experts = pd.read_parquet(arguments.directory / "moe_grouped_gemm.parquet")
    print("| part | kernel | held-out shapes | number | median | p90 | signed median |")
    print("| --- | --- | --- | --: | --: | --: | --: |")
    result: dict[str, dict[str, object]] = {}
    for part, (*_, ceilings) in PARTS.items():
        model = start_model(part)
        for number_format in ceilings:
            model, found = fit_gemm(gemm, model, part, number_format)
            record: dict[str, object] = {"gemm_error": found}
            if number_format == "bfloat16":
                model, record["attention_error"] = fit_attention(attention, model, part)
                model, record["grouped_error"] = fit_grouped(experts, model, part)
            result[f"{part}/{number_format}"] = {"model": dataclasses.asdict(model), **record}
    if arguments.out:
        arguments.out.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
