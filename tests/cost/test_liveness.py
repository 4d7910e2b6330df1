"""Which tensors live when in the two passes of a layer, and the bytes at its highest points.

Shapes are small enough to add up by hand. LLAMA, a token in 16 bits: hidden 8 (16 bytes), queries 4 x 4 (32), keys and
values 2 x 4 each (16), MLP width 24 (48), one fp32 statistic for each norm and head (4). A microbatch has 8 tokens.
"""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.cost.liveness import layer_tapes
from simulator.cost.memory import MEMORY, Memory
from simulator.cost.tape import Splits, Use, WeightGradients
from simulator.model.decoder import build_model
from simulator.model.kernels import CrossEntropy, ExpertWeighting, Kernels
from simulator.model.layers import Layer, LayerKind
from simulator.model.spec import Experts, LatentAttention, ModelSpec, NormPlacement
from simulator.parallel.layout import ContextMethod
from simulator.parallel.recompute import NOTHING, RecomputeChoice
from simulator.parallel.sharding import Workload, tensor_bytes
from simulator.parallel.training import Dtype, RecomputedOperators
from tests.cost.tapes import Played, both_passes, splits
from tests.model.architectures import gpt, model, specs
from tests.parallel.jobs import degrees, workload

LLAMA = ModelSpec(name="llama", layers=1, hidden=8, heads=4, kv_heads=2, head_dim=4, ffn=24, vocab=16)
ROUTED = LLAMA.model_copy(update={"name": "routed", "experts": Experts(count=4, top_k=2, ffn=12, shared=1)})
LATENT = LLAMA.model_copy(
    update={
        "name": "latent",
        "kv_heads": None,
        "head_dim": None,
        "latent_attention": LatentAttention(
            query_rank=4, kv_rank=4, nope_head_dim=4, rope_head_dim=2, value_head_dim=4
        ),
    }
)
TOKENS = 8
X, F = 16 * TOKENS, 48 * TOKENS
"""Bytes of a hidden tensor (2h a token) and of one of the MLP's (2f a token)."""
FULL = RecomputeChoice(whole=True)
HALF = RecomputeChoice(whole=True, keeps_every_other_matmul=True)


def _layer(spec: ModelSpec = LLAMA, **kernels: Any) -> Layer:
    return build_model(spec, sequence_length=TOKENS, kernels=Kernels(**kernels)).layers[0]


def _kept(layer: Layer, choice: RecomputeChoice = NOTHING, cuts: Splits | None = None) -> set[str]:
    return {tensor.name for tensor in layer_tapes(layer, choice, cuts or splits()).kept}


def _kept_bytes(
    layer: Layer, choice: RecomputeChoice = NOTHING, cuts: Splits | None = None, shape: Workload | None = None
) -> int:
    kept = layer_tapes(layer, choice, cuts or splits()).kept
    return sum(int(tensor_bytes(tensor, shape or workload(TOKENS), degrees())) for tensor in kept)


def _logit_copies(passed: Played, before: int = 0) -> float:
    """The highest point of logits, in copies of 2 bytes a logit: 8 tokens x 16 words."""
    level = highest = before
    for number, sign in passed.swing.events:
        held = passed.swing.held[number]
        if held.category is Memory.LOGITS:
            level += sign * int(held.bytes)
            highest = max(highest, level)
    return highest / (2 * TOKENS * 16)


# A Llama layer with a flash kernel.


def test_a_forward_pass_leaves_what_it_keeps_and_its_output_in_place_of_its_input() -> None:
    """E3.6: 8h + 4·a·d + 4·g·d + 6f = 64 + 64 + 32 + 144 = 304 bytes a token, statistics 4a + 8 = 24."""
    tapes, forward, _ = both_passes(_layer())
    assert forward.changes[-1] == (304 + 24) * TOKENS == 2624
    assert forward.names(-1) == {tensor.name for tensor in tapes.kept} | {"layer output"}


def test_the_highest_point_of_a_forward_pass_is_its_last_sum() -> None:
    """All that is kept, the MLP's output and its sum with the residual stream; the input was there before."""
    _, forward, _ = both_passes(_layer())
    assert forward.highest == 2624 - X + X + X
    at = forward.changes.index(forward.highest)
    assert {"mlp branch", "layer output", "layer input"} <= forward.names(at)


def test_the_highest_point_of_a_backward_pass_is_that_of_swiglu() -> None:
    """Gradients of product, gate and up beside all that is kept but the product itself: F + 2F - F = 2F.

    Measured on Llama 3 70B and 405B (SimuMax B200, stages without head).
    """
    _, _, backward = both_passes(_layer())
    assert backward.highest == 2 * F == 768
    alive = backward.names(backward.changes.index(768))
    assert {"gradient of mlp down input", "gradient of mlp gate output", "gradient of mlp up output"} <= alive
    assert "mlp down input" not in alive
    assert {"mlp gate output", "mlp up output", "layer input", "gradient of layer output"} <= alive


def test_a_backward_pass_frees_what_the_forward_pass_kept() -> None:
    tapes, _, backward = both_passes(_layer())
    assert backward.changes[-1] == -2624
    assert backward.names(-1) == {tapes.handed_gradient}


def test_the_gradient_of_the_residual_stream_is_one_buffer_through_the_layer() -> None:
    tapes, _, backward = both_passes(_layer())
    assert tapes.given_gradient == tapes.handed_gradient == "gradient of layer output"
    for norm, stream in (("attention norm", "layer input"), ("mlp norm", "residual after attention")):
        assert backward.times_allocated(f"gradient of {stream}") == 0
        # What the norm adds to it is there only while it is added.
        assert backward.times_allocated(f"gradient of {stream}, by {norm}") == 1
    assert len(backward.alive_with("gradient of layer output")) == len(backward.live)


def test_behind_a_norm_the_gradient_of_the_residual_stream_is_another_one() -> None:
    after = LLAMA.model_copy(update={"norm_placement": NormPlacement.POST})
    tapes, _, backward = both_passes(_layer(after))
    assert tapes.given_gradient == "gradient of layer output"
    assert tapes.handed_gradient != tapes.given_gradient
    assert backward.names(-1) == {tapes.handed_gradient}


def test_an_embedding_hands_on_no_gradient() -> None:
    embedding = build_model(LLAMA, sequence_length=TOKENS).embedding
    tapes, forward, backward = both_passes(embedding)
    assert tapes.handed_gradient == ""
    assert forward.names(-1) == {"token ids", embedding.output}
    assert backward.names(-1) == set()


# Sequence parallelism.


def test_gathered_copies_exist_only_with_sequence_parallelism() -> None:
    names = {"gathered attention norm output", "gathered mlp norm output", "projected attention", "mlp result"}
    for sequence in (False, True):
        for passed in both_passes(_layer(), cuts=splits(sequence=sequence))[1:]:
            made = {passed.entries[number].name for number, _ in passed.swing.events}
            assert bool(made & names) is sequence


def test_gathered_copies_are_freed_in_each_pass_and_made_again_backward() -> None:
    """Korthikanti 2022, section 4.2.2: only the local part is saved; backward gathers it again for weight gradients."""
    tapes, forward, backward = both_passes(_layer(), cuts=splits(sequence=True), cut=degrees(tp=2))
    assert not any(tensor.name.startswith("gathered") for tensor in tapes.kept)
    for passed in (forward, backward):
        for name in ("gathered attention norm output", "gathered mlp norm output"):
            assert passed.times_allocated(name) >= 1
            assert name not in passed.names(-1)
        assert passed.bytes_of("gathered mlp norm output") == X == 2 * passed.bytes_of("mlp norm output")


def test_sequence_parallelism_halves_all_that_two_ranks_keep() -> None:
    _, forward, _ = both_passes(_layer(), cuts=splits(sequence=True), cut=degrees(tp=2))
    assert forward.changes[-1] == 2624 // 2


# Recompute.


def test_full_recompute_keeps_the_input_and_restores_the_layer_in_backward() -> None:
    """Backward: the layer's 2,624 bytes less the input that was kept, then SwiGLU's 2F on top; nothing stays."""
    tapes, forward, backward = both_passes(_layer(), choice=FULL)
    assert [tensor.name for tensor in tapes.kept] == ["layer input"]
    assert forward.changes[-1] == X
    assert backward.highest == 2624 - X + 2 * F
    assert backward.changes[-1] == -X
    assert backward.names(-1) == {tapes.handed_gradient}


def test_a_recomputed_layer_makes_each_tensor_once_and_its_output_not_to_keep() -> None:
    _, _, backward = both_passes(_layer(), choice=FULL)
    for name in _kept(_layer()) - {"layer input"}:
        assert backward.times_allocated(name) == 1, name
    assert not backward.alive_with("layer output", "gradient of mlp down input")


ATTENTION = {"attention norm output", "attention norm statistics", "query", "key", "value"}
MLP = {"mlp norm output", "mlp norm statistics", "mlp gate output", "mlp up output", "mlp down input"}
EXPERTS = {
    "mlp norm output",
    "mlp norm statistics",
    "router logits",
    "chosen experts",
    "expert input",
    "expert gate output",
    "expert up output",
    "expert down input",
    "shared experts gate output",
    "shared experts up output",
    "shared experts down input",
}
SCORES = {"softmax output", "softmax dropout mask", "dropped softmax"}
NORMS = {f"{block} norm {made}" for block in ("attention", "mlp") for made in ("output", "statistics")}
LATENT_NORMS = {f"{name} latent norm {made}" for name in ("query", "key-value") for made in ("output", "statistics")}
UNFUSED = {"flash_attention": False}


@pytest.mark.parametrize(
    ("spec", "kernels", "name", "dropped", "added"),
    [
        (LLAMA, {}, "norm", NORMS, set()),
        (LATENT, {}, "norm", NORMS | LATENT_NORMS, set()),
        (LLAMA, {}, "activation", {"mlp down input"}, set()),
        (ROUTED, {}, "activation", {"expert down input", "shared experts down input"}, set()),
        # A flash kernel makes its scores again by itself; the unfused core drops what it made but its result.
        (LLAMA, {}, "core_attention", set(), set()),
        (gpt(layers=1, hidden=8, heads=2), UNFUSED, "core_attention", SCORES, set()),
        # The shared rotary key is read, not saved, unless rotation is run again.
        (LATENT, {}, "latent_up_projection", {"query", "key", "value"}, {"shared rotary key"}),
        (LLAMA, {}, "mlp", MLP, set()),
        (ROUTED, {}, "mlp", set(), set()),
        (ROUTED, {}, "experts", EXPERTS, set()),
        (LLAMA, {}, "experts", set(), set()),
        # A checkpointed block's sum is its result, which the next norm saves.
        (LLAMA, {}, "attention", ATTENTION | {"attention output", "quantised attention output", "log-sum-exp"}, set()),
    ],
)
def test_recompute_of_an_operator_drops_its_tensors_alone(
    spec: ModelSpec, kernels: dict[str, Any], name: str, dropped: set[str], added: set[str]
) -> None:
    """Megatron-LM, `--recompute-modules`: norms, activations and up-projections discard their outputs, core attention
    and whole blocks are checkpoints, whose results the next operator saves."""
    layer = _layer(spec, **kernels)
    choice = RecomputeChoice(names=frozenset({name}))
    assert _kept(layer) - _kept(layer, choice) == dropped
    assert _kept(layer, choice) - _kept(layer) == added
    tapes, _, backward = both_passes(layer, choice=choice)
    for restored in dropped:
        assert backward.times_allocated(restored) == 1, restored
    assert backward.names(-1) == {tapes.handed_gradient}


def test_every_other_matmul_keeps_63_5_kb_of_a_token_of_llama_3_8b() -> None:
    """torchtitan's selective operators: input h, wq q, wv kv, attention q, w1 f, w2 h, and its log-sum-exp.

    2·(4096 + 4096 + 1024 + 4096 + 14336 + 4096) = 63,488 bytes, and 4 x 32 heads; read off its profile of live tensors.
    """
    layer = model("llama3.1-8b", 1).layers[0]
    assert _kept(layer, HALF) == {
        "layer input",
        "unrotated query",
        "value",
        "attention output",
        "log-sum-exp",
        "mlp gate output",
        "mlp branch",
    }
    assert _kept_bytes(layer, HALF, shape=workload(1)) == 63_488 + 128


def test_every_other_matmul_makes_again_what_it_did_not_keep_only() -> None:
    _, _, backward = both_passes(_layer(), choice=HALF)
    for name in ("unrotated query", "value", "attention output", "log-sum-exp", "mlp gate output"):
        assert backward.times_allocated(name) == 0, name
    for name in ("unrotated key", "query", "key", "mlp up output", "mlp down input", "residual after attention"):
        assert backward.times_allocated(name) == 1, name


# Kernels that are not fused.


def test_an_unfused_norm_keeps_an_fp32_copy_and_the_normalised_tensor_in_place_of_its_input() -> None:
    """4h + 2h beside the output, for 2h: 4h more a norm (eager RMSNorm; fits torchtune's 141.8 KB a token within 2 %).

    Two norms, h = 8: 64 bytes a token more.
    """
    fused, unfused = _layer(), _layer(fused_norm=False)
    assert _kept_bytes(unfused) - _kept_bytes(fused) == 2 * 4 * 8 * TOKENS
    assert {"layer input", "residual after attention"}.isdisjoint(_kept(unfused))


def test_an_unfused_norm_lets_the_layers_input_go() -> None:
    _, forward, _ = both_passes(_layer(fused_norm=False))
    assert "layer input" not in forward.names(-1)
    assert forward.changes[-1] == _kept_bytes(_layer(fused_norm=False)) + X - X


def test_an_unfused_activation_keeps_the_activated_gate() -> None:
    assert _kept(_layer(fused_activation=False)) - _kept(_layer()) == {"mlp activated gate"}
    assert _kept_bytes(_layer(fused_activation=False)) - _kept_bytes(_layer()) == F


def test_expanded_keys_and_values_are_kept_for_all_heads() -> None:
    """2·2·(a·d - g·d) bytes a token more: 4·(16 - 8) = 32 (torchtune 3B: 1.88 GB of its 64.4)."""
    expanded = _layer(expanded_kv=True)
    assert _kept_bytes(expanded) - _kept_bytes(_layer()) == 32 * TOKENS
    assert {"key", "value"}.isdisjoint(_kept(expanded))
    assert _kept(_layer(LLAMA.model_copy(update={"kv_heads": 4}), expanded_kv=True)) == _kept(_layer())


@pytest.mark.parametrize(
    ("kind", "forward_copies", "backward_copies"),
    [
        # torch with fake tensors: 16-bit logits, fp32 copy and log-softmax; log-softmax and two fp32 gradients.
        (CrossEntropy.EAGER, 5, 6),
        # The same where the caller keeps the 16-bit logits over backward: AutoModel and torchtune, measured.
        (CrossEntropy.EAGER_KEPT, 5, 7),
        # Megatron-LM: 16-bit logits and their fp32 copy, which becomes the softmax; that and a 16-bit gradient.
        (CrossEntropy.UNFUSED, 3, 3),
        # Transformer Engine, Liger: the gradient is written over the logits.
        (CrossEntropy.FUSED, 1, 1),
    ],
)
def test_a_loss_holds_so_many_copies_of_the_logits(
    kind: CrossEntropy, forward_copies: int, backward_copies: int
) -> None:
    head = build_model(LLAMA, sequence_length=TOKENS, kernels=Kernels(cross_entropy=kind)).head
    tapes, forward, backward = both_passes(head)
    kept = sum(int(tensor_bytes(tensor, workload(TOKENS), degrees())) for tensor in tapes.kept if tensor.is_logits)
    assert _logit_copies(forward) == forward_copies
    assert _logit_copies(backward, before=kept) == backward_copies
    assert not any(
        entry.tensor and entry.tensor.is_logits for entry in map(backward.entries.__getitem__, backward.live[-1])
    )


# Experts.

DISPATCHER = ("sorted tokens", "dispatched tokens", "expert result as it came", "expert output")


def test_four_buffers_of_routed_tokens_live_at_combine() -> None:
    """Megatron-LM's dispatcher: its variables hold them until the layer returns; with the sums of both branches, the
    highest point of DeepSeek-V2's and V3's first stages (SimuMax B200: 4R + 2x above what is kept).

    R: 8 tokens x 2 copies x 16 bytes = 256.
    """
    shape = workload(TOKENS, top_k=2)
    tapes, forward, _ = both_passes(_layer(ROUTED), cuts=splits(experts=True), shape=shape, cut=degrees(ep=2))
    assert all(forward.bytes_of(name) == 2 * X for name in DISPATCHER)
    combined = forward.alive_with(*DISPATCHER, "routed branch", "shared experts branch")
    # All that is kept but the layer's input, which was there before.
    kept = forward.changes[-1] - X
    assert forward.changes[combined[0]] - kept == 4 * 2 * X + 2 * X
    assert forward.changes.index(forward.highest) in combined
    assert {tensor.name for tensor in tapes.kept}.isdisjoint(DISPATCHER)


def test_on_one_rank_dispatch_and_combine_copy_nothing() -> None:
    _, forward, _ = both_passes(_layer(ROUTED))
    made = {forward.entries[number].name for number, _ in forward.swing.events}
    assert len(made & set(DISPATCHER)) == 2


@pytest.mark.parametrize(
    ("weighting", "more", "bytes_per_copy"),
    [
        (ExpertWeighting.FUSED, set(), 0),
        (ExpertWeighting.OUTPUT, {"expert output"}, 16),
        (ExpertWeighting.ACTIVATION, {"expert product"}, 24),
    ],
)
def test_a_probability_keeps_what_it_multiplies(
    weighting: ExpertWeighting, more: set[str], bytes_per_copy: int
) -> None:
    """E3.8: x = 0, 2h = 16 or 2f_e = 24 bytes for each of the two copies of a token."""
    cuts, shape = splits(experts=True), workload(TOKENS, top_k=2)
    weighted, fused = _layer(ROUTED, expert_weighting=weighting), _layer(ROUTED)
    assert _kept(weighted, cuts=cuts) - _kept(fused, cuts=cuts) == more
    difference = _kept_bytes(weighted, cuts=cuts, shape=shape) - _kept_bytes(fused, cuts=cuts, shape=shape)
    assert difference == 2 * TOKENS * bytes_per_copy


def test_capacity_rounds_up_for_each_expert() -> None:
    """DeepSeek-V2, 4,096 tokens, 6 of 160 experts, factor 1: ceil(153.6) = 154 x 160 = 24,640 copies of 2·5120 bytes
    (SimuMax B200), not 24,576."""
    whole = model("deepseek-v2", 4096)
    shape = workload(4096, top_k=6, num_experts=160, expert_capacity=1.0)
    copies = whole.layers[-1].tensors["expert input"]
    assert tensor_bytes(copies, shape, degrees(ep=8)) == 24_640 * 2 * 5120
    assert tensor_bytes(copies, workload(4096, top_k=6, num_experts=160), degrees(ep=8)) == 24_576 * 2 * 5120


# Context parallelism.


def test_fp8_keeps_attentions_output_for_the_core_in_16_bits_and_for_the_projection_in_8() -> None:
    """Transformer Engine: 2·q bytes a token of a flash kernel's output, beside it q and an fp32 scale for 128."""
    layer, shape = model("llama3.1-8b", 1).layers[0], workload(1, compute=Dtype.FP8)
    kept = {
        tensor.name: tensor_bytes(tensor, shape, degrees()) for tensor in layer_tapes(layer, NOTHING, splits()).kept
    }
    assert kept["attention output"] == 2 * 4096
    assert kept["quantised attention output"] == 4096 + 4 * 4096 // 128
    assert tensor_bytes(layer.tensors["quantised attention output"], workload(1), degrees()) == 0


def test_ulysses_keeps_the_output_of_attention_before_and_after_its_all_to_all() -> None:
    """Transformer Engine: 2·T·q bytes a layer more; three measured rows of Llama 3 (768, 512 and 3,072 MiB)."""
    cuts = splits(context=ContextMethod.ULYSSES)
    assert _kept(_layer(), cuts=cuts) - _kept(_layer()) == {"attention output by heads"}
    assert _kept_bytes(_layer(), cuts=cuts) - _kept_bytes(_layer()) == 32 * TOKENS
    assert _kept(_layer(), cuts=splits(context=ContextMethod.RING)) == _kept(_layer())


def test_a_ring_has_two_chunks_of_keys_and_values_forward_and_their_gradients_backward() -> None:
    """8 tokens over two ranks; keys and values of 2 x 4 elements are 32 bytes a token: 2 x 4 x 32 and twice that."""
    name = "buffers of context parallel attention"
    cuts, cut = splits(context=ContextMethod.RING), degrees(cp=2)
    _, forward, backward = both_passes(_layer(), cuts=cuts, cut=cut)
    for passed, size in ((forward, 256), (backward, 512)):
        assert passed.times_allocated(name) == 1
        assert name not in passed.names(-1)
        sizes = {
            int(passed.swing.held[number].bytes)
            for number, _ in passed.swing.events
            if passed.entries[number].name == name
        }
        assert sizes == {size}
    assert not both_passes(_layer())[1].alive_with(name)


# Gradients of weights.


def _weight_gradients(passed: Played) -> set[str]:
    return {
        passed.entries[number].operator
        for number, _ in passed.swing.events
        if passed.entries[number].use is Use.WEIGHT_GRADIENT
    }


def test_gemms_add_gradients_to_resident_ones_but_norms_make_them() -> None:
    _, forward, backward = both_passes(_layer())
    assert _weight_gradients(forward) == set()
    assert _weight_gradients(backward) == {"attention norm", "mlp norm"}


def test_temporary_gradients_are_freed_within_their_operator() -> None:
    """The down projection: 24 x 8 weights of two bytes, there while its own backward runs."""
    _, _, backward = both_passes(_layer(), cuts=splits(gradients=WeightGradients.TEMPORARY))
    name = "gradients of the weights of mlp down projection, to be added"
    assert backward.bytes_of(name) == 2 * 24 * 8
    assert len(_weight_gradients(backward)) == 7
    assert not any(each.startswith("gradients of the weights") for each in backward.names(-1))
    for one in _weight_gradients(backward):
        for other in _weight_gradients(backward) - {one}:
            pair = (f"gradients of the weights of {each}, to be added" for each in (one, other))
            assert not backward.alive_with(*pair)


def test_kept_gradients_stay_in_the_type_of_their_buffers() -> None:
    """All 800 parameters: 8·(16 + 16) + 16·8 attention, 3·8·24 MLP, two norms of 8; four bytes each."""
    layer = _layer()
    assert layer.num_parameters == 976
    kept = splits(gradients=WeightGradients.KEPT, other_gradients=WeightGradients.KEPT)
    _, _, backward = both_passes(layer, cuts=kept)
    assert backward.swing.net[MEMORY.index(Memory.GRADIENTS)] == 4 * layer.num_parameters


def test_experts_and_dense_weights_have_gradients_by_their_own_rules() -> None:
    _, _, backward = both_passes(_layer(ROUTED), cuts=splits(expert_gradients=WeightGradients.KEPT))
    left = {name for name in backward.names(-1) if name.startswith("gradients")}
    assert left == {f"gradients of the weights of expert {name} projection" for name in ("gate and up", "down")}


# Whatever the model, what is recomputed and how it is cut.

KERNELS = st.builds(
    Kernels,
    flash_attention=st.booleans(),
    fused_norm=st.booleans(),
    fused_activation=st.booleans(),
    cross_entropy=st.sampled_from(CrossEntropy),
    expert_weighting=st.sampled_from(ExpertWeighting),
    expanded_kv=st.booleans(),
)
NAMES = st.frozensets(st.sampled_from([str(name) for name in RecomputedOperators]), min_size=1)
CHOICES = st.just(NOTHING) | st.just(FULL) | st.just(HALF) | st.builds(RecomputeChoice, names=NAMES)
SPLITS = st.builds(
    Splits,
    sequence=st.booleans(),
    experts=st.booleans(),
    context=st.sampled_from([*ContextMethod, None]),
    gradients=st.sampled_from(WeightGradients),
    expert_gradients=st.sampled_from(WeightGradients),
    other_gradients=st.sampled_from(WeightGradients),
    quantised=st.booleans(),
)


@given(spec=specs(), kernels=KERNELS, choice=CHOICES, cuts=SPLITS)
def test_both_passes_leave_only_what_they_hand_over(
    spec: ModelSpec, kernels: Kernels, choice: RecomputeChoice, cuts: Splits
) -> None:
    """And nothing is freed that is not there: `tests.cost.tapes` looks at every event."""
    whole = build_model(spec, sequence_length=64, kernels=kernels)
    shape = workload(64, top_k=spec.experts.top_k if spec.experts else 1)
    for layer in (whole.embedding, *dict.fromkeys(whole.layers), whole.head):
        chosen = choice if layer.kind in (LayerKind.DENSE, LayerKind.EXPERTS) else NOTHING
        tapes, forward, backward = both_passes(layer, choice=chosen, cuts=cuts, shape=shape)
        kept = {tensor.name for tensor in tapes.kept}
        assert kept <= forward.names(-1)
        left = len(forward.live[-1]) - len(kept)
        assert left == (layer.output is not None and forward.names(-1) != kept)
        weights = {number for number in backward.live[-1] if backward.entries[number].use is Use.WEIGHT_GRADIENT}
        assert {backward.entries[number].name for number in backward.live[-1] - weights} <= {tapes.handed_gradient}
        kept_apart = WeightGradients.KEPT in (cuts.gradients, cuts.expert_gradients, cuts.other_gradients)
        assert not weights or kept_apart


@given(spec=specs(), kernels=KERNELS, choice=CHOICES, cuts=SPLITS)
def test_the_highest_point_is_the_highest_of_all_levels(
    spec: ModelSpec, kernels: Kernels, choice: RecomputeChoice, cuts: Splits
) -> None:
    layer = build_model(spec, sequence_length=64, kernels=kernels).layers[0]
    for passed in both_passes(layer, choice=choice, cuts=cuts, shape=workload(64))[1:]:
        assert sum(passed.swing.peak) == passed.highest
        assert sum(passed.swing.net) == passed.changes[-1]


@given(spec=specs(), kernels=KERNELS, names=NAMES, cuts=SPLITS)
def test_more_recompute_never_keeps_more(
    spec: ModelSpec, kernels: Kernels, names: frozenset[str], cuts: Splits
) -> None:
    layer = build_model(spec, sequence_length=64, kernels=kernels).layers[0]
    some = RecomputeChoice(names=names)
    kept = [_kept_bytes(layer, choice, cuts, workload(64)) for choice in (FULL, some, NOTHING)]
    assert kept == sorted(kept)


def test_latents_that_are_expanded_again_are_stored_in_parts_and_gathered_again() -> None:
    """With sequence parallelism a rank keeps its share of the latents; their gather runs again with the projections."""
    layer = _layer(LATENT)
    choice = RecomputeChoice(names=frozenset({"latent_up_projection"}))
    tapes, forward, backward = both_passes(layer, choice=choice, cuts=splits(sequence=True))
    kept = {tensor.name for tensor in tapes.kept}
    assert {"query latent norm output", "key-value latent norm output", "shared rotary key"} <= kept
    assert not any(name.startswith("gathered") for name in kept)
    assert backward.times_allocated("gathered shared rotary key") == 1
    assert forward.times_allocated("gathered shared rotary key") == 1
