"""Built-in models: what their authors print and release, and what their files must say."""

from __future__ import annotations

from decimal import Decimal

import pytest

from simulator.model.decoder import build_model
from tests.model import closed_forms
from tests.model.architectures import LIBRARY, built_in, model
from tests.oracles import Record, each

UNITS = {"M": 10**6, "B": 10**9, "T": 10**12}
PRINTED_OTHERWISE = {
    "t5-large": "table 3 prints 770M; its configuration has 738M",
    "qwen2.5-32b": "the report prints 32.5B; the released weights have 32.8B",
}
"""Models whose count is not the printed one, rounded or cut off."""


@each("published", "published.total.", "published.printed.")
def test_a_model_has_the_parameters_that_its_authors_print(record: Record) -> None:
    assert record.agrees_with(model(record.inputs["model"]).num_parameters)


@each("published", "published.active.")
def test_a_token_uses_the_parameters_that_the_authors_print(record: Record) -> None:
    assert record.agrees_with(model(record.inputs["model"]).num_active_parameters)


@each("published", "published.active_without_input_table.")
def test_some_authors_count_no_input_table_as_active(record: Record) -> None:
    whole = model(record.inputs["model"])
    assert record.agrees_with(whole.num_active_parameters - whole.num_embedding_parameters)


@each("published", "published.without_tables.")
def test_some_authors_count_no_tables(record: Record) -> None:
    whole = model(record.inputs["model"])
    assert record.agrees_with(whole.num_parameters - 2 * whole.spec.vocab * whole.spec.hidden)


@pytest.mark.parametrize("name", LIBRARY)
def test_the_nominal_count_is_the_exact_one_rounded_or_cut_off(name: str) -> None:
    spec = built_in(name)
    digits, unit = Decimal(spec.nominal_parameters[:-1]).normalize(), UNITS[spec.nominal_parameters[-1]]
    last = unit * Decimal(10) ** int(digits.as_tuple().exponent)
    beyond = model(name).num_parameters - digits * unit
    assert (-last / 2 <= beyond < last) != (name in PRINTED_OTHERWISE)


@pytest.mark.parametrize("name", LIBRARY)
def test_the_operators_hold_what_the_closed_forms_count(name: str) -> None:
    assert model(name).num_parameters == closed_forms.num_parameters(built_in(name))


@pytest.mark.parametrize("name", LIBRARY)
def test_a_file_is_named_as_its_model_and_has_a_source(name: str) -> None:
    spec = built_in(name)
    assert (spec.name, bool(spec.source), bool(spec.description)) == (name, True, True)


@pytest.mark.parametrize("name", LIBRARY)
def test_layers_with_one_key_are_one_object(name: str) -> None:
    layers = {layer.key: layer for layer in model(name, 512).all_layers}
    assert all(layers[layer.key] is layer for layer in model(name, 512).all_layers)


def test_at_least_sixty_models_are_built_in() -> None:
    assert len(LIBRARY) >= 60


def test_the_first_release_of_mixtral_8x22b_had_a_smaller_vocabulary() -> None:
    spec = built_in("mixtral-8x22b").model_copy(update={"vocab": 32000})
    assert build_model(spec, sequence_length=1).num_parameters == 140_620_634_112
