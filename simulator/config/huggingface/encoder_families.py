"""Encoders and encoder-decoders: one function for each `model_type`, from its keys to those of a model file.

What stands behind an encoder depends on the class in `architectures`: `BertModel` has a pooler, `BertForMaskedLM`
logits. Defaults are those of the configuration classes of the transformers library, version 5.23.
"""

from __future__ import annotations

from collections.abc import Mapping

from simulator.config.huggingface.keys import Keys
from simulator.config.huggingface.parts import Spec, architecture, biases, head_of, mixture, num_labels
from simulator.config.wording import shortened

_MASKED = {"language_model": True, "transform": True, "bias": True}
_NO_LOGITS = {"language_model": False}


def bert(keys: Keys) -> Spec:
    """BERT and RoBERTa: norms behind the blocks, learned positions, token types."""
    return _bert(keys, {"ForPreTraining": {**_MASKED, "pooler": True, "classes": 2}})


def _bert(keys: Keys, own_heads: Mapping[str, Spec]) -> Spec:
    if keys.flag("add_cross_attention", default=False):
        why, mend = "an encoder attends to itself only", "set it to false"
        keys.refuse("add_cross_attention", f"true is not known for {keys.model_type}", why=why, mend=mend)
    return {
        "layers": keys.layers("num_hidden_layers"),
        "hidden": keys.count("hidden_size"),
        "heads": keys.count("num_attention_heads"),
        "ffn": keys.count("intermediate_size"),
        "vocab": keys.count("vocab_size"),
        "dropout": keys.positive("hidden_dropout_prob", default=0.1),
        "max_positions": keys.count("max_position_embeddings", default=512),
        "embedding": {"token_types": keys.count("type_vocab_size", default=2), "norm": True},
        **_ENCODER,
        **_encoder_head(keys, own_heads),
    }


def albert(keys: Keys) -> Spec:
    """ALBERT: BERT with narrow tables, and layers that share their weights."""
    spec = bert(keys)
    groups = keys.layers("num_hidden_groups", default=1) * keys.count("inner_group_num", default=1, most=1000)
    return {
        **spec,
        "dropout": keys.positive("hidden_dropout_prob"),
        "distinct_layers": groups,
        "embedding": {**spec["embedding"], "width": keys.count("embedding_size", default=128)},
    }


def electra(keys: Keys) -> Spec:
    """ELECTRA: BERT with tables of another width and no pooler; its discriminator has one logit a token."""
    own_heads: dict[str, Spec] = {"Model": _NO_LOGITS, "ForPreTraining": {**_NO_LOGITS, "pooler": True, "classes": 1}}
    spec = _bert(keys, own_heads)
    width = keys.count("embedding_size", default=128)
    return {
        **spec,
        "embedding": {**spec["embedding"], "width": None if width == spec["hidden"] else width},
    }


def distilbert(keys: Keys) -> Spec:
    """DistilBERT: BERT without token types and pooler, by names of its own."""
    return {
        "layers": keys.layers("n_layers", "num_hidden_layers"),
        "hidden": keys.count("dim", "hidden_size"),
        "heads": keys.count("n_heads", "num_attention_heads"),
        "ffn": keys.count("hidden_dim"),
        "vocab": keys.count("vocab_size"),
        "dropout": keys.positive("dropout", default=0.1),
        "max_positions": keys.count("max_position_embeddings", default=512),
        "embedding": {"norm": True},
        **_ENCODER,
        **_encoder_head(keys, {"Model": _NO_LOGITS}),
    }


_ENCODER: Spec = {
    "attention": {"causal": False},
    "gated_mlp": False,
    "norm": "layernorm",
    "norm_placement": "post",
    "biases": True,
    "positions": "learned",
}
"""What the encoders after BERT have in common."""


def _encoder_head(keys: Keys, own: Mapping[str, Spec]) -> Spec:
    """Returns what stands behind the last layer, which the class in `architectures` says; default: a base model.

    Args:
        keys: of the file.
        own: heads of the family by the ending of the class; they come before the common ones.
    """
    classes = num_labels(keys)
    heads: dict[str, Spec] = {
        "Model": {**_NO_LOGITS, "pooler": True},
        "ForMaskedLM": _MASKED,
        "ForSequenceClassification": {**_NO_LOGITS, "pooler": True, "classes": classes},
        "ForTokenClassification": {**_NO_LOGITS, "classes": classes},
        "ForQuestionAnswering": {**_NO_LOGITS, "classes": 2},
        **own,
    }
    head = head_of(keys, heads)
    logits = head["language_model"]
    return {"output_head": head, "tied_embeddings": logits and keys.flag("tie_word_embeddings", default=True)}


def t5(keys: Keys, *, decoder_layers: int | None = None) -> Spec:
    """T5: encoder and decoder of one width, relative positions, RMSNorms, no biases."""
    layers = keys.layers("num_layers", "num_hidden_layers")
    if (name := architecture(keys)) and not name.endswith(("ForConditionalGeneration", "WithLMHeadModel")):
        why = "other classes lack the decoder or the logits"
        mend = "name the class that ends in ForConditionalGeneration"
        keys.refuse("architectures", f"{shortened(name)} is not known for {keys.model_type}", why=why, mend=mend)
    return {
        "layers": keys.layers("num_decoder_layers", default=decoder_layers or layers),
        "encoder": {"layers": layers},
        "hidden": keys.count("d_model", "hidden_size"),
        "heads": keys.count("num_heads", "num_attention_heads"),
        "head_dim": keys.count("d_kv", default=64),
        "ffn": keys.count("d_ff"),
        "gated_mlp": keys.text("feed_forward_proj").startswith("gated-"),
        "dropout": keys.positive("dropout_rate", default=0.1),
        "positions": "relative",
        "position_buckets": keys.count("relative_attention_num_buckets", default=32),
        "vocab": keys.count("vocab_size"),
        "tied_embeddings": keys.flag("tie_word_embeddings", default=True),
    }


def mt5(keys: Keys) -> Spec:
    """mT5: T5 with the gated MLP of version 1.1."""
    kind = keys.text("feed_forward_proj")
    return {**t5(keys), "gated_mlp": not kind or kind.startswith("gated-")}


def switch_transformers(keys: Keys) -> Spec:
    """Switch Transformer: T5 with one expert of many for each token in some layers."""
    spec = t5(keys, decoder_layers=12)
    steps = []
    for side, layers in (("encoder", spec["encoder"]["layers"]), ("decoder", spec["layers"])):
        sparse = keys.count(f"num_sparse_{side}_layers", default=3, least=0)
        steps.append(max(layers // sparse, 1) if sparse else layers + 1)
    if steps[0] != steps[1]:
        why, mend = "a model file has one distance for both stacks", "make the shares of sparse layers equal"
        keys.refuse("num_sparse_decoder_layers", "spaces experts unlike the encoder's", why=why, mend=mend)
    experts = {
        "count": keys.count("num_experts", default=8),
        "top_k": 1,
        "ffn": spec["ffn"],
    }
    router = keys.flag("router_bias", default=False)
    present = [(layer + 1) % steps[1] == 0 for layer in range(spec["layers"])]
    return mixture(keys, {**spec, "biases": biases(router=router)}, experts, present, key="num_sparse_decoder_layers")
