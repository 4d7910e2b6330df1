"""`shardsim import`: a config.json in, a model file out."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from simulator.cli import main
from simulator.config.scenario import read_scenario
from tests.config.files import CLUSTER, MODEL, SCENARIO, indented, write
from tests.hf.record_counts import configs

CONFIG = json.dumps(configs()["llama-defaults"])


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["shardsim", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


MODEL_FILE = """\
name: small
source: small.json of the model_type llama
layers: 3
hidden: 64
heads: 8
ffn: 96
vocab: 100
"""


def test_model_file_is_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "import", write(tmp_path, CONFIG, "small.json")) == 0
    assert capsys.readouterr() == (MODEL_FILE, "")


@pytest.mark.parametrize("option", ["-o", "--output"])
def test_model_file_is_written_and_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], option: str
) -> None:
    output = tmp_path / "m.yaml"
    assert run(monkeypatch, "import", write(tmp_path, CONFIG, "small.json"), option, str(output)) == 0
    assert capsys.readouterr() == ("", "")
    assert output.read_text(encoding="utf-8") == MODEL_FILE
    write(tmp_path, CLUSTER, "c.yaml")
    scenarios = [
        SCENARIO.replace(f"model:\n{indented(MODEL)}", f"model: {name}\n") for name in ("small.json", "m.yaml")
    ]
    changes = {"layout.pp": "1", "layout.tp": "1"}
    read = [read_scenario(write(tmp_path, text), changes).model for text in scenarios]
    assert read[0] == read[1]


def test_config_is_not_written_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path, CONFIG, "small.json")
    assert run(monkeypatch, "import", path, "-o", path) == 2
    assert capsys.readouterr().err.startswith(f"--output {path}: is a file that ")
    assert Path(path).read_text(encoding="utf-8") == CONFIG


def test_bad_files_exit_with_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "m.yaml"
    for name, text, message in (
        ("small.json", '{"model_type": "x"}', "model_type: 'x' is not a known family"),
        ("small.json", "{", "not JSON"),
    ):
        assert run(monkeypatch, "import", write(tmp_path, text, name), "-o", str(output)) == 2
        printed = capsys.readouterr()
        assert message in printed.err
        assert not printed.out
    assert run(monkeypatch, "import", str(tmp_path / "smal.json")) == 2
    assert "there is no such file" in capsys.readouterr().err
    assert not output.exists()


def test_importing_does_not_load_the_engine(tmp_path: Path) -> None:
    path = write(tmp_path, CONFIG, "small.json")
    code = (
        "import sys, simulator.config.huggingface.reading as reading, pathlib\n"
        f"reading.imported_model(pathlib.Path({path!r}))\n"
        "print(*(name for name in ('numba', 'polars', 'simulator.engine') if name in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
