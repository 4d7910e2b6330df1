"""Quantities with units: `"450 GB/s"` to 4.5e11 and back.

Inside the program everything is SI (bytes, seconds, FLOP/s, watts); GB and GiB exist only here. Decimal
prefixes (k, M, G, T, P, E) are powers of 1000, binary prefixes (Ki, Mi, Gi, Ti, Pi) powers of 1024; they
are never mixed up. Bits (`Gb/s`) are accepted for link rates, as networks are sold in them.
"""

from __future__ import annotations

import re
from fractions import Fraction
from typing import Annotated

from pydantic import BeforeValidator, WithJsonSchema

_DECIMAL = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "P": 10**15, "E": 10**18}
_BINARY = {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40, "Pi": 2**50}
_SMALL = {"": Fraction(1), "m": Fraction(1, 10**3), "u": Fraction(1, 10**6), "n": Fraction(1, 10**9)}
_NUMBER = re.compile(r"^\s*([+-]?\d[\d_]*(?:\.\d+)?(?:[eE][+-]?\d{1,3})?)\s*(\S.*?)?\s*$")
_MAX_TEXT = 64


def _byte_units(suffix: str) -> dict[str, Fraction]:
    units = {f"{prefix}B{suffix}": Fraction(factor) for prefix, factor in (_DECIMAL | _BINARY).items()}
    return units | {f"{prefix}b{suffix}": Fraction(factor, 8) for prefix, factor in _DECIMAL.items() if suffix}


_TIME = {f"{prefix}s": factor for prefix, factor in _SMALL.items()} | {"min": Fraction(60), "h": Fraction(3600)}
_UNITS: dict[str, dict[str, Fraction]] = {
    "bytes": _byte_units(""),
    "bytes_per_s": _byte_units("/s"),
    "flops_per_s": {f"{prefix}FLOP/s": Fraction(factor) for prefix, factor in _DECIMAL.items()},
    "seconds": _TIME,
    "watts": {f"{prefix}W": Fraction(factor) for prefix, factor in _DECIMAL.items()},
}
_EXAMPLES = {
    "bytes": "80 GB",
    "bytes_per_s": "450 GB/s",
    "flops_per_s": "989 TFLOP/s",
    "seconds": "1.5 us",
    "watts": "700 W",
}


def parse_quantity(text: object, kind: str) -> Fraction:
    """Returns the exact SI value of a number with a unit.

    Args:
        text: for example `"3.35 TB/s"`.
        kind: `bytes`, `bytes_per_s`, `flops_per_s`, `seconds` or `watts`.

    Raises:
        ValueError: no unit, an unknown unit, not a number, or a negative one.
    """
    example = _EXAMPLES[kind]
    match = _NUMBER.match(str(text)) if len(str(text)) <= _MAX_TEXT else None
    if match is None:
        raise ValueError(f"{str(text)[:_MAX_TEXT]!r} is not a number with a unit; write for example '{example}'")
    number, unit = match[1], match[2]
    if unit is None:
        raise ValueError(f"{text!s} has no unit; write for example '{example}'")
    factor = _UNITS[kind].get(unit)
    if factor is None:
        known = ", ".join(_UNITS[kind])
        raise ValueError(f"{unit!r} is not a unit of {kind.replace('_per_s', ' per second')}; known are {known}")
    value = Fraction(number.replace("_", "")) * factor
    if value < 0:
        raise ValueError(f"{text!s} is negative")
    return value


def _integer(kind: str) -> BeforeValidator:
    return BeforeValidator(lambda value: value if type(value) is int else round(parse_quantity(value, kind)))


def _real(kind: str) -> BeforeValidator:
    return BeforeValidator(lambda value: value if type(value) is float else float(parse_quantity(value, kind)))


def _schema(kind: str) -> WithJsonSchema:
    units = "|".join(re.escape(unit) for unit in _UNITS[kind])
    return WithJsonSchema(
        {"type": "string", "pattern": rf"^\s*[0-9][0-9_.eE+-]*\s*({units})\s*$", "examples": [_EXAMPLES[kind]]}
    )


Bytes = Annotated[int, _integer("bytes"), _schema("bytes")]
"""A size: `"80 GB"`, `"80 GiB"`; an `int` of bytes."""
BytesPerSecond = Annotated[float, _real("bytes_per_s"), _schema("bytes_per_s")]
"""A bandwidth: `"450 GB/s"`, `"400 Gb/s"`; bytes per second."""
FlopsPerSecond = Annotated[float, _real("flops_per_s"), _schema("flops_per_s")]
"""A compute rate: `"989 TFLOP/s"`; FLOP per second."""
Seconds = Annotated[float, _real("seconds"), _schema("seconds")]
"""A time: `"1.5 us"`; seconds."""
Watts = Annotated[float, _real("watts"), _schema("watts")]
"""A power: `"700 W"`; watts."""


def format_si(value: float, unit: str, *, digits: int = 3) -> str:
    """Returns `value` with a decimal prefix, `digits` significant digits: `format_si(8e10, "B")` is `"80.0 GB"`."""
    if value == 0:
        return f"0 {unit}"
    rounded = _to_digits(value, digits)
    prefix = ""
    for name, factor in _DECIMAL.items():
        if abs(rounded) >= factor:
            prefix = name
    scaled = rounded / _DECIMAL[prefix]
    whole = len(str(int(abs(scaled))))
    return f"{scaled:.{max(0, digits - whole)}f} {prefix}{unit}"


def format_seconds(value: float, *, digits: int = 3) -> str:
    """Returns a duration a person reads: `0.00321` is `"3.21 ms"`."""
    rounded = _to_digits(value, digits)
    for prefix, factor in (("", 1.0), ("m", 1e-3), ("u", 1e-6)):
        if abs(rounded) >= factor:
            return _significant(rounded / factor, f"{prefix}s", digits)
    return "0 s" if value == 0 else _significant(rounded / 1e-9, "ns", digits)


def _to_digits(value: float, digits: int) -> float:
    """Rounds before a prefix is chosen: 999,999 to three digits is a million, not 1000 thousand."""
    return float(f"{value:.{max(0, digits - 1)}e}")


def _significant(value: float, unit: str, digits: int) -> str:
    return f"{value:.{max(0, digits - len(str(int(abs(value)))))}f} {unit}"
