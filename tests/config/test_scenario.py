from __future__ import annotations

import dataclasses
import pickle
from pathlib import Path
from typing import Any

import pytest

from simulator.cluster.spec import ClusterSpec
from simulator.config import scenario as reading
from simulator.config.library import Kind, builtin_path, list_builtin
from simulator.config.scenario import Scenario, problems_of, read_scenario, read_variants
from simulator.errors import Problem, ScenarioError, Violation
from simulator.model.spec import ModelSpec
from simulator.parallel.layout import Layout
from simulator.parallel.training import Training
from tests.config.files import CLUSTER, MODEL, SCENARIO, changed, indented, line_of, read, refused, write

VARIANTS = SCENARIO + "variants:\n  zero3: {layout.zero: 3}\n  wide:\n    layout.tp: 4\n    layout: {pp: 1}\n"


def split(folder: Path, model: str, cluster: str) -> str:
    text = SCENARIO.replace(f"model:\n{indented(MODEL)}", f"model: {model}\n")
    return write(folder, text.replace(f"cluster:\n{indented(CLUSTER)}", f"cluster: {cluster}\n"), "split.yaml")


def test_scenario_is_read_with_its_defaults(tmp_path: Path) -> None:
    scenario = read(tmp_path, SCENARIO)
    assert (scenario.name, scenario.devices, scenario.schedule, scenario.seed) == ("demo", 8, "1f1b", 0)
    assert scenario.layout == Layout(tp=2, pp=2)
    assert scenario.model.heads == 8
    assert scenario.origin is not None


def test_several_virtual_stages_are_interleaved_by_default(tmp_path: Path) -> None:
    assert read(tmp_path, changed("  pp: 2", "  pp: 2\n  vpp: 2")).schedule == "interleaved-1f1b"


def test_scenario_made_in_python_equals_the_one_read(tmp_path: Path) -> None:
    read_one = read(tmp_path, SCENARIO)
    made = Scenario(
        name="demo",
        model=ModelSpec(name="tiny", layers=8, hidden=512, heads=8, ffn=2048, vocab=1024),
        cluster=read_one.cluster,
        layout=Layout(tp=2, pp=2),
        training=Training(sequence_length=128, global_batch=8),
    )
    assert made == read_one
    assert made.to_dict() == read_one.to_dict()
    assert pickle.loads(pickle.dumps(read_one)) == read_one
    assert dataclasses.replace(made, seed=3).seed == 3


def test_resolved_form_is_plain(tmp_path: Path) -> None:
    import json

    data = read(tmp_path, SCENARIO).to_dict()
    assert json.loads(json.dumps(data)) == data
    assert data["devices"] == 8
    assert data["layout"]["order"] == ["tp", "cp", "ep", "dp", "pp"]


def test_broken_rules_have_the_line_of_their_value(tmp_path: Path) -> None:
    message = refused(tmp_path, changed("  tp: 2", "  tp: 3"))
    assert f"x.yaml:{line_of('  tp: 2')}:7: layout.tp: 3 does not divide model.heads, which is 8\n" in message


def test_rule_about_a_default_points_at_the_nearest_key_above(tmp_path: Path) -> None:
    origin = read(tmp_path, SCENARIO).origin
    violations = [
        Violation(path=path, problem="p", why="w", mend="m")
        for path in ("layout.zero", "assumptions.vocab_padding", "cluster.tiers[1].size", "cluster.tiers.0.nothing", "")
    ]
    places = [(each.line, each.column) for each in problems_of(violations, origin) if isinstance(each, Problem)]
    inside, outside = line_of("{name: inside"), line_of("{name: outside")
    assert places == [(line_of("layout:"), 1), (1, 1), (outside, 43), (inside, 7), (1, 1)]
    assert problems_of(violations, None) == violations


def test_more_devices_than_the_cluster_has(tmp_path: Path) -> None:
    message = refused(tmp_path, SCENARIO + "devices: 16\n")
    assert f"x.yaml:{SCENARIO.count(chr(10)) + 1}:10: devices: 16 " in message


def test_rules_that_refuse_by_exception_are_placed_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> tuple[Violation, ...]:
        raise ScenarioError([Violation(path="layout.tp", problem="no", why="w", mend="m")])

    monkeypatch.setattr(reading, "broken_rules", refuse)
    assert refused(tmp_path, SCENARIO).startswith(f"x.yaml:{line_of('  tp: 2')}:7: layout.tp: no\n")


def test_model_and_cluster_from_files_beside_the_scenario(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path.parent)
    write(tmp_path, MODEL, "m.yaml")
    write(tmp_path, CLUSTER, "c.yaml")
    assert read_scenario(split(tmp_path, "m.yaml", "./c.yaml")).model.name == "tiny"
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sub").mkdir()
    assert read_scenario(split(tmp_path / "sub", "m.yaml", "c.yaml")).cluster.name == "desk"


def test_problems_of_other_files_have_their_name_and_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path, changed("layers: 8", "layers: x", MODEL), "m.yaml")
    write(tmp_path, changed("  memory: 80 GB", "  memory: 80", CLUSTER), "c.yaml")
    path = split(tmp_path, "m.yaml", "c.yaml")
    Path(path).write_text(Path(path).read_text() + "foo: 1\n")
    with pytest.raises(ScenarioError) as error:
        read_scenario("split.yaml")
    assert [str(problem).splitlines()[0] for problem in error.value.problems] == [
        "split.yaml:10:1: foo: unknown key",
        "m.yaml:2:9: model.layers: expected a whole number, got 'x'",
        f"c.yaml:{line_of('  memory: 80 GB', CLUSTER)}:11: cluster.accelerator.memory: 80 has no unit",
    ]


@pytest.mark.parametrize(
    ("model", "problem", "mend"),
    [
        (
            "gpt3-175",
            "'gpt3-175' is not a built-in model",
            "did you mean gpt3-175b? (`shardsim list models` names all)",
        ),
        ("zzzzzzz", "'zzzzzzz' is not a built-in model", "write the path of a YAML file, or one of "),
        (
            "dir/gpt3-13.yaml",
            "there is no file dir/gpt3-13.yaml, neither beside the scenario nor in the working directory",
            "did you mean gpt3-13b?",
        ),
        (
            "config.json",
            "there is no file config.json, neither beside the scenario nor in the working directory",
            "write the path of a YAML file, or one of ",
        ),
    ],
)
def test_unknown_references(tmp_path: Path, model: str, problem: str, mend: str) -> None:
    with pytest.raises(ScenarioError) as error:
        read_scenario(split(tmp_path, model, "a100-superpod"))
    (only,) = error.value.problems
    assert isinstance(only, Problem)
    assert (only.line, only.column, only.violation.problem) == (2, 8, problem)
    assert only.violation.mend.startswith(mend)


def test_broken_reference_does_not_hide_other_problems(tmp_path: Path) -> None:
    with pytest.raises(ScenarioError) as error:
        read_scenario(split(tmp_path, "nope", "nope"), {"layout.tp": "x", "model.layers": "3"})
    assert len(error.value.problems) == 3


def test_misspelt_scenario_name_is_refused() -> None:
    with pytest.raises(ScenarioError, match="'no-such-thing' is neither a file nor a built-in scenario"):
        read_scenario("no-such-thing")


@pytest.mark.parametrize("kind", list(Kind))
def test_builtin_files_exist(kind: Kind) -> None:
    for name in list_builtin(kind):
        path = builtin_path(kind, name)
        assert path is not None
        assert path.is_file()
    assert builtin_path(kind, "../x") is None


@pytest.mark.parametrize("name", list_builtin(Kind.SCENARIOS))
def test_builtin_scenarios_and_their_variants_are_valid(name: str) -> None:
    assert read_scenario(name)
    assert read_variants(name)


@pytest.mark.parametrize("cluster", list_builtin(Kind.CLUSTERS))
def test_builtin_clusters_pass_the_form(tmp_path: Path, cluster: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "broken_rules", lambda *_: ())
    assert isinstance(read_scenario(split(tmp_path, "gpt2-small", cluster)).cluster, ClusterSpec)


@pytest.mark.parametrize("model", list_builtin(Kind.MODELS))
def test_builtin_models_pass_the_form(tmp_path: Path, model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "broken_rules", lambda *_: ())
    assert read_scenario(split(tmp_path, model, "a100-superpod")).model.name


def test_overrides_change_values_of_all_kinds(tmp_path: Path) -> None:
    path = write(tmp_path, SCENARIO)
    changes = {
        "layout.tp": "4",
        "layout.pp": "1",
        "layout.sp": "true",
        "training.precision": "{compute: fp32}",
        "model.layers": "12",
        "cluster.tiers.1.latency": "7 us",
        "assumptions.expert_imbalance": "1.1",
        "name": "other",
    }
    scenario = read_scenario(path, changes)
    assert (scenario.layout.tp, scenario.layout.sp, scenario.model.layers, scenario.name) == (4, True, 12, "other")
    assert scenario.cluster.tiers[1].latency.value == pytest.approx(7e-6)
    assert scenario.training.types.compute == "fp32"
    assert scenario.assumptions.expert_imbalance == 1.1


def test_override_of_a_builtin_model_and_of_its_parts(tmp_path: Path) -> None:
    scenario = read_scenario(write(tmp_path, SCENARIO), {"model.layers": "4", "model": "gpt2-small"})
    assert scenario.model.layers == 4
    assert scenario.model.hidden == 768


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("layout.tp", "eight", "--set layout.tp=eight:1:1: layout.tp: expected a whole number, got 'eight'\n"),
        ("layout.tpp", "6", "--set layout.tpp=6:1:1: layout.tpp: unknown key\n"),
        ("tp", "6", "--set tp=6:1:1: tp: unknown key\n"),
        (
            "layout.tp.x",
            "6",
            "--set layout.tp.x=6:1:1: layout.tp.x: layout.tp is a single value here, without keys in it\n",
        ),
        ("cluster.tiers.9.size", "6", "cluster.tiers is a list of 2 items without item 9\n"),
        ("layout.tp", "[1", "--set layout.tp=[1:2:1: not YAML: "),
        ("layout.tp", "", "--set layout.tp=:1:1: layout.tp: has no value\n"),
        ("layout.tp", "3", "--set layout.tp=3:1:1: layout.tp: 3 does not divide model.heads, which is 8\n"),
        ("model", "nope", "--set model=nope:1:1: model: 'nope' is not a built-in model\n"),
        (".".join("a" * 5000), "1", "has too many dots"),
        ("", "1", ": unknown key"),
        ("layout", "{tp: 2, tp: 3}", "layout={tp: 2, tp: 3}:1:9: tp: is given twice"),
    ],
)
def test_wrong_overrides_name_themselves(tmp_path: Path, key: str, value: str, message: str) -> None:
    assert message in refused(tmp_path, SCENARIO, {key: value})


def test_misspelt_override_names_the_nearest(tmp_path: Path) -> None:
    assert refused(tmp_path, SCENARIO, {"layout.tpp": "6"}).endswith("mend: did you mean tp?")
    assert refused(tmp_path, SCENARIO, {"zero": "3"}).endswith("mend: did you mean layout.zero?")


def test_variants_come_after_their_base(tmp_path: Path) -> None:
    scenarios = read_variants(write(tmp_path, VARIANTS), {"training.global_batch": "16"})
    assert [each.name for each in scenarios] == ["demo", "demo / zero3", "demo / wide"]
    assert [each.layout for each in scenarios] == [Layout(tp=2, pp=2), Layout(tp=2, pp=2, zero=3), Layout(tp=4, pp=1)]
    assert {each.training.global_batch for each in scenarios} == {16}
    assert read(tmp_path, VARIANTS).layout == Layout(tp=2, pp=2)


def test_scenario_without_variants_is_one(tmp_path: Path) -> None:
    assert [each.name for each in read_variants(write(tmp_path, SCENARIO))] == ["demo"]


def test_problems_of_variants_name_the_variant(tmp_path: Path) -> None:
    text = SCENARIO + "variants:\n  a: {layout.zreo: 3}\n  b: {layout.tp: x}\n  c: 3\n"
    message = refused(tmp_path, text)
    line = SCENARIO.count("\n") + 2
    assert f"x.yaml:{line}:7: layout.zreo: unknown key (in variant a)\n" in message
    assert f"x.yaml:{line + 1}:18: layout.tp: expected a whole number, got 'x' (in variant b)\n" in message
    assert f"x.yaml:{line + 2}:6: variants.c: expected a mapping of keys, got '3'\n" in message
    assert message.count("mend:") == 3


def test_rules_of_variants_are_told_when_they_are_expanded(tmp_path: Path) -> None:
    text = SCENARIO + "variants:\n  a: {layout.tp: 3}\n"
    assert read(tmp_path, text).name == "demo"
    with pytest.raises(ScenarioError, match=r"layout.tp: 3 does not divide model.heads, which is 8 \(in variant a\)"):
        read_variants(write(tmp_path, text))


def test_fault_that_variants_share_is_told_once(tmp_path: Path) -> None:
    message = refused(tmp_path, VARIANTS + "foo: 1\n")
    assert message.count("foo: unknown key") == 1
