from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.config.builder import MAX_DEPTH, MAX_NODES
from simulator.config.document import MAX_FILE_BYTES, parse_document, read_document
from simulator.config.scenario import read_scenario
from simulator.errors import ScenarioError
from tests.config.files import SCENARIO, refused, write

UTF8 = "  why:  input files are YAML text in UTF-8\n"


def test_places_are_those_of_keys_and_values() -> None:
    root, problems = parse_document("a:\n  bc: [1, {d: x}]\n", "f")
    assert problems == []
    entry = root.value["a"].node.value["bc"]  # type: ignore[index, call-overload, union-attr]
    assert (entry.key_place.line, entry.key_place.column) == (2, 3)
    inner = entry.node.value[1].value["d"]
    assert (inner.node.place.line, inner.node.place.column, inner.node.value) == (2, 15, "x")
    assert root.size == 6
    assert root.depth == 5


def test_scalars_stay_text() -> None:
    root, _ = parse_document("[1e9, no, 1:30, 0o17, ~, '', '~', null]", "f")
    assert [item.value for item in root.value] == ["1e9", "no", "1:30", "0o17", None, "", "~", None]  # type: ignore[union-attr]


def test_columns_count_letters_not_bytes() -> None:
    assert refused_at("名: {a: 1, a: 2}\n") == (1, 11)


def refused_at(text: str) -> tuple[int, int]:
    _, problems = parse_document(text, "f")
    return problems[0].line, problems[0].column


def test_missing_file_names_a_similar_one(tmp_path: Path) -> None:
    write(tmp_path, SCENARIO, "dense.yaml")
    with pytest.raises(ScenarioError) as error:
        read_scenario(str(tmp_path / "dence.yaml"))
    assert str(error.value) == (
        f"{tmp_path}/dence.yaml:1:1: there is no such file\n{UTF8}"
        f"  mend: check the name; did you mean {tmp_path}/dense.yaml?"
    )


def test_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ScenarioError, match="1:1: this is a directory"):
        read_scenario(tmp_path)


def test_endless_and_unreadable_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ScenarioError, match="the file is larger than 4 MiB"):
        read_scenario("/dev/zero")
    loop = tmp_path / "loop.yaml"
    loop.symlink_to(loop)
    with pytest.raises(ScenarioError, match="the file cannot be read: "):
        read_scenario(loop)
    with pytest.raises(ScenarioError, match="the file cannot be read: "):
        read_scenario("scenarios/" + "x" * 5000 + ".yaml")
    with pytest.raises(ScenarioError, match=r"cannot be read|no such file"):
        read_scenario("a\0b.yaml")


def test_large_file_is_refused_and_the_largest_is_read(tmp_path: Path) -> None:
    comment = "#" + "x" * (MAX_FILE_BYTES - len(SCENARIO) - 2) + "\n"
    assert read_scenario(write(tmp_path, comment + SCENARIO)).name == "demo"
    assert refused(tmp_path, "#" + comment + SCENARIO).startswith("x.yaml:1:1: the file is larger than 4 MiB\n")


def test_binary_and_other_encodings_are_refused(tmp_path: Path) -> None:
    mend = "  mend: save the file as plain text in UTF-8"
    assert refused(tmp_path, b"name: a\nb: \xff\xfe") == f"x.yaml:2:4: the byte 0xFF is not UTF-8 text\n{UTF8}{mend}"
    assert refused(tmp_path, "name: a\n b\0: 1") == f"x.yaml:2:3: the character U+0000 is not text\n{UTF8}{mend}"
    assert "the byte 0xFF is not UTF-8 text" in refused(tmp_path, SCENARIO.encode("utf-16"))


def test_byte_order_mark_and_windows_lines_are_read(tmp_path: Path) -> None:
    text = SCENARIO.replace("\n", "\r\n").encode("utf-8-sig")
    assert read_scenario(write(tmp_path, text)).name == "demo"


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("name: [1, 2\n", "2:1"),
        ("name: 'x\n", "2:1"),
        ("a: b: c\n", "1:5"),
        ("name: x\n\tmodel: y\n", "2:1"),
        ("{a: 1}}\n", "1:7"),
        ("a: %x\n", "1:4"),
    ],
)
def test_syntax_errors_have_their_place(tmp_path: Path, text: str, place: str) -> None:
    message = refused(tmp_path, text)
    assert message.startswith(f"x.yaml:{place}: not YAML: ")
    assert UTF8 in message


def test_tabs_have_their_own_mend(tmp_path: Path) -> None:
    assert refused(tmp_path, "a:\n\tb: 1\n").endswith("mend: indent with spaces; YAML does not take tabs")


@pytest.mark.parametrize("text", ["", "# only a comment\n", "---\n", "~", "\n\n"])
def test_empty_file_is_refused(tmp_path: Path, text: str) -> None:
    assert refused(tmp_path, text) == (
        "x.yaml:1:1: the file is empty\n"
        "  why:  a scenario needs at least name, model, cluster, layout and training\n"
        "  mend: begin with a copy of a built-in one: `shardsim list scenarios`, `shardsim show scenarios NAME`"
    )


@pytest.mark.parametrize(("text", "what"), [("just words\n", "the text 'just words'"), ("- 1\n- 2\n", "a list")])
def test_top_level_must_be_a_mapping(tmp_path: Path, text: str, what: str) -> None:
    assert refused(tmp_path, text).startswith(f"x.yaml:1:1: the file holds {what}, not keys with values\n")


def test_doubled_keys_name_both_places_and_do_not_hide_other_problems(tmp_path: Path) -> None:
    message = refused(tmp_path, SCENARIO + "seed: 1\nseed: x\nseed: 3\nfoo: 1\n")
    first = SCENARIO.count("\n") + 1
    assert message.startswith(
        f"x.yaml:{first + 1}:1: seed: is given twice; first on line {first}, column 1\n"
        "  why:  with two values it is open which one is meant\n"
        "  mend: keep one of the two\n"
        f"x.yaml:{first + 2}:1: seed: is given twice; first on line {first}, column 1\n"
    )
    assert f"x.yaml:{first + 3}:1: foo: unknown key" in message


def test_nested_doubled_keys_have_their_path(tmp_path: Path) -> None:
    assert "layout.tp: is given twice; first on line" in refused(
        tmp_path, SCENARIO.replace("  tp: 2", "  tp: 2\n  tp: 2")
    )


def test_second_document_is_refused(tmp_path: Path) -> None:
    assert refused(tmp_path, "a: 1\n---\nb: 2\n") == (
        "x.yaml:2:1: a second document begins here\n"
        "  why:  a file holds one scenario, model or cluster\n"
        "  mend: put it into a file of its own"
    )


@pytest.mark.parametrize(
    "text", ["a: !!python/object:os.system x\n", "a: !custom {b: 1}\n", "!x\na: 1\n", "a: !!int 3\n"]
)
def test_tags_are_refused(tmp_path: Path, text: str) -> None:
    assert "is not known\n  why:  files hold plain values only\n" in refused(tmp_path, text)


def test_plain_aliases_are_read() -> None:
    root, problems = parse_document("a: &x {b: 1}\nc: *x\n", "f")
    assert problems == []
    assert root.child("c").child("b").value == "1"  # type: ignore[union-attr]


def test_billion_laughs_is_refused(tmp_path: Path) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 10)]
    assert refused(tmp_path, "\n".join(lines)) == (
        f"x.yaml:5:5: a4: more than {MAX_NODES:,} values, aliases expanded\n"
        "  why:  a file with more is a mistake, or aliases that explode\n"
        "  mend: write the values out without aliases (* and &)"
    )


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("a: &x [*x]\n", "x.yaml:1:8: a.0: the alias *x refers to a value that contains it"),
        ("a: *x\n", "x.yaml:1:4: a: the alias *x has no anchor before it"),
        ("a: &x 1\n*x : 2\n", "x.yaml:2:1: the alias *x stands where a key should"),
        ("[1, 2]: 3\n", "x.yaml:1:1: a list or mapping stands where a key should"),
    ],
)
def test_wrong_aliases_and_keys_are_refused(tmp_path: Path, text: str, what: str) -> None:
    message = refused(tmp_path, text)
    assert message.startswith(what), message


@pytest.mark.parametrize(
    "text", ["[" * 100_000, "a: " + "{b: " * 100_000, "- " * 100_000, "\n".join(" " * i + "a:" for i in range(900))]
)
def test_deep_nesting_is_refused(tmp_path: Path, text: str) -> None:
    assert f": nested more than {MAX_DEPTH} levels deep\n" in refused(tmp_path, text)


def test_nesting_by_aliases_is_refused(tmp_path: Path) -> None:
    lines = ["a0: &a0 [1]"] + [f"a{i}: &a{i} [*a{i - 1}]" for i in range(1, 200)]
    assert f"nested more than {MAX_DEPTH} levels deep" in refused(tmp_path, "\n".join(lines))


@given(st.binary(max_size=300))
def test_random_bytes_are_read_or_refused(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "random.yaml"
    path.write_bytes(data)
    try:
        read_document(path)
    except ScenarioError as error:
        assert error.problems


@given(st.text(alphabet="ab:-[]{},&*!|>'\"#%@?~ \n\t012.", max_size=60))
def test_random_yaml_like_text_is_read_or_refused(text: str) -> None:
    try:
        parse_document(text, "f")
    except ScenarioError as error:
        assert error.problems
