"""What the families have in common: their usual keys, biases, windows of attention, layers with experts, heads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from simulator.config.huggingface.keys import Keys
from simulator.config.wording import listed, shortened
from simulator.model.spec import ALL_LINEAR, Bias

Spec = dict[str, Any]
"""Keys of a model file with plain values; None: the default of the model file."""
HEADLESS_ENDING, LANGUAGE_MODEL_ENDINGS = "Model", ("LMHeadModel", "LMHeadCustomModel")
OTHER_HEADS = ("ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering", "EncoderModel")
"""Endings of classes with heads that a decoder's specification does not have."""


def decoder(keys: Keys, *, tied: bool, head_dim: int | None = None) -> Spec:
    """Returns the sizes that most decoders name alike: those of Llama, with their dense MLP.

    Args:
        keys: of the file.
        tied: the family's default of `tie_word_embeddings`.
        head_dim: its default of `head_dim`; None: hidden / heads.
    """
    hidden, heads = keys.count("hidden_size"), keys.count("num_attention_heads")
    return {
        "layers": keys.layers("num_hidden_layers"),
        "hidden": hidden,
        "heads": heads,
        "kv_heads": keys.count("num_key_value_heads", default=heads),
        "head_dim": keys.count("head_dim", default=head_dim or 0, least=1) or None,
        "ffn": keys.count("intermediate_size"),
        "vocab": keys.count("vocab_size"),
        "tied_embeddings": keys.flag("tie_word_embeddings", default=tied),
        **causal_head(keys),
    }


def gpt(keys: Keys, *, tied: bool) -> Spec:
    """Returns the sizes by the names of GPT-2, with LayerNorms and an MLP of two matrices and four times the width."""
    hidden = keys.count("n_embd", "hidden_size")
    return {
        "layers": keys.layers("n_layer", "num_hidden_layers"),
        "hidden": hidden,
        "heads": keys.count("n_head", "num_attention_heads"),
        "ffn": keys.count("n_inner", default=4 * hidden),
        "gated_mlp": False,
        "norm": "layernorm",
        "vocab": keys.count("vocab_size"),
        "tied_embeddings": keys.flag("tie_word_embeddings", default=tied),
        **causal_head(keys),
    }


def causal_head(keys: Keys) -> Spec:
    """Returns what stands behind a decoder: the class in `architectures` says it; default: a language model's head."""
    name = architecture(keys)
    if name.endswith(OTHER_HEADS):
        ending = next(ending for ending in OTHER_HEADS if name.endswith(ending))
        mend = f'write "{name.removesuffix(ending)}ForCausalLM" for the head of a language model'
        keys.refuse(
            "architectures", f"{shortened(name)} is not known", why="a model file cannot say its head", mend=mend
        )
    if name.endswith(HEADLESS_ENDING) and not name.endswith(LANGUAGE_MODEL_ENDINGS):
        return {"output_head": {"language_model": False}, "tied_embeddings": False}
    return {}


def architecture(keys: Keys) -> str:
    """Returns the class that the file was saved from, empty if it does not say."""
    return (keys.texts("architectures") or ("",))[0] if keys.has("architectures") else ""


def biases(*, qkv: bool = False, output: bool = False, mlp: bool = False, router: bool = False) -> bool | list[Bias]:
    """Returns the linear layers that have a bias, in the shortest words."""
    given = {Bias.QKV: qkv, Bias.ATTENTION_OUTPUT: output, Bias.MLP: mlp, Bias.ROUTER: router}
    present = [bias for bias, has_bias in given.items() if has_bias]
    return set(present) == ALL_LINEAR or (present or False)


def one_window(keys: Keys, *, default: int | None = None) -> list[int | str]:
    """Returns the window of a model whose layers all have the same: `sliding_window`, where null means none."""
    absent = keys.root.child("sliding_window") is None
    if not keys.has("sliding_window") and not (absent and default):
        return ["all"]
    return [keys.count("sliding_window", default=default)]


def windows(keys: Keys, sliding: Sequence[bool], *, default: int) -> list[int | str]:
    """Returns the window of each layer, or of the shortest run of layers that repeats itself.

    Args:
        keys: of the file.
        sliding: for each layer, whether the family gives it a window; `layer_types` overrules it.
        default: the family's default of `sliding_window`.
    """
    kinds = keys.texts("layer_types")
    if kinds is not None:
        strange = [kind for kind in kinds if kind not in ("full_attention", "sliding_attention")]
        if strange:
            problem = f"{shortened(strange[0])!r} is not full_attention or sliding_attention"
            keys.refuse("layer_types", problem, why="other kinds of layers are not known", mend="use another model")
        if len(kinds) != len(sliding):
            problem = f"lists {len(kinds)} layers, but num_hidden_layers is {len(sliding)}"
            keys.refuse("layer_types", problem, why="each layer has a kind", mend="list as many as there are layers")
            return ["all"]
        sliding = [kind == "sliding_attention" for kind in kinds]
    if not any(sliding):
        return ["all"]
    (window,) = one_window(keys, default=default)
    return [window if slides else "all" for slides in sliding[: _period(sliding)]]


def _period(items: Sequence[bool]) -> int:
    """Returns the length of the shortest run that, repeated and cut, gives the list (Knuth, Morris, Pratt 1977)."""
    borders = [0]  # of each prefix, the longest proper prefix that is its suffix too
    for item in items[1:]:
        length = borders[-1]
        while length and items[length] != item:
            length = borders[length - 1]
        borders.append(length + 1 if items[length] == item else 0)
    return len(items) - borders[-1]


def expert_layers(keys: Keys, key: str, present: Sequence[bool]) -> Spec:
    """Returns which layers have experts, as a model file says it; the key at fault if it cannot.

    Args:
        keys: of the file.
        key: what the pattern comes from.
        present: for each layer, whether it has experts.
    """
    places = [layer for layer, has_experts in enumerate(present) if has_experts]
    first, last = places[0], len(present) - 1
    every = places[1] - first if len(places) > 1 else 1 if first == last else first + 1
    dense = first - every + 1
    if dense < 0 or places != list(range(first, len(present), every)):
        why = "layers with experts follow some dense ones, and then stand at equal distances"
        keys.refuse(key, "layers with experts form no pattern that is known", why=why, mend="use an even pattern")
        return {}
    return {"first_dense_layers": dense, "every": every}


def mixture(keys: Keys, spec: Spec, experts: Spec, present: Sequence[bool], *, key: str) -> Spec:
    """Returns the specification with experts in some layers, and a dense MLP only where a layer needs it.

    Args:
        keys: of the file.
        spec: the model without experts.
        experts: the experts of a layer.
        present: for each layer, whether it has experts.
        key: the key that says which layers, for messages.
    """
    if not any(present):
        return spec
    return {
        **spec,
        "ffn": None if all(present) else spec["ffn"],
        "experts": {**experts, **expert_layers(keys, key, present)},
    }


def head_of(keys: Keys, heads: Mapping[str, Spec]) -> Spec:
    """Returns the head by the ending of the class; without a class the first one."""
    name = architecture(keys)
    for ending, head in heads.items():
        if not name or name.endswith(ending):
            return head
    why = "the class decides what stands behind the last layer"
    mend = f"name a class that ends in {listed(list(heads))}"
    keys.refuse("architectures", f"{shortened(name)} is not known for {keys.model_type}", why=why, mend=mend)
    return next(iter(heads.values()))


def num_labels(keys: Keys) -> int:
    """Returns the classes of a classifier: the entries of `id2label`; default: 2."""
    labels = keys.root.child("id2label")
    if labels is not None and isinstance(labels.value, Mapping) and labels.value:
        return len(labels.value)
    return keys.count("num_labels", default=2)
