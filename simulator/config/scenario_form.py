"""The form of a scenario in a file, and where its values were written."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, field_validator
from pydantic_core import PydanticCustomError

from simulator.cluster.degraded_spec import Degraded
from simulator.cluster.spec import ClusterSpec
from simulator.config.tree import Node
from simulator.model.spec import ModelSpec
from simulator.parallel.assumptions import Assumptions
from simulator.parallel.layout import Layout
from simulator.parallel.scenario import Scenario
from simulator.parallel.schedule_choice import LimitedSchedule
from simulator.parallel.training import Training
from simulator.parallel.variability import Variability
from simulator.schedule import SCHEDULES

MAX_DEVICES = 1 << 24
MAX_SEED = (1 << 63) - 1
TABLE_ENDING = ".csv"
"""Of the path of a table of actions."""


class ScenarioForm(BaseModel):
    """The keys of a scenario file, names of models and clusters already replaced by what they stand for."""

    model_config = ConfigDict(frozen=True, extra="forbid", str_strip_whitespace=True)

    name: str = Field(min_length=1, max_length=200, description="Name shown in reports.")
    description: str = Field("", description="Free text.")
    model: ModelSpec = Field(
        description="Built-in name, path of a model YAML or a Hugging Face config.json, or the model itself."
    )
    cluster: ClusterSpec = Field(description="Built-in name, path of a cluster YAML, or the cluster itself.")
    devices: Annotated[int, Field(ge=1, le=MAX_DEVICES)] | None = Field(
        None, description="Accelerators that the job uses; default: all of the cluster."
    )
    degraded: tuple[Degraded, ...] = Field(
        (), description="Faults of the network and slow devices, beside those that the cluster lists."
    )
    layout: Layout = Field(Layout(), description="Degree of each axis, and what is sharded over data.")
    schedule: str | LimitedSchedule | None = Field(
        None,
        description="Pipeline schedule: a name, the path of a table of actions (.csv), or a name with its limit of "
        "memory; default: 1f1b, with vpp above 1 interleaved-1f1b.",
    )
    training: Training = Field(description="Batch, precision, optimizer, recompute, overlap.")
    assumptions: Assumptions = Field(Assumptions(), description="Constants of the model that the user knows better.")
    variants: dict[str, dict[str, Any]] = Field({}, description="For compare: by name, values by dotted path.")
    variability: Variability = Field(
        Variability(), description="Ranks that are not alike: stragglers, slow links, jitter, uneven microbatches."
    )
    seed: Annotated[int, Field(ge=0, le=MAX_SEED)] = Field(0, description="Seed of what is random in variability.")

    @field_validator("schedule")
    @classmethod
    def _schedule_exists(cls, value: str | LimitedSchedule | None) -> str | LimitedSchedule | None:
        if isinstance(value, str) and value not in SCHEDULES and not value.endswith(TABLE_ENDING):
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


__all__ = ["MAX_DEVICES", "MAX_SEED", "TABLE_ENDING", "Origin", "Scenario", "ScenarioForm"]
