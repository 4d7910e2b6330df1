"""What is wrong with a config.json is told with its line, all of it at once, and never as a traceback."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from simulator.config.huggingface.families import FAMILIES
from simulator.config.huggingface.reading import imported_model
from simulator.config.scenario import read_scenario
from simulator.errors import Problem, ScenarioError
from simulator.model.spec import ModelSpec
from tests.config.files import CLUSTER, MODEL, SCENARIO, indented, write
from tests.hf.record_counts import configs

CASES = configs()
KEYS = sorted({key for config in CASES.values() for key in config})


def refused(folder: Path, text: str) -> str:
    """Returns the whole message with the file's folder taken out."""
    with pytest.raises(ScenarioError) as error:
        imported_model(Path(write(folder, text, "config.json")))
    assert all(isinstance(problem, Problem) for problem in error.value.problems)
    return str(error.value).replace(f"{folder}/", "")


def changed(name: str, **changes: Any) -> str:
    return json.dumps(CASES[name] | changes)


def test_all_problems_of_a_file_are_told_at_once(tmp_path: Path) -> None:
    text = """\
{
  "model_type": "llama",
  "architectures": ["LlamaForSequenceClassification"],
  "hidden_size": "wide",
  "hidden_size": 64,
  "num_hidden_layers": 0,
  "num_attention_heads": null,
  "num_key_value_heads": [8],
  "attention_bias": "yes",
  "vocab_size": 99999999999999999999
}
"""
    assert refused(tmp_path, text) == (
        "config.json:1:1: intermediate_size: is missing\n"
        "  why:  the size of a llama model depends on it\n"
        '  mend: add `"intermediate_size": ...`\n'
        "config.json:3:20: architectures: LlamaForSequenceClassification is not known\n"
        "  why:  a model file cannot say its head\n"
        '  mend: write "LlamaForCausalLM" for the head of a language model\n'
        "config.json:4:18: hidden_size: expected a whole number, got 'wide'\n"
        "  why:  the value must be of the type of its key\n"
        "  mend: write a whole number\n"
        "config.json:5:3: hidden_size: is given twice; first on line 4, column 3\n"
        "  why:  with two values it is open which one is meant\n"
        "  mend: keep one of the two\n"
        "config.json:6:24: num_hidden_layers: 0 is too small; it must be at least 1\n"
        "  why:  outside these bounds the value has no meaning\n"
        "  mend: give at least 1\n"
        "config.json:7:26: num_attention_heads: has no value\n"
        "  why:  the size of a llama model depends on it\n"
        "  mend: write a value in place of null\n"
        "config.json:8:26: num_key_value_heads: expected a whole number, got a list\n"
        "  why:  the value must be of the type of its key\n"
        "  mend: write a whole number\n"
        "config.json:9:21: attention_bias: expected true or false, got 'yes'\n"
        "  why:  the value must be of the type of its key\n"
        "  mend: write true or false\n"
        "config.json:10:17: vocab_size: 99999999999999999999 is too large; it must be at most 100000000\n"
        "  why:  outside these bounds the value has no meaning\n"
        "  mend: give at most 100000000"
    )


def test_unknown_family_is_told_with_all_that_are_known(tmp_path: Path) -> None:
    known = ", ".join(FAMILIES)
    why = "  why:  each model_type has keys of its own, and defaults that the file does not say\n"
    assert refused(tmp_path, '{"model_type": "lama"}') == (
        "config.json:1:16: model_type: 'lama' is not a known family\n"
        f"{why}  mend: did you mean llama? known are {known}; others can be written as a model YAML file"
    )
    assert refused(tmp_path, "{}") == f"config.json:1:1: model_type: is missing\n{why}  mend: write one of {known}"
    assert refused(tmp_path, '{"model_type": null}').startswith("config.json:1:16: model_type: has no value\n")
    assert refused(tmp_path, '{"model_type": []}').startswith("config.json:1:16: model_type: expected text, got a list")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            '{"model_type": "llama",\n "x": 1,}',
            "config.json:2:9: not JSON: expecting property name enclosed in double quotes\n"
            "  why:  a config.json is JSON text in UTF-8\n"
            "  mend: check quotes, commas and brackets here and on the line before",
        ),
        (
            "[1]",
            "config.json:1:1: the file holds no keys with values\n"
            "  why:  a config.json is a mapping of keys to values\n"
            "  mend: name the config.json of a model",
        ),
    ],
)
def test_what_is_no_json_is_told_in_words_of_json(tmp_path: Path, text: str, message: str) -> None:
    assert refused(tmp_path, text) == message


@pytest.mark.parametrize(
    "text", ["", "null", "1", '"x"', "{" * 100_000, "[" * 60 + "]" * 60, '{"a": ' * 60 + "1" + "}" * 60]
)
def test_other_texts_are_refused(tmp_path: Path, text: str) -> None:
    assert refused(tmp_path, text).startswith("config.json:1:")


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        (
            "gemma3-all-defaults",
            {"text_config": {"hidden_size": -1}},
            "text_config.hidden_size: -1 is too small; it must be at least 1",
        ),
        ("dbrx-defaults", {"attn_config": 3}, "attn_config: expected a mapping of keys, got '3'"),
        ("dbrx-defaults", {"ffn_config": None}, "ffn_config: has no value"),
        ("gpt2-defaults", {"add_cross_attention": True}, "add_cross_attention: true is not known for gpt2"),
        ("gpt2-defaults", {"resid_pdrop": "much"}, "resid_pdrop: expected a number, got 'much'"),
        (
            "gpt-neo-defaults",
            {"attention_layers": ["local", "global", "local", "global"]},
            "attention_layers: do not alternate",
        ),
        ("opt-defaults", {"word_embed_proj_dim": 32}, "word_embed_proj_dim: differs from hidden_size"),
        ("opt-defaults", {"layer_norm_elementwise_affine": False}, "layer_norm_elementwise_affine: false is not known"),
        ("opt-defaults", {"_remove_final_layer_norm": True}, "_remove_final_layer_norm: true is not known"),
        ("mpt-defaults", {"attn_config": {"alibi": False}}, "attn_config.alibi: false is not known"),
        ("mpt-defaults", {"attn_config": {"qk_ln": True}}, "attn_config.qk_ln: true is not known"),
        ("stablelm-defaults", {"qk_layernorm": True}, "qk_layernorm: true is not known for stablelm"),
        ("deepseek-v3-options", {"attention_bias": True}, "attention_bias: true is not known for deepseek_v3"),
        (
            "gemma2-defaults",
            {"layer_types": ["full_attention", "linear_attention", "full_attention"]},
            "layer_types: 'linear_attention' is not full_attention or sliding_attention",
        ),
        (
            "gemma2-defaults",
            {"layer_types": ["full_attention"]},
            "layer_types: lists 1 layers, but num_hidden_layers is 3",
        ),
        ("gemma2-defaults", {"layer_types": [["x"]]}, "layer_types: expected a list of names, got a list"),
        (
            "qwen3-moe-defaults",
            {"num_hidden_layers": 6, "mlp_only_layers": [2]},
            "mlp_only_layers: layers with experts form no pattern that is known",
        ),
        (
            "qwen3-moe-defaults",
            {"mlp_only_layers": ["x"]},
            "mlp_only_layers: expected a list of whole numbers, got a list",
        ),
        ("bert-defaults", {"architectures": ["BertX"]}, "architectures: BertX is not known for bert"),
        ("bert-defaults", {"add_cross_attention": True}, "add_cross_attention: true is not known for bert"),
        ("vit-defaults", {"architectures": ["ViTForMaskedImageModeling"]}, "architectures: ViTForMaskedImageModeling"),
        ("t5-defaults", {"architectures": ["T5EncoderModel"]}, "architectures: T5EncoderModel is not known for t5"),
        (
            "switch-options",
            {"num_sparse_decoder_layers": 3},
            "num_sparse_decoder_layers: spaces experts unlike the encoder's",
        ),
        (
            "resnet-defaults",
            {"hidden_sizes": [256, 512], "depths": [3, 4, 6]},
            "hidden_sizes: are not those of a residual network that is known",
        ),
        ("resnet-defaults", {"downsample_in_first_stage": True}, "downsample_in_first_stage: true is not known"),
        ("llama-defaults", {"num_attention_heads": 7}, "heads: 7 does not divide hidden, 64"),
        ("llama-defaults", {"num_key_value_heads": 3}, "kv_heads: 3 does not divide heads, 8"),
        ("mixtral-defaults", {"num_experts_per_tok": 9}, "experts.top_k: 9, but there are only 8 experts"),
    ],
)
def test_what_a_model_file_cannot_say_is_refused(
    tmp_path: Path, name: str, changes: dict[str, Any], message: str
) -> None:
    assert f": {message}" in refused(tmp_path, changed(name, **changes))


def test_rules_of_a_scenario_point_into_the_config_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path, json.dumps(CASES["llama-defaults"] | {"num_hidden_layers": 4}, indent=1), "config.json")
    write(tmp_path, CLUSTER, "c.yaml")
    text = SCENARIO.replace(f"model:\n{indented(MODEL)}", "model: config.json\n")
    for change, message in (
        ({"model.heads": "6"}, "--set model.heads=6:1:1: model.heads: 6 does not divide hidden, 64\n"),
        ({"model.kv_heads": "3"}, "--set model.kv_heads=3:1:1: model.kv_heads: 3 does not divide heads, 8\n"),
    ):
        with pytest.raises(ScenarioError) as error:
            read_scenario(write(tmp_path, text), change)
        assert str(error.value).startswith(message)
    write(tmp_path, json.dumps(CASES["llama-defaults"] | {"num_attention_heads": 7}, indent=1), "config.json")
    with pytest.raises(ScenarioError) as error:
        read_scenario(write(tmp_path, text + "foo: 1\n"))
    assert [str(each).splitlines()[0] for each in error.value.problems] == [
        f"{tmp_path}/x.yaml:{text.count(chr(10)) + 1}:1: foo: unknown key",
        "config.json:6:25: model.heads: 7 does not divide hidden, 64",
    ]
    write(tmp_path, '{"model_type": "llama"}', "config.json")
    with pytest.raises(ScenarioError) as error:
        read_scenario(write(tmp_path, text))
    assert {str(each).split(": ")[0] for each in error.value.problems} == {"config.json:1:1"}


SCALARS = (
    st.none() | st.booleans() | st.integers(-3, 10) | st.integers() | st.floats() | st.text(max_size=6)
) | st.sampled_from(["ForMaskedLM", "Model", "sliding_attention", 10**30, 1e300])
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(KEYS) | st.text(), inner, max_size=3),
    max_leaves=8,
)


def try_to_import(folder: Path, config: Any) -> None:
    try:
        spec = imported_model(Path(write(folder, json.dumps(config), "config.json")))
    except ScenarioError as error:
        assert error.problems
        for problem in error.problems:
            assert isinstance(problem, Problem)
            assert problem.line == 1
            assert problem.column >= 1
            assert all([problem.violation.problem, problem.violation.why, problem.violation.mend])
            assert len(str(problem)) < 2000
    else:
        assert isinstance(spec, ModelSpec)


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(data=st.data())
def test_malformed_configs_never_end_in_a_traceback(tmp_path: Path, data: st.DataObject) -> None:
    config = copy.deepcopy(CASES[data.draw(st.sampled_from(sorted(CASES)))])
    for _ in range(data.draw(st.integers(1, 4))):
        key = data.draw(st.sampled_from(sorted(config)) | st.sampled_from(KEYS)) if config else "x"
        if data.draw(st.booleans()):
            config[key] = data.draw(VALUES)
        else:
            config.pop(key, None)
    try_to_import(tmp_path, config)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_key_of_a_family_with_strange_values(tmp_path: Path, family: str) -> None:
    for value in (None, True, 0, 1, 3, 100_000, [], [0], {}, "x"):
        try_to_import(tmp_path, dict.fromkeys(KEYS, value) | {"model_type": family})
        for name, config in CASES.items():
            if config["model_type"] == family and "-default" in name:
                for key in config:
                    try_to_import(tmp_path, config | {key: value, "model_type": family})
