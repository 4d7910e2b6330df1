"""Records how many parameters the transformers library builds for each config of the tests.

Needs `transformers` and `torch`, which nothing else here does: `python -m tests.hf.record_counts` writes
`tests/config/huggingface_counts.yaml`. The models are built without memory, on PyTorch's meta device.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import yaml

CONFIGS = Path(__file__).parents[1] / "config" / "huggingface"
OPTIONS = CONFIGS.parent / "huggingface_options.yaml"
COUNTS = CONFIGS.parent / "huggingface_counts.yaml"
HEADER = "# Made by tests/hf/record_counts.py: what the classes of the transformers library hold, tied tensors once.\n"
ALIASES = {"kimi_k2": "deepseek_v3"}
"""Families without a class of their own: their files bring code that repeats another family's."""
T5_LIKE = ("t5", "mt5", "switch_transformers")
DEFAULT_ENDINGS = {"gpt2": "LMHeadModel"}
DEFAULT_ENDINGS |= dict.fromkeys(T5_LIKE, "ForConditionalGeneration")
DEFAULT_ENDINGS |= dict.fromkeys(("bert", "roberta", "distilbert", "albert", "electra", "vit", "resnet"), "Model")
"""How the class of a config without `architectures` ends, where not in ForCausalLM."""


def configs() -> dict[str, dict[str, Any]]:
    """Returns all configs of the tests by name."""
    published = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(CONFIGS.glob("*.json"))}
    return published | yaml.safe_load(OPTIONS.read_text(encoding="utf-8"))


def count(config: dict[str, Any]) -> dict[str, Any]:
    """Returns what the library builds from a config: its class, its parameters, and their sum by kind of module.

    The correction biases of routers are buffers there, and parameters in the published counts and here. Since
    version 5 the library ties the head of T5 whatever the file says; the published weights of T5 1.1 and mT5 have a
    head of their own, which is added.
    """
    import torch
    import transformers
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    if "text_config" in config:  # of a model that sees images too, the text model
        config = {**config["text_config"], "model_type": "gemma3_text"}
    family = ALIASES.get(config["model_type"], config["model_type"])
    keys = {"pad_token_id": 0} | {key: value for key, value in config.items() if key != "model_type"}
    filled = CONFIG_MAPPING[family].from_dict(keys)
    name = config.get("architectures", [""])[0].replace("MPT", "Mpt").replace("PhiMoE", "Phimoe")
    if not name:
        stem = type(filled).__name__.removesuffix("Config").removesuffix("Text")
        name = stem + DEFAULT_ENDINGS.get(family, "ForCausalLM")
    with torch.device("meta"):
        model = getattr(transformers, name)(filled)
    model.tie_weights()
    kinds: Counter[str] = Counter()
    seen = set()
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            if id(parameter) not in seen:
                seen.add(id(parameter))
                kinds[type(module).__name__] += parameter.numel()
    if family in T5_LIKE and not config.get("tie_word_embeddings", True):
        kinds["untied head"] += filled.vocab_size * filled.d_model
    corrections = sum(each.numel() for key, each in model.named_buffers() if key.endswith("e_score_correction_bias"))
    found = {"class": name, "parameters": sum(kinds.values())}
    return (
        found | ({"correction_biases": corrections} if corrections else {}) | {"modules": dict(sorted(kinds.items()))}
    )


def main() -> None:
    """Writes the file of counts."""
    import torch
    import transformers

    models = {name: count(config) for name, config in configs().items()}
    versions = {"transformers": transformers.__version__, "torch": torch.__version__.partition("+")[0]}
    text = yaml.safe_dump({**versions, "models": models}, sort_keys=False, default_flow_style=None, width=160)
    COUNTS.write_text(HEADER + text, encoding="utf-8")


if __name__ == "__main__":
    main()
