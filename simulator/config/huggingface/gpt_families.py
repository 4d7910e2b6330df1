"""Dense decoders with LayerNorms, mostly before Llama: one function for each `model_type`.

Defaults are those of the configuration classes of the transformers library, version 5.23.
"""

from __future__ import annotations

from simulator.config.huggingface.keys import Keys
from simulator.config.huggingface.parts import Spec, biases, causal_head, decoder, gpt

OPT_POSITION_OFFSET = 2
"""Rows of OPT's position table in front of the first position (class OPTLearnedPositionalEmbedding)."""


def gpt2(keys: Keys) -> Spec:
    """GPT-2: learned positions, biases everywhere."""
    if keys.flag("add_cross_attention", default=False):
        why, mend = "a decoder of its own attends to itself only", "set it to false"
        keys.refuse("add_cross_attention", "true is not known for gpt2", why=why, mend=mend)
    return {
        **gpt(keys, tied=True),
        "positions": "learned",
        "max_positions": keys.count("n_positions", "max_position_embeddings", default=1024),
        "biases": True,
        "dropout": keys.positive("resid_pdrop", "embd_pdrop", default=0.1),
    }


def gpt_bigcode(keys: Keys) -> Spec:
    """StarCoder: GPT-2 with one key-value head."""
    return {**gpt2(keys), "kv_heads": 1 if keys.flag("multi_query", default=True) else None}


def gpt_neo(keys: Keys) -> Spec:
    """GPT-Neo: GPT-2 with local attention in every other layer and no biases on queries, keys and values."""
    hidden, layers = keys.count("hidden_size"), keys.layers("num_layers", "num_hidden_layers")
    sliding = [layer % 2 == 1 for layer in range(layers)]
    kinds = keys.texts("attention_layers")
    if kinds is not None and [kind == "local" for kind in kinds] != sliding:
        why, mend = "other patterns are not known for gpt_neo", "let global and local alternate, from global on"
        keys.refuse("attention_layers", "do not alternate", why=why, mend=mend)
    return {
        "layers": layers,
        "hidden": hidden,
        "heads": keys.count("num_heads", "num_attention_heads"),
        "attention": {"windows": ["all", keys.count("window_size", default=256)] if layers > 1 else ["all"]},
        "ffn": keys.count("intermediate_size", default=4 * hidden),
        "gated_mlp": False,
        "norm": "layernorm",
        "biases": biases(output=True, mlp=True),
        "dropout": keys.positive("resid_dropout", "embed_dropout"),
        "positions": "learned",
        "max_positions": keys.count("max_position_embeddings", default=2048),
        "vocab": keys.count("vocab_size"),
        "tied_embeddings": keys.flag("tie_word_embeddings", default=True),
        **causal_head(keys),
    }


def gptj(keys: Keys) -> Spec:
    """GPT-J and CodeGen: attention and MLP side by side behind one norm; biases on the MLP and the logits."""
    spec = gpt(keys, tied=False)
    return {
        **spec,
        "parallel_blocks": "shared_norm",
        "biases": biases(mlp=True),
        "dropout": keys.positive("resid_pdrop", "embd_pdrop"),
        "output_head": spec.get("output_head", {"bias": True}),
    }


def gpt_neox(keys: Keys) -> Spec:
    """GPT-NeoX and Pythia: attention and MLP side by side, each behind its own norm; biases everywhere."""
    attention = keys.flag("attention_bias", default=True)
    return {
        **decoder(keys, tied=False),
        "kv_heads": None,
        "gated_mlp": False,
        "norm": "layernorm",
        "parallel_blocks": "own_norms" if keys.flag("use_parallel_residual", default=True) else "none",
        "biases": biases(qkv=attention, output=attention, mlp=True),
        "dropout": keys.positive("hidden_dropout"),
    }


def opt(keys: Keys) -> Spec:
    """OPT: GPT-2 with ReLU; the 350M model has its norms behind the blocks."""
    hidden, bias = keys.count("hidden_size"), keys.flag("enable_bias", default=True)
    if keys.count("word_embed_proj_dim", default=hidden) != hidden:
        why = "tables narrower than the model need projections that a model file does not have (OPT 350M)"
        keys.refuse("word_embed_proj_dim", "differs from hidden_size", why=why, mend="use another size of OPT")
    if not keys.flag("layer_norm_elementwise_affine", default=True):
        why = "norms without parameters are not known"
        keys.refuse("layer_norm_elementwise_affine", "false is not known", why=why, mend="set it to true")
    if keys.flag("_remove_final_layer_norm", default=False):
        why = "a stack with its norms before the blocks ends with a norm"
        keys.refuse("_remove_final_layer_norm", "true is not known", why=why, mend="set it to false")
    return {
        "layers": keys.layers("num_hidden_layers"),
        "hidden": hidden,
        "heads": keys.count("num_attention_heads"),
        "ffn": keys.count("ffn_dim"),
        "gated_mlp": False,
        "norm": "layernorm",
        "norm_placement": "pre" if keys.flag("do_layer_norm_before", default=True) else "post",
        "biases": biases(qkv=bias, output=bias, mlp=bias),
        "dropout": keys.positive("dropout", default=0.1),
        "positions": "learned",
        "max_positions": keys.count("max_position_embeddings", default=2048) + OPT_POSITION_OFFSET,
        "vocab": keys.count("vocab_size"),
        "tied_embeddings": keys.flag("tie_word_embeddings", default=True),
        **causal_head(keys),
    }


def bloom(keys: Keys) -> Spec:
    """BLOOM: ALiBi, a norm behind the embedding, biases everywhere."""
    hidden = keys.count("hidden_size", "n_embed")
    return {
        "layers": keys.layers("n_layer", "num_hidden_layers"),
        "hidden": hidden,
        "heads": keys.count("n_head", "num_attention_heads"),
        "ffn": 4 * hidden,
        "gated_mlp": False,
        "norm": "layernorm",
        "biases": True,
        "dropout": keys.positive("hidden_dropout"),
        "positions": "alibi",
        "embedding": {"norm": True},
        "vocab": keys.count("vocab_size"),
        "tied_embeddings": keys.flag("tie_word_embeddings", default=True),
        **causal_head(keys),
    }


def falcon(keys: Keys) -> Spec:
    """Falcon: 7B has one key-value head and one norm a layer, the newer ones groups and, but for 11B, two norms."""
    hidden, heads = keys.count("hidden_size", "n_embed"), keys.count("num_attention_heads", "n_head")
    new, bias = keys.flag("new_decoder_architecture", default=False), keys.flag("bias", default=False)
    groups = keys.count("num_kv_heads", default=heads)
    norms = keys.count("num_ln_in_parallel_attn", default=2 if new else 1, most=2)
    parallel = keys.flag("parallel_attn", default=True)
    return {
        "layers": keys.layers("num_hidden_layers", "n_layer"),
        "hidden": hidden,
        "heads": heads,
        "kv_heads": groups if new else 1 if keys.flag("multi_query", default=True) else heads,
        "ffn": keys.count("ffn_hidden_size", default=4 * hidden),
        "gated_mlp": False,
        "norm": "layernorm",
        "parallel_blocks": "none" if not parallel else "own_norms" if norms > 1 else "shared_norm",
        "biases": biases(qkv=bias, output=bias, mlp=bias),
        "dropout": keys.positive("hidden_dropout"),
        "positions": "alibi" if keys.flag("alibi", default=False) else "rotary",
        "vocab": keys.count("vocab_size"),
        "tied_embeddings": keys.flag("tie_word_embeddings", default=True),
        **causal_head(keys),
    }


def mpt(keys: Keys) -> Spec:
    """MPT: ALiBi, norms without a shift, no biases; four times the width in the MLP."""
    hidden = keys.count("d_model", "hidden_size")
    attention = keys.inner("attn_config") if keys.has("attn_config") else keys
    if not attention.flag("alibi", default=True):
        why = "the class in transformers has no other positions"
        attention.refuse("alibi", "false is not known", why=why, mend="set it to true")
    if attention.flag("qk_ln", default=False):
        why = "the class in transformers has no such norms"
        attention.refuse("qk_ln", "true is not known", why=why, mend="set it to false")
    return {
        "layers": keys.layers("n_layers", "num_hidden_layers"),
        "hidden": hidden,
        "heads": keys.count("n_heads", "num_attention_heads"),
        "ffn": 4 * hidden,
        "gated_mlp": False,
        "norm": "layernorm_no_bias",
        "dropout": keys.positive("resid_pdrop", "emb_pdrop"),
        "positions": "alibi",
        "vocab": keys.count("vocab_size"),
        "tied_embeddings": keys.flag("tie_word_embeddings", default=True),
        **causal_head(keys),
    }
