"""Llama and its kin, dense decoders: one function for each `model_type`, from its keys to those of a model file.

Defaults are those of the configuration classes of the transformers library, version 5.23.
"""

from __future__ import annotations

from simulator.config.huggingface.keys import Keys
from simulator.config.huggingface.parts import Spec, biases, decoder, one_window, windows


def llama(keys: Keys, *, tied: bool = False) -> Spec:
    """Llama 1 to 3, and all that share its class: biases only where `attention_bias` and `mlp_bias` say so."""
    attention = keys.flag("attention_bias", default=False)
    mlp = keys.flag("mlp_bias", default=False)
    return {**decoder(keys, tied=tied), "biases": biases(qkv=attention, output=attention, mlp=mlp)}


def smollm3(keys: Keys) -> Spec:
    """SmolLM3: Llama with a tied head; some layers go without rotary positions, which have no parameters."""
    return llama(keys, tied=True)


def arcee(keys: Keys) -> Spec:
    """Arcee: Llama with an MLP of two matrices (squared ReLU)."""
    return {**llama(keys), "gated_mlp": False}


def ernie4_5(keys: Keys) -> Spec:
    """ERNIE 4.5: Llama with heads of 128 and a tied head; `use_bias` for all biases."""
    return {**decoder(keys, tied=True, head_dim=128), "biases": keys.flag("use_bias", default=False)}


def seed_oss(keys: Keys) -> Spec:
    """Seed-OSS: Llama with heads of 128 and biases on queries, keys and values."""
    qkv, mlp = keys.flag("attention_bias", default=True), keys.flag("mlp_bias", default=False)
    return {
        **decoder(keys, tied=False, head_dim=128),
        "biases": biases(qkv=qkv, output=keys.flag("attention_out_bias", default=False), mlp=mlp),
        "dropout": keys.positive("residual_dropout", default=0.1),
    }


def glm(keys: Keys) -> Spec:
    """GLM-4 of 2024: Llama with heads of 128 and biases on queries, keys and values."""
    bias = keys.flag("attention_bias", default=True)
    return {**decoder(keys, tied=False, head_dim=128), "biases": biases(qkv=bias)}


def glm4(keys: Keys) -> Spec:
    """GLM-4 of 2025: the one of 2024 with norms around each block."""
    return {**glm(keys), "norm_placement": "sandwich"}


def nemotron(keys: Keys) -> Spec:
    """Nemotron: Llama with LayerNorms and an MLP of two matrices (squared ReLU)."""
    return {**llama(keys), "gated_mlp": False, "norm": "layernorm"}


def mistral(keys: Keys) -> Spec:
    """Mistral: Llama with one window for all layers."""
    return {**decoder(keys, tied=False), "attention": {"windows": one_window(keys, default=4096)}}


def phi(keys: Keys) -> Spec:
    """Phi 1 and 2: attention and MLP side by side behind one LayerNorm; biases everywhere, on the logits too."""
    spec = decoder(keys, tied=False)
    return {
        **spec,
        "attention": {"qk_norm": "head" if keys.flag("qk_layernorm", default=False) else "none"},
        "gated_mlp": False,
        "norm": "layernorm",
        "parallel_blocks": "shared_norm",
        "biases": True,
        "dropout": keys.positive("resid_pdrop", "embd_pdrop"),
        "output_head": spec.get("output_head", {"bias": True}),
    }


def phi3(keys: Keys) -> Spec:
    """Phi-3 and Phi-4: Llama with joined projections."""
    return {
        **decoder(keys, tied=False),
        "attention": {"windows": one_window(keys)},
        "dropout": keys.positive("resid_pdrop", "embd_pdrop"),
    }


def starcoder2(keys: Keys) -> Spec:
    """StarCoder 2: LayerNorms, an MLP of two matrices, biases everywhere."""
    return {
        **decoder(keys, tied=True),
        "attention": {"windows": one_window(keys)},
        "gated_mlp": False,
        "norm": "layernorm",
        "biases": keys.flag("use_bias", default=True),
        "dropout": keys.positive("residual_dropout", "embedding_dropout"),
    }


def stablelm(keys: Keys) -> Spec:
    """StableLM: Llama with LayerNorms; biases on queries, keys and values where the file says so."""
    if keys.flag("qk_layernorm", default=False):
        why = "each head would have a norm of its own"
        keys.refuse("qk_layernorm", "true is not known for stablelm", why=why, mend="set it to false")
    return {
        **decoder(keys, tied=False),
        "norm": "layernorm",
        "parallel_blocks": "shared_norm" if keys.flag("use_parallel_residual", default=False) else "none",
        "biases": biases(qkv=keys.flag("use_qkv_bias", default=False)),
        "dropout": keys.positive("hidden_dropout"),
    }


def qwen2(keys: Keys) -> Spec:
    """Qwen 2 and 2.5: Llama with biases on queries, keys and values; windows only if the file asks for them."""
    spec = {**decoder(keys, tied=False), "biases": biases(qkv=True)}
    return {**spec, "attention": {"windows": qwen_windows(keys, spec["layers"])}}


def qwen3(keys: Keys) -> Spec:
    """Qwen 3: Llama with norms on queries and keys and heads of 128."""
    bias = keys.flag("attention_bias", default=False)
    spec = {**decoder(keys, tied=False, head_dim=128), "biases": biases(qkv=bias, output=bias)}
    return {**spec, "attention": {"qk_norm": "head", "windows": qwen_windows(keys, spec["layers"])}}


def qwen_windows(keys: Keys, layers: int) -> list[int | str]:
    """Returns the windows of Qwen: layers from `max_window_layers` on, if `use_sliding_window`."""
    if not keys.flag("use_sliding_window", default=False):
        return ["all"]
    full = keys.count("max_window_layers", default=28, least=0)
    return windows(keys, [layer >= full for layer in range(layers)], default=4096)


def gemma(keys: Keys) -> Spec:
    """Gemma 1: Llama with heads of 256 and a tied head."""
    bias = keys.flag("attention_bias", default=False)
    return {**decoder(keys, tied=True, head_dim=256), "biases": biases(qkv=bias, output=bias)}


def gemma2(keys: Keys) -> Spec:
    """Gemma 2: norms around each block, a window in every other layer."""
    spec = gemma(keys)
    sliding = [layer % 2 == 0 for layer in range(spec["layers"])]
    return {**spec, "norm_placement": "sandwich", "attention": {"windows": windows(keys, sliding, default=4096)}}


def gemma3_text(keys: Keys) -> Spec:
    """Gemma 3: as Gemma 2, with norms on queries and keys and one full layer in six."""
    spec = gemma(keys)
    full = keys.count("sliding_window_pattern", default=6)
    sliding = [(layer + 1) % full > 0 for layer in range(spec["layers"])]
    attention = {"qk_norm": "head", "windows": windows(keys, sliding, default=4096)}
    return {**spec, "norm_placement": "sandwich", "attention": attention}


def gemma3(keys: Keys) -> Spec:
    """The text model of a Gemma 3 that sees images too; its vision tower is left out."""
    return gemma3_text(keys.inner("text_config", defaults=GEMMA3_TEXT))


GEMMA3_TEXT = {
    "vocab_size": 262_208,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
}
"""What the library fills in where `text_config` leaves a size out, as published files do (class Gemma3TextConfig)."""


def cohere(keys: Keys) -> Spec:
    """Command R: attention and MLP side by side behind one LayerNorm without a shift; no biases."""
    bias = keys.flag("attention_bias", default=False)
    return {
        **decoder(keys, tied=True),
        "norm": "layernorm_no_bias",
        "parallel_blocks": "shared_norm",
        "biases": biases(qkv=bias, output=bias),
        "attention": {"qk_norm": "all_heads" if keys.flag("use_qk_norm", default=False) else "none"},
    }


def cohere2(keys: Keys) -> Spec:
    """Command R7B and A: as Command R, with three layers of four in a window."""
    spec = cohere(keys)
    full = keys.count("sliding_window_pattern", default=4)
    sliding = [(layer + 1) % full > 0 for layer in range(spec["layers"])]
    return {**spec, "attention": {"windows": windows(keys, sliding, default=4096)}}


def olmo2(keys: Keys) -> Spec:
    """OLMo 2: Llama with norms on the output of each block, and over all heads of queries and of keys."""
    bias = keys.flag("attention_bias", default=False)
    return {
        **decoder(keys, tied=False),
        "norm_placement": "output",
        "attention": {"qk_norm": "all_heads"},
        "biases": biases(qkv=bias, output=bias),
    }


def olmo3(keys: Keys) -> Spec:
    """OLMo 3: OLMo 2 with three layers of four in a window."""
    spec = olmo2(keys)
    sliding = [(layer + 1) % 4 > 0 for layer in range(spec["layers"])]
    return {**spec, "attention": {"qk_norm": "all_heads", "windows": windows(keys, sliding, default=4096)}}


def exaone4(keys: Keys) -> Spec:
    """EXAONE 4: norms on the output of each block and on queries and keys, three layers of four in a window."""
    spec = decoder(keys, tied=False)
    full = keys.count("sliding_window_pattern", default=4)
    sliding = [(layer + 1) % full > 0 for layer in range(spec["layers"])]
    attention = {"qk_norm": "head", "windows": windows(keys, sliding, default=4096)}
    return {**spec, "norm_placement": "output", "attention": attention}
