"""How the ranks of a job differ: slow ranks, slow links, random jitter, microbatches of uneven length."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, model_validator

MAX_SLOWDOWN = 1000.0
"""Largest factor on the compute time of a rank; what is slower than that has failed."""
MIN_BANDWIDTH_SHARE = 0.001
MAX_STEPS = 1_000_000
DEFAULT_STEPS = 100
"""Steps that are drawn where there is jitter: the 95th percentile then lies between the 4th and 7th largest."""
_Number = Annotated[int, Field(ge=0)]
_Numbers = Annotated[tuple[_Number, ...], Field(min_length=1)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Chosen(_Part):
    """Which ranks something is said of: by rank, by node, or by their place in the layout."""

    rank: _Number | None = Field(None, description="One rank.")
    ranks: _Numbers | None = Field(None, description="Several ranks.")
    node: _Number | None = Field(None, description="All ranks of one host; hosts are counted along the devices.")
    nodes: _Numbers | None = Field(None, description="All ranks of several hosts.")
    pipeline_rank: _Number | None = Field(
        None, description="All ranks at one position of the pipeline; with replica, those of that replica."
    )
    replica: _Number | None = Field(
        None, description="All ranks of one data-parallel replica; with pipeline_rank, those at that position."
    )

    @model_validator(mode="after")
    def _chosen_once(self) -> Chosen:
        given = [name for name in Chosen.model_fields if getattr(self, name) is not None]
        if not given:
            raise ValueError(f"names no ranks; give one of {', '.join(Chosen.model_fields)}")
        if len(given) > 1 and given != ["pipeline_rank", "replica"]:
            raise ValueError(
                f"{given[1]} stands beside {given[0]}; choose ranks in one way (only pipeline_rank and replica may "
                "stand together)"
            )
        return self

    @property
    def key(self) -> str:
        """The key that chooses the ranks, the first of two."""
        return next(name for name in Chosen.model_fields if getattr(self, name) is not None)


class Straggler(Chosen):
    """Ranks that compute more slowly than the others."""

    slowdown: Annotated[float, Field(ge=1.0, le=MAX_SLOWDOWN)] = Field(
        description="Factor on the time of everything that these ranks compute: 1.3 takes 30 % longer."
    )


class SlowLink(Chosen):
    """Ranks whose port into a network tier is slower than that of the others."""

    tier: str = Field(min_length=1, description="Name of the tier in the cluster, for example infiniband.")
    bandwidth: Annotated[float, Field(ge=MIN_BANDWIDTH_SHARE, le=1.0)] = Field(
        description="Share of the port's bandwidth that is left, both directions."
    )


class Distribution(StrEnum):
    """Distributions of a random factor on compute time."""

    LOGNORMAL = "lognormal"
    """Mean 1; a little skewed to slow."""
    NORMAL = "normal"
    """Mean 1, symmetric; cut off at a tenth."""
    EXPONENTIAL = "exponential"
    """Never below 1, long tail: 1 plus an exponential variable, so the mean is 1 + deviation."""


class Fold(StrEnum):
    """Which ranks with jitter are simulated as one."""

    NONE = "none"
    """Every rank alone."""
    TENSOR = "tensor"
    """The ranks of a tensor group together, at the pace of the slowest of them in each action."""


class Jitter(_Part):
    """Random factors on compute time, drawn anew in each simulated step."""

    compute: Annotated[float, Field(ge=0.0, le=1.0)] = Field(
        0.0, description="Standard deviation of the factor of each action of each rank: a pass of a microbatch."
    )
    ranks: Annotated[float, Field(ge=0.0, le=1.0)] = Field(
        0.0, description="Standard deviation of a factor that a rank keeps for a whole step."
    )
    distribution: Distribution = Field(Distribution.LOGNORMAL, description="Of both factors.")
    fold: Fold = Field(
        Fold.NONE,
        description="tensor: simulate each tensor group as one rank that takes, in each action, the slowest of its "
        "ranks' factors. Exact for what lies between the group's collectives, else an upper bound.",
    )

    @property
    def used(self) -> bool:
        """Whether anything is random."""
        return self.compute > 0 or self.ranks > 0


class Tokens(_Part):
    """Microbatches that are not full: real tokens, compute time in proportion to them."""

    spread: Annotated[float, Field(gt=0.0, lt=1.0)] | None = Field(
        None,
        description="Every microbatch of every replica has between (1 - spread) and all of its tokens, each count "
        "equally likely, drawn once with the seed.",
    )
    table: tuple[tuple[Annotated[int, Field(ge=1)], ...], ...] | None = Field(
        None, description="Tokens of each microbatch (columns) of each data-parallel replica (rows)."
    )
    file: str | None = Field(None, min_length=1, description="The same table as a CSV file without a header.")

    @model_validator(mode="after")
    def _given_once(self) -> Tokens:
        given = [name for name in Tokens.model_fields if getattr(self, name) is not None]
        # A file that has been read stands beside its table.
        if len(given) != 1 and given != ["table", "file"]:
            raise ValueError(f"{len(given)} of {', '.join(Tokens.model_fields)} are given; give exactly one")
        return self


class Variability(_Part):
    """How ranks, links and microbatches differ from what the rest of the scenario says."""

    stragglers: tuple[Straggler, ...] = Field((), description="Slower ranks; several factors on one rank multiply.")
    slow_links: tuple[SlowLink, ...] = Field((), description="Slower ports; several shares of one port multiply.")
    jitter: Jitter | None = Field(None, description="Random compute times.")
    tokens: Tokens | None = Field(None, description="Microbatches of uneven length; memory stays that of full ones.")
    steps: Annotated[int, Field(ge=2, le=MAX_STEPS)] | None = Field(
        None, description=f"Steps to draw where there is jitter; default {DEFAULT_STEPS}."
    )

    @property
    def marks_ranks(self) -> bool:
        """Whether some ranks are slower than others in every step."""
        return bool(self.stragglers or self.slow_links)

    @property
    def drawn_steps(self) -> int:
        """Steps to draw; 0 where nothing is random."""
        if self.jitter is None or not self.jitter.used:
            return 0
        return DEFAULT_STEPS if self.steps is None else self.steps

    def without_marks(self) -> Variability:
        """Returns the same without slow ranks, slow links and jitter."""
        return Variability(tokens=self.tokens)
