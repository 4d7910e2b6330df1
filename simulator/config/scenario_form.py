"""What a scenario is: its form in a file, and the value that the simulator works on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, field_validator
from pydantic_core import PydanticCustomError

from simulator.cluster.spec import ClusterSpec
from simulator.config.tree import Node
from simulator.model.spec import ModelSpec
from simulator.parallel.assumptions import Assumptions
from simulator.parallel.layout import Layout
from simulator.parallel.training import Training
from simulator.schedule import SCHEDULES

MAX_DEVICES = 1 << 24
MAX_SEED = (1 << 63) - 1


class ScenarioForm(BaseModel):
    """The keys of a scenario file, names of models and clusters already replaced by what they stand for."""

    model_config = ConfigDict(frozen=True, extra="forbid", str_strip_whitespace=True)

    name: str = Field(min_length=1, max_length=200, description="Name shown in reports.")
    description: str = Field("", description="Free text.")
    model: ModelSpec = Field(description="Built-in name, path of a model YAML, or the model itself.")
    cluster: ClusterSpec = Field(description="Built-in name, path of a cluster YAML, or the cluster itself.")
    devices: Annotated[int, Field(ge=1, le=MAX_DEVICES)] | None = Field(
        None, description="Accelerators that the job uses; default: all of the cluster."
    )
    layout: Layout = Field(Layout(), description="Degree of each axis, and what is sharded over data.")
    schedule: str | None = Field(
        None, description="Pipeline schedule; default: 1f1b, with vpp above 1 interleaved-1f1b."
    )
    training: Training = Field(description="Batch, precision, optimizer, recompute, overlap.")
    assumptions: Assumptions = Field(Assumptions(), description="Constants of the model that the user knows better.")
    variants: dict[str, dict[str, Any]] = Field({}, description="For compare: by name, values by dotted path.")
    seed: Annotated[int, Field(ge=0, le=MAX_SEED)] = Field(0, description="Seed of everything random.")

    @field_validator("schedule")
    @classmethod
    def _schedule_exists(cls, value: str | None) -> str | None:
        if value is not None and value not in SCHEDULES:
            names = ", ".join(f"'{name}'" for name in SCHEDULES)
            raise PydanticCustomError("enum", "Input should be {expected}", {"expected": names})
        return value


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Origin:
    """Where the values of a scenario were written; what problems need to name a line."""

    root: Node
    """The tree of the scenario, files and overrides put in their places."""
    variant: str = ""
    """Name of the variant, empty for the scenario itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """One training step to simulate: everything that the ten steps need."""

    name: str
    """Name shown in reports."""
    model: ModelSpec
    """The architecture."""
    cluster: ClusterSpec
    """The machine."""
    layout: Layout
    """The layout as written; `auto` values are resolved by `simulator.parallel`."""
    training: Training
    """The recipe of a step."""
    description: str = ""
    """Free text."""
    devices: int = 0
    """Accelerators that the job uses; 0 becomes all of the cluster."""
    schedule: str = ""
    """Pipeline schedule; empty becomes `1f1b`, or `interleaved-1f1b` with several virtual stages a rank."""
    assumptions: Assumptions = field(default_factory=Assumptions)
    """Constants of the model."""
    seed: int = 0
    """Seed of everything random."""
    variants: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Overrides by dotted path, as written, by name of the variant."""
    origin: Origin | None = field(default=None, repr=False, compare=False)
    """Lines of the file that it was read from; None if it was not read from a file."""

    def __post_init__(self) -> None:
        # The only way to fill a default that depends on another field of a frozen dataclass.
        if not self.devices:
            object.__setattr__(self, "devices", self.cluster.devices.value)
        if not self.schedule:
            object.__setattr__(self, "schedule", "interleaved-1f1b" if self.layout.vpp > 1 else "1f1b")

    def to_dict(self) -> dict[str, Any]:
        """Returns the scenario for the report: plain values, SI, every default of a file filled in."""
        return {
            "name": self.name,
            "description": self.description,
            "model": self.model.model_dump(mode="json"),
            "cluster": self.cluster.model_dump(mode="json"),
            "devices": self.devices,
            "layout": self.layout.model_dump(mode="json"),
            "schedule": self.schedule,
            "training": self.training.model_dump(mode="json"),
            "assumptions": self.assumptions.model_dump(mode="json"),
            "seed": self.seed,
        }
