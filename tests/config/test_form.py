from __future__ import annotations

from pathlib import Path

import pytest

from simulator.config.form import check_form
from simulator.config.scalars import typed
from simulator.model.spec import ModelSpec
from simulator.schedule import SCHEDULES
from tests.config.files import MODEL, SCENARIO, changed, line_of, read, refused


def refusal(folder: Path, old: str, new: str) -> str:
    return refused(folder, changed(old, new))


def expected(old: str, column: int, text: str) -> str:
    return f"x.yaml:{line_of(old)}:{column}: {text}"


def test_unknown_key_names_the_nearest(tmp_path: Path) -> None:
    assert refusal(tmp_path, "  tp: 2\n", "  tp: 2\n  zreo: 1\n") == (
        f"x.yaml:{line_of('  tp: 2') + 1}:3: layout.zreo: unknown key\n"
        "  why:  a key that nothing reads would change nothing, without a word\n"
        "  mend: did you mean zero?"
    )


def test_unknown_key_of_another_mapping_names_its_home(tmp_path: Path) -> None:
    assert refused(tmp_path, SCENARIO + "micro_batch: 1\n").endswith("mend: did you mean training.micro_batch?")


def test_unknown_key_without_likeness_lists_the_known(tmp_path: Path) -> None:
    message = refusal(tmp_path, "  tp: 2\n", "  tp: 2\n  qqqqqq: 1\n")
    assert "mend: remove it; known keys are tp, sp, pp, vpp, dp, " in message


def test_missing_key_points_at_its_parent(tmp_path: Path) -> None:
    assert refusal(tmp_path, "  global_batch: 8\n", "") == expected(
        "training:",
        1,
        "training.global_batch: is missing\n"
        "  why:  global_batch has no default\n"
        "  mend: add `global_batch: ...` (Sequences of a step)",
    )


def test_misspelt_required_key_is_one_problem(tmp_path: Path) -> None:
    message = refusal(tmp_path, "global_batch: 8", "globl_batch: 8")
    assert message.count("mend:") == 1
    assert "training.globl_batch: unknown key" in message


def test_everything_missing_is_told_at_once(tmp_path: Path) -> None:
    message = refused(tmp_path, "seed: 1\n")
    for key in ("name", "model", "cluster", "training"):
        assert f"x.yaml:1:1: {key}: is missing\n" in message
    assert message.count("mend:") == 4


def test_wrong_type_says_what_was_expected(tmp_path: Path) -> None:
    assert refusal(tmp_path, "  tp: 2", "  tp: eight") == expected(
        "  tp: 2",
        7,
        "layout.tp: expected a whole number, got 'eight'\n"
        "  why:  tp is: Tensor parallel degree\n"
        "  mend: write a whole number",
    )


@pytest.mark.parametrize("value", ["8.5", "0x8", "1:30", "nan", "inf", "true", "8 GB", "''", "٣x", "_", "1e", "--1"])
def test_what_is_no_whole_number_is_refused(tmp_path: Path, value: str) -> None:
    assert "layout.tp: expected a whole number, got " in refusal(tmp_path, "  tp: 2", f"  tp: {value}")


@pytest.mark.parametrize("value", ["2", "2.0", "2e0", "0.2e1", "'2'", "+2", "0_2"])
def test_whole_numbers_in_other_spellings_are_read(tmp_path: Path, value: str) -> None:
    assert read(tmp_path, changed("  tp: 2", f"  tp: {value}")).layout.tp == 2


def test_large_counts_are_read_in_every_spelling(tmp_path: Path) -> None:
    for value in ("131072", "131_072", "131.072e3"):
        scenario = read(tmp_path, SCENARIO + f"assumptions: {{gradient_bucket_elements: {value}}}\n")
        assert scenario.assumptions.gradient_bucket_elements == 131072


@pytest.mark.parametrize("value", ["yes", "no", "on", "1", "0", "y", "T"])
def test_only_true_and_false_are_truth_values(tmp_path: Path, value: str) -> None:
    message = refusal(tmp_path, "  tp: 2", f"  tp: 2\n  sp: {value}")
    assert f"layout.sp: expected true or false, got '{value}'\n" in message


@pytest.mark.parametrize(
    ("value", "meaning"), [("true", True), ("False", False), ("~", None), ("null", None), ("", None)]
)
def test_truth_values_and_nulls_are_read(tmp_path: Path, value: str, meaning: bool | None) -> None:
    assert read(tmp_path, changed("  tp: 2", f"  tp: 2\n  sp: {value}")).layout.sp is meaning


def test_text_fields_keep_what_looks_like_a_number(tmp_path: Path) -> None:
    assert read(tmp_path, changed("name: demo", "name: 1.10")).name == "1.10"
    assert read(tmp_path, changed("name: demo", "name: no")).name == "no"


def test_mapping_and_list_in_place_of_a_number(tmp_path: Path) -> None:
    assert "layout.tp: expected a whole number, got a mapping" in refusal(tmp_path, "  tp: 2", "  tp: {a: 1}")
    assert "layout.tp: expected a whole number, got a list" in refusal(tmp_path, "  tp: 2", "  tp: [2]")
    assert "layout: expected a mapping of keys, got a list" in refusal(
        tmp_path, "layout:\n  tp: 2\n  pp: 2", "layout: []"
    )


def test_key_without_value(tmp_path: Path) -> None:
    assert refusal(tmp_path, "  tp: 2", "  tp:") == (
        f"x.yaml:{line_of('  tp: 2')}:6: layout.tp: has no value\n"
        "  why:  tp is: Tensor parallel degree\n"
        "  mend: write a whole number after the colon, or delete the line to get the default"
    )
    assert "layout: has no value" in refusal(tmp_path, "layout:\n  tp: 2\n  pp: 2", "layout:")


def test_out_of_range(tmp_path: Path) -> None:
    assert refusal(tmp_path, "  tp: 2", "  tp: 2\n  zero: 4") == (
        f"x.yaml:{line_of('  tp: 2') + 1}:9: layout.zero: 4 is too large; it must be at most 3\n"
        "  why:  zero is: 0 replicate, 1 shard optimizer state, 2 + gradients, 3 + parameters (FSDP)\n"
        "  mend: give at most 3"
    )
    assert "layout.tp: 0 is too small; it must be at least 1" in refusal(tmp_path, "  tp: 2", "  tp: 0")
    assert "seed: -1 is too small; it must be at least 0" in refused(tmp_path, SCENARIO + "seed: -1\n")


def test_1e30_layers_are_one_clean_problem(tmp_path: Path) -> None:
    assert refusal(tmp_path, "layers: 8", f"layers: {10**30}") == expected(
        "layers: 8",
        11,
        "model.layers: 100000000000… (31 digits) is too large; it must be at most 100000\n"
        "  why:  layers is: Transformer layers (of the decoder), or residual blocks of a ResNet\n"
        "  mend: give at most 100000",
    )


@pytest.mark.parametrize("value", ["1e999999999", "9" * 100_000, "1e99999999999999999999999", "-1e300"])
def test_absurd_numbers_are_one_short_problem(tmp_path: Path, value: str) -> None:
    message = refusal(tmp_path, "layers: 8", f"layers: {value}")
    assert message.count("mend:") == 1
    assert "is beyond the numbers that can be meant here" in message
    assert len(message) < 400


@pytest.mark.parametrize(
    "line",
    [
        "gradient_bucket_elements: 1e30",
        "communicator_buffers: 1e40 EB",
        "device_context: 1e900 GB",
        "device_context: 1e40 EB",
    ],
)
def test_numbers_without_bound_are_bounded(tmp_path: Path, line: str) -> None:
    message = refused(tmp_path, SCENARIO + f"assumptions:\n  {line}\n")
    assert "is beyond the numbers that can be meant here" in message
    assert f"x.yaml:{SCENARIO.count(chr(10)) + 2}:{line.index(':') + 5}: assumptions." in message


def test_quantity_without_unit(tmp_path: Path) -> None:
    assert refusal(tmp_path, "memory: 80 GB", "memory: 80") == expected(
        "memory: 80 GB",
        13,
        "cluster.accelerator.memory: 80 has no unit\n"
        "  why:  without its unit a quantity could mean GB or GiB, bytes or bits\n"
        "  mend: write for example '80 GB'",
    )


def test_quantity_with_a_wrong_unit(tmp_path: Path) -> None:
    message = refusal(tmp_path, "memory: 80 GB", "memory: 80 GBs")
    assert "cluster.accelerator.memory: 'GBs' is not a unit of bytes\n" in message
    assert "mend: known are B, kB, MB, GB, " in message


def test_figures_take_a_value_or_a_mapping(tmp_path: Path) -> None:
    text = changed("size: 8,", "size: {value: 8e0, source: x},", changed("devices: 8\n", "devices: 0.8e1\n"))
    assert read(tmp_path, text).devices == 8
    assert "cluster.devices: expected a whole number, got 'eight'" in refusal(
        tmp_path, "devices: 8\n", "devices: eight\n"
    )
    message = refusal(tmp_path, "memory: 80 GB", "memory: {value: 80, sorce: x}")
    assert "cluster.accelerator.memory.value: 80 has no unit" in message
    assert "cluster.accelerator.memory.sorce: unknown key" in message
    assert "mend: did you mean source?" in message


def test_unknown_choice_names_the_nearest_and_the_list(tmp_path: Path) -> None:
    assert refused(tmp_path, SCENARIO + "schedule: 1f1\n") == (
        f"x.yaml:{SCENARIO.count(chr(10)) + 1}:11: schedule: '1f1' is not one of {', '.join(SCHEDULES)}\n"
        "  why:  schedule is: Pipeline schedule: a name, the path of a table of actions (.csv), or a name with its "
        "limit of memory; default: 1f1b, with vpp above 1 interleaved-1f1b\n"
        "  mend: did you mean 1f1b?"
    )
    message = refused(tmp_path, SCENARIO + "  optimizer: adamm\n")
    assert (
        "training.optimizer: expected adamw, adam8bit, adafactor, sgd, muon or a mapping of keys, got 'adamm'\n"
        in message
    )
    assert "mend: did you mean adamw?" in message


def test_choice_or_number(tmp_path: Path) -> None:
    assert "layout.dp: expected a whole number or auto, got 'eigth'\n" in refusal(
        tmp_path, "  tp: 2", "  tp: 2\n  dp: eigth"
    )
    assert "layout.dp: 0 is too small; it must be at least 1\n" in refusal(tmp_path, "  tp: 2", "  tp: 2\n  dp: 0")


def test_choice_or_mapping(tmp_path: Path) -> None:
    message = refused(tmp_path, SCENARIO + "  recompute: ful\n")
    assert (
        "training.recompute: expected none, selective, full, every_other_matmul or a mapping of keys, got 'ful'\n"
        in message
    )
    assert "mend: did you mean full?" in message
    message = refused(tmp_path, SCENARIO + "  precision: {compute: bf61, fooo: 1, master: nope}\n")
    assert "training.precision.compute: 'bf61' is not one of fp32, tf32, bf16, fp16, fp8, mxfp8, nvfp4\n" in message
    assert "training.precision.fooo: unknown key\n" in message
    master = "training.precision.master: 'nope' is not one of fp32, tf32, bf16, fp16, fp8, mxfp8, nvfp4, none\n"
    assert master in message
    assert message.count("mend:") == 3
    assert "training.recompute.full_layers: is missing" in refused(tmp_path, SCENARIO + "  recompute: {}\n")


def test_settings_belong_to_their_rule(tmp_path: Path) -> None:
    message = refused(tmp_path, SCENARIO + "  optimizer: {name: adamw, block: 64}\n")
    assert "training.optimizer.block: a setting of adam8bit, not of adamw\n" in message
    message = refused(tmp_path, SCENARIO + "  optimizer: {name: muon, momentum: false}\n")
    assert "training.optimizer.momentum: a setting of sgd and adafactor, not of muon\n" in message


def test_states_are_of_types_without_block_scales(tmp_path: Path) -> None:
    message = refused(tmp_path, SCENARIO + "  precision: {moment2: mxfp8}\n")
    assert "training.precision.moment2: mxfp8, a type with block scales that only weights are stored in\n" in message


def test_lists_name_the_item(tmp_path: Path) -> None:
    message = refusal(tmp_path, "  tp: 2", "  tp: 2\n  order: [tp, cp, xx]")
    assert f"x.yaml:{line_of('  tp: 2') + 1}:19: layout.order.2: 'xx' is not one of tp, cp, ep, dp, pp\n" in message


def test_wrong_items_do_not_make_a_list_too_short(tmp_path: Path) -> None:
    message = refused(tmp_path, changed("kind: switch, size: 4", "kind: swich, size: 4"))
    assert message.count("mend:") == 1
    assert "cluster.tiers.0.kind: 'swich' is not one of switch, mesh, torus\n" in message


def test_a_rule_of_one_object_points_at_its_key(tmp_path: Path) -> None:
    assert refusal(tmp_path, "heads: 8", "heads: 7") == expected(
        "heads: 8",
        10,
        "model.heads: 7 does not divide hidden, 512\n"
        "  why:  the values of one mapping must agree with each other\n"
        "  mend: give head_dim",
    )


def test_all_problems_come_at_once_in_file_order(tmp_path: Path) -> None:
    text = changed("layers: 8", "layers: x", changed("  tp: 2", "  tp: y", changed("memory: 80 GB", "memory: 80")))
    lines = [int(line.split(":")[1]) for line in refused(tmp_path, text + "foo: 1\n").splitlines() if "x.yaml" in line]
    assert len(lines) == 4
    assert lines == sorted(lines)


def test_thousands_of_problems_are_cut(tmp_path: Path) -> None:
    items = ", ".join(["x"] * 5000)
    assert refusal(tmp_path, "  tp: 2", f"  tp: 2\n  stages: [{items}]").count("mend:") <= 1000


def test_long_texts_are_shortened(tmp_path: Path) -> None:
    message = refusal(tmp_path, "  tp: 2", f"  tp: {'x' * 50_000}\n  {'k' * 900}: 1")
    assert max(len(line) for line in message.splitlines()) < 250


def test_form_is_not_specific_to_scenarios(tmp_path: Path) -> None:
    from simulator.config.document import parse_document

    node, _ = parse_document(MODEL, "m")
    model, problems = check_form(node, ModelSpec)
    assert problems == []
    assert model is not None
    assert model.layers == 8
    assert typed(node, ())[0]["layers"] == "8"
