"""The update rule and its settings."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, model_validator


class Optimizer(StrEnum):
    """Update rule."""

    ADAMW = "adamw"
    ADAM8BIT = "adam8bit"
    ADAFACTOR = "adafactor"
    SGD = "sgd"
    MUON = "muon"


KEEPS_MOMENTUM = {
    Optimizer.ADAMW: True,
    Optimizer.ADAM8BIT: True,
    Optimizer.ADAFACTOR: False,
    Optimizer.SGD: True,
    Optimizer.MUON: True,
}
"""Whether a rule keeps a first moment unless told otherwise."""


class UpdateRule(BaseModel):
    """An update rule with its settings."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Optimizer = Field(description="Update rule.")
    block: Annotated[int, Field(ge=1, le=1 << 20)] = Field(
        256,
        description="adam8bit: elements of a moment that share an fp32 scale; bitsandbytes 256, Dettmers 2022 2048.",
    )
    momentum: bool | None = Field(
        None, description="sgd, adafactor: whether a first moment is kept; default: sgd keeps one, adafactor none."
    )

    @model_validator(mode="after")
    def _settings_belong_to_the_rule(self) -> UpdateRule:
        if self.momentum is not None and self.name not in (Optimizer.SGD, Optimizer.ADAFACTOR):
            raise ValueError(f"momentum is a setting of sgd and adafactor, not of {self.name}")
        if "block" in self.model_fields_set and self.name is not Optimizer.ADAM8BIT:
            raise ValueError(f"block is a setting of adam8bit, not of {self.name}")
        return self

    @property
    def keeps_momentum(self) -> bool:
        """Whether a first moment is kept."""
        return KEEPS_MOMENTUM[self.name] if self.momentum is None else self.momentum
