"""The layout with every `auto` filled in: whole numbers, or numpy arrays of candidates.

Every formula of `simulator.parallel` and `simulator.cost` takes a `Degrees`; a search passes arrays of equal
length instead of numbers and gets arrays back.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from simulator.parallel.layout import Layout
from simulator.parallel.training import Training

Int = Any
"""A whole number or an int64 array of candidates. (`Any`, as numpy's operators on both have no common type.)"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Degrees:
    """Degrees of the axes and what is sharded over data."""

    tp: Int
    """Tensor parallel degree t."""
    sequence: Int
    """Ranks that share the tokens of norms and dropout: t with sequence parallelism, else 1."""
    cp: Int
    """Context parallel degree c."""
    dp: Int
    """Data parallel degree n_d."""
    pp: Int
    """Pipeline ranks p."""
    vpp: Int
    """Model chunks of a pipeline rank v."""
    ep: Int
    """Expert parallel degree e."""
    etp: Int
    """Expert tensor parallel degree t_e."""
    zero: Int
    """ZeRO stage, 0 to 3."""
    shard_group: Int
    """Ranks that share one copy of the sharded dense state."""

    @property
    def devices(self) -> Int:
        """Ranks of the job: t · c · n_d · p."""
        return self.tp * self.cp * self.dp * self.pp

    @property
    def replicas(self) -> Int:
        """Ranks that hold the same dense parameters: n_d · c (E4.10)."""
        return self.dp * self.cp

    @property
    def expert_replicas(self) -> Int:
        """Ranks that hold the same experts: n_d · t · c / (e · t_e) (E3.2)."""
        return self.dp * self.tp * self.cp // (self.ep * self.etp)

    @property
    def expert_shard_group(self) -> Int:
        """Ranks that share one copy of the sharded state of the experts: all that hold the same experts (E3.2), or as
        many as a smaller shard group (HSDP) has."""
        whole, part = self.expert_replicas, self.shard_group
        if _is_array(whole) or _is_array(part):
            return np.where(part == self.replicas, whole, np.minimum(whole, part))
        return whole if part == self.replicas else min(whole, part)


def _is_array(value: Int) -> bool:
    return isinstance(value, np.ndarray)


def resolve_degrees(layout: Layout, *, devices: int) -> Degrees:
    """Returns the layout's degrees with `auto` filled in; `dp: auto` rounds down where it does not divide.

    `simulator.parallel.rules` refuses a layout whose product is not `devices`.
    """
    per_replica = layout.tp * layout.cp * layout.pp
    dp = max(1, devices // per_replica) if layout.dp == "auto" else layout.dp
    sequence_parallel = layout.tp > 1 if layout.sp is None else layout.sp
    return Degrees(
        tp=layout.tp,
        sequence=layout.tp if sequence_parallel else 1,
        cp=layout.cp,
        dp=dp,
        pp=layout.pp,
        vpp=layout.vpp,
        ep=layout.ep,
        etp=layout.etp,
        zero=layout.zero,
        # Nothing is sharded under zero 0, so its gradients are reduced over all replicas at once.
        shard_group=dp * layout.cp if layout.shard_group == "auto" or layout.zero == 0 else layout.shard_group,
    )


def num_microbatches(training: Training, degrees: Degrees) -> Int:
    """Returns the microbatches of each pipeline in a step: B / (n_d · b), rounded down."""
    return training.global_batch // (degrees.dp * training.micro_batch)


def candidates(**columns: npt.ArrayLike) -> Degrees:
    """Returns `Degrees` of numpy arrays, for formulas over many layouts at once."""
    return Degrees(**{name: np.asarray(values, dtype=np.int64) for name, values in columns.items()})
