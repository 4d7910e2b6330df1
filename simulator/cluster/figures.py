"""A figure: one number of a cluster file with its unit and where it comes from.

In YAML a figure is a text with unit, `80 GiB`, where a `source:` further out in the file covers it, or a mapping
`{value: 80 GiB, source: "data sheet [nvidia-h100]", verified: false}`, where `[nvidia-h100]` is an entry of the file's
`sources:`. `verified: false` marks a number that was recalled or
assumed and not read in its source. Values are SI once read.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field, GetJsonSchemaHandler, model_validator
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from simulator.units import Bytes, BytesPerSecond, FlopsPerSecond, Seconds, Watts

_FORM = ConfigDict(frozen=True, extra="forbid")
_SECTION_FORM = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)
Name = Annotated[str, Field(min_length=1, max_length=100)]


class Section(BaseModel):
    """A mapping of a cluster file, with the source of those of its figures that name none."""

    model_config = _SECTION_FORM
    source: str = ""
    """Source of every figure below that has none."""


class Figure(BaseModel):
    """A number with its source; the subclasses fix the unit."""

    model_config = _FORM
    unit: ClassVar[str] = ""
    """SI unit of `value`; empty for counts, shares and other plain numbers."""

    value: float
    """The number, SI."""
    source: str = ""
    """The document it was read in: text, or `[key]` of the file's sources; empty where one further out covers it."""
    verified: bool = True
    """False where the number is recalled, estimated or assumed, and was not read in the source."""

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, given: object) -> object:
        return given if isinstance(given, dict | Figure) else {"value": given}

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        schema = handler(core_schema)
        value: dict[str, Any] = handler.resolve_ref_schema(schema)["properties"]["value"]
        return {"anyOf": [value, schema]}


class BytesFigure(Figure):
    """A size in bytes."""

    unit: ClassVar[str] = "B"
    value: Annotated[Bytes, Field(gt=0)]


class BandwidthFigure(Figure):
    """A rate in bytes per second."""

    unit: ClassVar[str] = "B/s"
    value: Annotated[BytesPerSecond, Field(gt=0)]


class FlopsFigure(Figure):
    """A compute rate in FLOP per second."""

    unit: ClassVar[str] = "FLOP/s"
    value: Annotated[FlopsPerSecond, Field(gt=0)]


class SecondsFigure(Figure):
    """A duration in seconds."""

    unit: ClassVar[str] = "s"
    value: Seconds


class WattsFigure(Figure):
    """A power in watts."""

    unit: ClassVar[str] = "W"
    value: Annotated[Watts, Field(gt=0)]


class CountFigure(Figure):
    """A whole number of things, at least 1."""

    value: Annotated[int, Field(ge=1)]


class ShareFigure(Figure):
    """A share of a nominal value, above 0 and at most 1."""

    value: Annotated[float, Field(gt=0, le=1)]


class RatioFigure(Figure):
    """A ratio of at least 1, such as an oversubscription of 7 downlinks to 1 uplink."""

    value: Annotated[float, Field(ge=1, allow_inf_nan=False)]


class CoefficientFigure(Figure):
    """A calibrated coefficient of a cost formula; its name says its unit (`..._s`, `..._fraction`)."""

    value: Annotated[float, Field(allow_inf_nan=False)]


class KilometresFigure(Figure):
    """The length of a cable in kilometres."""

    unit: ClassVar[str] = "km"
    value: Annotated[float, Field(ge=0, allow_inf_nan=False)]
