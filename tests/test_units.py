"""Quantities with units: both ways, exact, and refused where they are not meant."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from simulator.units import (
    Bytes,
    BytesPerSecond,
    FlopsPerSecond,
    Seconds,
    Watts,
    format_seconds,
    format_si,
    parse_quantity,
)

KINDS = ("bytes", "bytes_per_s", "flops_per_s", "seconds", "watts")
DECIMAL = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "P": 10**15, "E": 10**18}
BINARY = {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40, "Pi": 2**50}

MEANINGS = [
    ("80 GB", "bytes", 80 * 10**9),
    ("80 GiB", "bytes", 80 * 2**30),
    ("80GiB", "bytes", 80 * 2**30),
    ("  1_000.5 kB ", "bytes", 1_000_500),
    ("2e3 B", "bytes", 2000),
    ("3.35 TB/s", "bytes_per_s", 3_350_000_000_000),
    ("400 Gb/s", "bytes_per_s", 50 * 10**9),
    ("1 b/s", "bytes_per_s", Fraction(1, 8)),
    ("2 GiB/s", "bytes_per_s", 2**31),
    ("989.4 TFLOP/s", "flops_per_s", 989_400 * 10**9),
    ("1 EFLOP/s", "flops_per_s", 10**18),
    ("1.5 us", "seconds", Fraction(15, 10**7)),
    ("3 ns", "seconds", Fraction(3, 10**9)),
    ("10 ms", "seconds", Fraction(1, 100)),
    ("2 min", "seconds", 120),
    ("1.5 h", "seconds", 5400),
    ("0 s", "seconds", 0),
    ("700 W", "watts", 700),
    ("2 MW", "watts", 2 * 10**6),
]


@pytest.mark.parametrize(("text", "kind", "value"), MEANINGS, ids=[f"{kind}: {text}" for text, kind, _ in MEANINGS])
def test_a_number_with_a_unit_has_one_exact_value(text: str, kind: str, value: int | Fraction) -> None:
    assert parse_quantity(text, kind) == value


REFUSED = [
    ("80", "bytes", "80 has no unit; write for example '80 GB'"),
    ("", "bytes", "'' is not a number with a unit; write for example '80 GB'"),
    ("GB", "bytes", "'GB' is not a number with a unit; write for example '80 GB'"),
    ("80 Gb", "bytes", None),
    ("80 gb", "bytes", None),
    ("80 GB/s", "bytes", None),
    ("80 K", "bytes", None),
    ("450 GB", "bytes_per_s", None),
    ("400 Gib/s", "bytes_per_s", None),
    ("1 KB/s", "bytes_per_s", None),
    ("1 TFLOPS", "flops_per_s", None),
    ("1 second", "seconds", None),
    ("1:30", "seconds", None),
    ("7 w", "watts", None),
    ("-1 s", "seconds", "-1 s is negative"),
    ("-0.5 GB", "bytes", "-0.5 GB is negative"),
    ("nan GB", "bytes", "'nan GB' is not a number with a unit; write for example '80 GB'"),
    ("inf s", "seconds", "'inf s' is not a number with a unit; write for example '1.5 us'"),
    ("1e9999 GB", "bytes", None),
    ("1,5 GB", "bytes", None),
    ("None", "watts", "'None' is not a number with a unit; write for example '700 W'"),
    ("1 2 GB", "bytes", None),
    ("9" * 65 + " GB", "bytes", None),
]


@pytest.mark.parametrize(("text", "kind", "words"), REFUSED, ids=[f"{kind}: {text[:12]}" for text, kind, _ in REFUSED])
def test_what_is_not_a_quantity_is_refused_in_words(text: str, kind: str, words: str | None) -> None:
    with pytest.raises(ValueError, match=r".") as error:
        parse_quantity(text, kind)
    if words is not None:
        assert str(error.value) == words


def test_an_unknown_unit_gets_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"^'furlong' is not a unit of seconds; known are s, ms, us, ns, min, h$"):
        parse_quantity("3 furlong", "seconds")
    with pytest.raises(ValueError, match=r"^'GB' is not a unit of bytes per second; known are B/s, "):
        parse_quantity("3 GB", "bytes_per_s")


def test_bits_are_for_rates_only() -> None:
    assert parse_quantity("8 Gb/s", "bytes_per_s") == 10**9
    with pytest.raises(ValueError, match="'Gb' is not a unit of bytes"):
        parse_quantity("8 Gb", "bytes")


def test_bytes_are_whole_and_the_others_are_not() -> None:
    found = TypeAdapter(Bytes).validate_python("80 GiB")
    assert (found, type(found)) == (85_899_345_920, int)
    # A double would end in …992 here.
    assert TypeAdapter(Bytes).validate_python("9007199254740993 B") == 9_007_199_254_740_993
    for kind, text, value in (
        (BytesPerSecond, "400 Gb/s", 5e10),
        (FlopsPerSecond, "1 PFLOP/s", 1e15),
        (Seconds, "0.1 us", 1e-7),
        (Watts, "700 W", 700.0),
    ):
        read = TypeAdapter(kind).validate_python(text)
        assert (read, type(read)) == (value, float)


def test_numbers_that_are_already_si_pass_unchanged() -> None:
    assert TypeAdapter(Bytes).validate_python(1024) == 1024
    assert TypeAdapter(Seconds).validate_python(0.5) == 0.5


@pytest.mark.parametrize("value", [True, 80.0, None, [80]])
def test_what_is_not_text_or_whole_bytes_is_no_size(value: object) -> None:
    with pytest.raises(ValidationError):
        TypeAdapter(Bytes).validate_python(value)


@pytest.mark.parametrize("kind", [Bytes, BytesPerSecond, FlopsPerSecond, Seconds, Watts])
def test_the_json_schema_of_a_quantity_is_text_with_an_example_that_reads(kind: object) -> None:
    adapter = TypeAdapter(kind)
    schema = adapter.json_schema()
    assert schema["type"] == "string"
    (example,) = schema["examples"]
    assert adapter.validate_python(example) > 0


NUMBERS = st.decimals(min_value=0, max_value=10**6, places=3, allow_nan=False, allow_infinity=False)


@given(number=NUMBERS, prefix=st.sampled_from([*DECIMAL.items(), *BINARY.items()]), space=st.sampled_from(["", " "]))
def test_prefixes_are_exact_powers_and_never_mixed_up(number: object, prefix: tuple[str, int], space: str) -> None:
    name, factor = prefix
    value = Fraction(str(number)) * factor
    assert parse_quantity(f"{number}{space}{name}B", "bytes") == value
    assert parse_quantity(f"{number}{space}{name}B/s", "bytes_per_s") == value
    if name in DECIMAL:
        assert 8 * parse_quantity(f"{number}{space}{name}b/s", "bytes_per_s") == value
        assert parse_quantity(f"{number}{space}{name}FLOP/s", "flops_per_s") == value


@given(value=st.integers(0, 10**20))
def test_whole_bytes_survive_the_way_to_text_and_back(value: int) -> None:
    assert TypeAdapter(Bytes).validate_python(f"{value} B") == value


@given(value=st.floats(1e-3, 1e20), digits=st.integers(1, 6))
def test_a_printed_quantity_reads_as_the_same_to_its_digits(value: float, digits: int) -> None:
    for unit, kind in (("B", "bytes"), ("B/s", "bytes_per_s"), ("FLOP/s", "flops_per_s"), ("W", "watts")):
        again = float(parse_quantity(format_si(value, unit, digits=digits), kind))
        # Below one there is no prefix: digits count from the point.
        assert again == pytest.approx(value, rel=10 ** (1 - digits), abs=10 ** (1 - digits) if value < 1 else 0)


@given(value=st.floats(1e-9, 1e6), digits=st.integers(2, 6))
def test_a_printed_duration_reads_as_the_same_to_its_digits(value: float, digits: int) -> None:
    assert float(parse_quantity(format_seconds(value, digits=digits), "seconds")) == pytest.approx(
        value, rel=10 ** (1 - digits)
    )


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (8e10, "80.0 GB"),
        (85_899_345_920, "85.9 GB"),
        (1234567, "1.23 MB"),
        (-5e12, "-5.00 TB"),
        (3e21, "3000 EB"),
        (999_999, "1.00 MB"),
        (9.999e9, "10.0 GB"),
    ],
)
def test_si_text_has_three_digits(value: float, text: str) -> None:
    assert format_si(value, "B") == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0 s"),
        (0.00321, "3.21 ms"),
        (12.345, "12.3 s"),
        (4e-7, "400 ns"),
        (-0.002, "-2.00 ms"),
        (1.5e-5, "15.0 us"),
        (0.9999996, "1.00 s"),
        (9.9999e-4, "1.00 ms"),
    ],
)
def test_durations_are_text_that_a_person_reads(value: float, text: str) -> None:
    assert format_seconds(value) == text
