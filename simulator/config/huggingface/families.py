"""The families that are read: each `model_type` with the function that reads it. A new one is a line here."""

from __future__ import annotations

from collections.abc import Callable

from simulator.config.huggingface import (
    encoder_families,
    expert_families,
    gpt_families,
    image_families,
    llama_families,
)
from simulator.config.huggingface.keys import Keys
from simulator.config.huggingface.parts import Spec

Family = Callable[[Keys], Spec]
"""From the keys of a config.json to those of a model file; what is wrong is noted in the keys."""

FAMILIES: dict[str, Family] = {
    "albert": encoder_families.albert,
    "arcee": llama_families.arcee,
    "bert": encoder_families.bert,
    "bloom": gpt_families.bloom,
    "camembert": encoder_families.bert,
    "codegen": gpt_families.gptj,
    "cohere": llama_families.cohere,
    "cohere2": llama_families.cohere2,
    "dbrx": expert_families.dbrx,
    "deepseek_v2": expert_families.deepseek_v2,
    "deepseek_v3": expert_families.deepseek_v3,
    "distilbert": encoder_families.distilbert,
    "electra": encoder_families.electra,
    "ernie4_5": llama_families.ernie4_5,
    "exaone4": llama_families.exaone4,
    "falcon": gpt_families.falcon,
    "gemma": llama_families.gemma,
    "gemma2": llama_families.gemma2,
    "gemma3": llama_families.gemma3,
    "gemma3_text": llama_families.gemma3_text,
    "glm": llama_families.glm,
    "glm4": llama_families.glm4,
    "glm4_moe": expert_families.glm4_moe,
    "gpt2": gpt_families.gpt2,
    "gpt_bigcode": gpt_families.gpt_bigcode,
    "gpt_neo": gpt_families.gpt_neo,
    "gpt_neox": gpt_families.gpt_neox,
    "gpt_oss": expert_families.gpt_oss,
    "gptj": gpt_families.gptj,
    "granite": llama_families.llama,
    "granitemoe": expert_families.granitemoe,
    "kimi_k2": expert_families.deepseek_v3,
    "llama": llama_families.llama,
    "minimax_m2": expert_families.minimax_m2,
    "mistral": llama_families.mistral,
    "mixtral": expert_families.mixtral,
    "mpt": gpt_families.mpt,
    "mt5": encoder_families.mt5,
    "nemotron": llama_families.nemotron,
    "olmo2": llama_families.olmo2,
    "olmo3": llama_families.olmo3,
    "olmoe": expert_families.olmoe,
    "opt": gpt_families.opt,
    "phi": llama_families.phi,
    "phi3": llama_families.phi3,
    "phimoe": expert_families.phimoe,
    "qwen2": llama_families.qwen2,
    "qwen2_moe": expert_families.qwen2_moe,
    "qwen3": llama_families.qwen3,
    "qwen3_moe": expert_families.qwen3_moe,
    "resnet": image_families.resnet,
    "roberta": encoder_families.bert,
    "seed_oss": llama_families.seed_oss,
    "smollm3": llama_families.smollm3,
    "stablelm": llama_families.stablelm,
    "starcoder2": llama_families.starcoder2,
    "switch_transformers": encoder_families.switch_transformers,
    "t5": encoder_families.t5,
    "vit": image_families.vit,
    "xlm-roberta": encoder_families.bert,
}
