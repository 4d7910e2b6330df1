"""FLOPs: what the operators add up to, against the closed forms of the literature and printed step times."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest

from simulator.cost.attention import attention_flops
from simulator.cost.pricing import StageCosts
from simulator.cost.stage_memory import MemoryRules
from simulator.model.decoder import build_model
from simulator.model.kernels import CrossEntropy, Kernels
from simulator.model.layers import Model
from simulator.model.operators import AttentionCore, MatMul
from simulator.model.tensors import TensorAxis, Tokens
from simulator.parallel.assumptions import Assumptions, AttentionKernel, FlopsConvention
from simulator.parallel.layout import Layout
from simulator.parallel.training import Recompute, Training
from simulator.report.flops import StepFlops, step_flops
from tests.model.architectures import gpt, model
from tests.oracles import Record, each
from tests.parallel.jobs import degrees, priced, workload

NOTHING_RECOMPUTED = StageCosts(
    stages=(),
    ports=(),
    boundary_bytes=0,
    loss_bytes=0,
    memory=MemoryRules(
        workload=workload(1),
        degrees=degrees(),
        training=Training(sequence_length=1, global_batch=1),
        assumptions=Assumptions(),
        has_experts=False,
    ),
)
CONVENTIONS = {"none": FlopsConvention.MEGATRON, "half": FlopsConvention.CAUSAL}


def _model_flops_per_token(whole: Model, convention: FlopsConvention) -> float:
    training = Training(sequence_length=whole.sequence_length, global_batch=3)
    flops = step_flops(whole, NOTHING_RECOMPUTED, training, convention)
    assert flops.hardware == flops.model
    return flops.model / (3 * whole.sequence_length)


def _norm_parameters(whole: Model) -> int:
    layers = (whole.embedding, *whole.layers, whole.head)
    return sum(weight.count for layer in layers for weight in layer.weights if len(weight.axes) == 1)


@each("flops", "flops.token.")
def test_model_flops_of_a_token_are_three_forward_passes(record: Record) -> None:
    whole = model(record.inputs["model"], record.inputs["seq"])
    convention = record.id.rsplit(".", 1)[1]
    if convention in CONVENTIONS:
        assert record.agrees_with(_model_flops_per_token(whole, CONVENTIONS[convention]))
        return
    # Exact: (s + 1) / 2 keys a token, as the attention kernel counts.
    s = record.inputs["seq"]
    attention = sum(
        float(
            attention_flops(
                batch=1,
                heads=core.heads,
                query_tokens=s,
                key_tokens=s,
                head_dim_qk=core.qk_head_dim,
                head_dim_v=core.value_head_dim,
                causal=True,
            )
        )
        for layer in whole.layers
        for core in layer.operators
        if isinstance(core, AttentionCore)
    )
    assert record.agrees_with(3 * (whole.matmul_flops_per_token + attention / s))


@each("flops", "flops.lm_head.")
def test_the_head_is_a_gemm_over_the_unpadded_vocabulary(record: Record) -> None:
    head = model(record.inputs["model"]).head
    (projection,) = [operator for operator in head.operators if isinstance(operator, MatMul)]
    assert record.agrees_with(3 * projection.forward_flops_per_token)


@each("flops", "flops.6n.")
def test_6n_counts_both_tables(record: Record) -> None:
    assert record.agrees_with(_model_flops_per_token(model(record.inputs["model"]), FlopsConvention.SIX_N))


@each("flops", "flops.torchtitan.")
def test_torchtitan_counts_norm_scales_as_if_they_were_matrices(record: Record) -> None:
    whole = model(record.inputs["model"], record.inputs["seq"])
    ours = _model_flops_per_token(whole, FlopsConvention.MEGATRON)
    assert record.agrees_with(ours + 6 * _norm_parameters(whole))


@each("flops", "flops.nemo.")
def test_the_causal_convention_is_nemos(record: Record) -> None:
    whole = model(record.inputs["model"], record.inputs["seq"])
    assert record.agrees_with(_model_flops_per_token(whole, FlopsConvention.CAUSAL))


@each("flops", "flops.run.")
def test_a_run_takes_6nd(record: Record) -> None:
    name = record.id.removeprefix("flops.run.")
    whole = model(name, 2048)
    assert whole.num_parameters == record.inputs["parameters"]
    training = Training(sequence_length=20_000, global_batch=record.inputs["tokens"] // 20_000)
    assert record.agrees_with(step_flops(whole, NOTHING_RECOMPUTED, training, FlopsConvention.SIX_N).model)


@each("flops", "flops.deepseek-v3.tflops")
def test_deepseek_v3_reaches_the_printed_rate_in_the_printed_time(record: Record) -> None:
    inputs = record.inputs
    convention = FlopsConvention.CAUSAL if record.id.endswith("_causal") else FlopsConvention.MEGATRON
    training = Training(sequence_length=inputs["seq"], global_batch=inputs["global_batch"])
    flops = step_flops(model(inputs["model"], inputs["seq"]), NOTHING_RECOMPUTED, training, convention)
    assert record.agrees_with(flops.model / inputs["step_time_s"] / inputs["devices"] / 1e12)


@cache
def _gpt_step(layers: int, hidden: int, vocab: int, seq: int, batch: int, recompute: Recompute) -> StepFlops:
    """The FLOPs of a step of a GPT model with unfused attention, through the prices of its only stage."""
    training = Training(sequence_length=seq, global_batch=batch, recompute=recompute)
    assumptions = Assumptions(attention_kernel=AttentionKernel.UNFUSED)
    spec = gpt(layers=layers, hidden=hidden, heads=hidden // 64, vocab=vocab, positions=seq)
    job = priced(spec, Layout(), training, devices=1, assumptions=assumptions)
    return step_flops(job.model, job.costs, training, FlopsConvention.MEGATRON)


def _gpt_flops(inputs: dict[str, Any], recompute: Recompute) -> StepFlops:
    shape = (inputs["layers"], inputs["hidden"], inputs["vocab"], inputs["seq"], inputs["batch"])
    return _gpt_step(*shape, recompute)


@each("flops", "flops.megatron.")
def test_a_gpt_step_has_the_flops_of_the_megatron_papers(record: Record) -> None:
    recompute = {
        "no_recompute": Recompute.NONE,
        "full_recompute": Recompute.FULL,
        "selective_recompute": Recompute.SELECTIVE,
    }[record.id.split(".")[2]]
    flops = _gpt_flops(record.inputs, recompute)
    assert record.agrees_with(flops.hardware)
    assert flops.model == _gpt_flops(record.inputs, Recompute.NONE).hardware


@each("flops", "flops.mfu.korthikanti", "flops.hfu.korthikanti_exact")
def test_the_printed_step_time_gives_the_printed_utilisation(record: Record) -> None:
    inputs = record.inputs
    flops = _gpt_flops(inputs, Recompute.SELECTIVE)
    counted = flops.model if record.id.startswith("flops.mfu") else flops.hardware
    assert record.agrees_with(counted / (inputs["step_time_s"] * inputs["devices"] * inputs["peak_flops_per_s"]))


@each("flops", "flops.sc21.")
def test_the_sc21_models_have_the_flops_of_equation_3(record: Record) -> None:
    flops = _gpt_flops(record.inputs, Recompute.FULL).hardware
    if record.id.endswith("step_time"):
        rate = record.inputs["tflops_per_device"] * 1e12
        assert record.agrees_with(flops / (record.inputs["devices"] * rate))
    else:
        assert record.agrees_with(flops)


@each("flops", "flops.flash.")
def test_flash_attention_executes_two_gemms_forward_and_five_backward(record: Record) -> None:
    inputs = record.inputs
    s = inputs["seq"]
    flops = float(
        attention_flops(
            batch=inputs["batch"],
            heads=inputs["heads"],
            query_tokens=s,
            key_tokens=s,
            head_dim_qk=inputs["head_dim"],
            head_dim_v=inputs["head_dim"],
            causal=inputs["causal"],
            backward=".bwd." in record.id,
        )
    )
    # The record halves; the kernel counts the diagonal: (s + 1) / 2 keys in place of s / 2.
    assert record.agrees_with(flops * s / (s + 1) if inputs["causal"] else flops)


@each("flops", "flops.gemm.")
def test_a_multiply_add_is_two_flops(record: Record) -> None:
    m, n, k = (record.inputs[name] for name in "mnk")
    layer = MatMul(
        name="layer",
        tokens=Tokens.TENSOR,
        inputs=((TensorAxis.HIDDEN, k),),
        outputs=((TensorAxis.FFN, n),),
        weights=(),
    )
    assert record.agrees_with(m * layer.forward_flops_per_token)


@pytest.mark.parametrize("recompute", [Recompute.NONE, Recompute.SELECTIVE])
def test_selective_recompute_adds_nothing_to_flash_attention(recompute: Recompute) -> None:
    training = Training(sequence_length=2048, global_batch=8, recompute=recompute)
    spec = gpt(layers=4, hidden=1024, heads=16)
    job = priced(spec, Layout(), training, devices=1, assumptions=Assumptions())
    flops = step_flops(job.model, job.costs, training, FlopsConvention.MEGATRON)
    assert flops.hardware == flops.model


def test_fewer_keys_make_fewer_flops_and_6n_knows_no_sequence() -> None:
    short, long = model("llama3.1-8b", 4096), model("llama3.1-8b", 8192)
    for convention in (FlopsConvention.MEGATRON, FlopsConvention.CAUSAL):
        assert _model_flops_per_token(short, convention) < _model_flops_per_token(long, convention)
    six_n = FlopsConvention.SIX_N
    assert _model_flops_per_token(short, six_n) == _model_flops_per_token(long, six_n)


def test_a_model_built_for_another_kernel_computes_the_same() -> None:
    spec = gpt(layers=2, hidden=256, heads=4)
    flash = build_model(spec, sequence_length=512, kernels=Kernels(flash_attention=True))
    unfused = build_model(
        spec, sequence_length=512, kernels=Kernels(flash_attention=False, cross_entropy=CrossEntropy.FUSED)
    )
    assert flash.matmul_flops_per_token == unfused.matmul_flops_per_token
    assert flash.attention_flops_per_key == unfused.attention_flops_per_key
    assert flash.num_parameters == unfused.num_parameters
