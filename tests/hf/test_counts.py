"""The recorded counts are still what the transformers library builds; runs only where it is installed."""

from __future__ import annotations

import pytest
import yaml

from tests.hf.record_counts import COUNTS, configs, count

pytest.importorskip("transformers")
pytest.importorskip("torch")

RECORDED = yaml.safe_load(COUNTS.read_text(encoding="utf-8"))["models"]


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize(("name", "config"), configs().items(), ids=list(configs()))
def test_library_builds_what_is_recorded(name: str, config: dict[str, object]) -> None:
    assert count(config) == RECORDED[name]
