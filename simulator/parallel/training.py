"""The training recipe: batch, precision, optimizer, recompute, overlap."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

MAX_TOKENS = 1 << 30
"""Longest sequence, in tokens."""
MAX_SEQUENCES = 1 << 30
"""Largest batch, in sequences."""


class Dtype(StrEnum):
    """Storage or compute type of an element."""

    FP32 = "fp32"
    TF32 = "tf32"
    BF16 = "bf16"
    FP16 = "fp16"
    FP8 = "fp8"

    @property
    def bytes(self) -> int:
        """Bytes of one element in memory."""
        return {Dtype.FP32: 4, Dtype.TF32: 4, Dtype.BF16: 2, Dtype.FP16: 2, Dtype.FP8: 1}[self]


class Precision(BaseModel):
    """Types of compute and of each stored state (equations E3.1)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    compute: Dtype = Field(Dtype.BF16, description="Type of the matrix multiplications.")
    parameters: Dtype = Field(Dtype.BF16, description="Type of the resident weights.")
    gradients: Dtype = Field(Dtype.FP32, description="Type of the resident gradients.")
    reduce: Dtype = Field(Dtype.FP32, description="Type of the gradients on the network.")
    master: Dtype | Literal["none"] = Field(Dtype.FP32, description="Type of the master weights; none: no copy.")
    optimizer: Dtype = Field(Dtype.FP32, description="Type of each optimizer moment.")


RECIPES: dict[str, Precision] = {
    "bf16": Precision(),
    "fp16": Precision(
        compute=Dtype.FP16, parameters=Dtype.FP16, gradients=Dtype.FP16, reduce=Dtype.FP16, master=Dtype.FP32
    ),
    "fp32": Precision(
        compute=Dtype.FP32, parameters=Dtype.FP32, gradients=Dtype.FP32, reduce=Dtype.FP32, master="none"
    ),
    "fp8": Precision(compute=Dtype.FP8),
}
"""Named recipes: Megatron-LM bf16 with fp32 gradients (18 bytes a parameter), fp16 (16), fp32 (16), fp8 (18)."""


class Optimizer(StrEnum):
    """Update rule."""

    ADAMW = "adamw"
    ADAM8BIT = "adam8bit"
    ADAFACTOR = "adafactor"
    SGD = "sgd"
    MUON = "muon"


class Recompute(StrEnum):
    """Which activations are dropped after forward and computed again in backward."""

    NONE = "none"
    SELECTIVE = "selective"
    FULL = "full"
    EVERY_OTHER_MATMUL = "every_other_matmul"


class FullRecompute(BaseModel):
    """Full recompute of only some layers of each stage."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    full_layers: Annotated[int, Field(ge=0)] = Field(description="Layers of each stage that are recomputed in full.")


class RecomputedOperators(StrEnum):
    """What selective recompute can name: parts of blocks, or whole blocks."""

    CORE_ATTENTION = "core_attention"
    NORM = "norm"
    ACTIVATION = "activation"
    LATENT_UP_PROJECTION = "latent_up_projection"
    ATTENTION = "attention"
    MLP = "mlp"
    EXPERTS = "experts"


class SelectiveRecompute(BaseModel):
    """Recompute of named operators of every layer."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    operators: tuple[RecomputedOperators, ...] = Field(
        min_length=1,
        description="Operators that are run again in backward: core_attention, norm, activation, latent_up_projection, "
        "or the whole blocks attention, mlp, experts.",
    )


class Offload(BaseModel):
    """What lives outside the device."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    optimizer: Literal["none", "cpu", "nvme"] = "none"
    parameters: Literal["none", "cpu", "nvme"] = "none"
    activations: Literal["none", "cpu", "nvme"] = "none"


class Overlap(BaseModel):
    """Which communication runs beside compute."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    dp: bool = Field(True, description="Gradient reduction beside backward, parameter gathering beside forward.")
    tp: bool = Field(False, description="Tensor collectives split into chunks beside their GEMM.")
    pp: bool = Field(True, description="Pipeline sends do not hold up the sender.")
    ep: bool = Field(False, description="Expert dispatch and combine beside the shared expert.")


class Training(BaseModel):
    """One optimizer step's recipe."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    sequence_length: Annotated[int, Field(ge=1, le=MAX_TOKENS)] = Field(description="Tokens of a sequence.")
    global_batch: Annotated[int, Field(ge=1, le=MAX_SEQUENCES)] = Field(description="Sequences of a step.")
    micro_batch: Annotated[int, Field(ge=1, le=MAX_SEQUENCES)] = Field(1, description="Sequences of a microbatch.")
    precision: Literal["bf16", "fp16", "fp32", "fp8"] | Precision = Field("bf16", description="Recipe or mapping.")
    optimizer: Optimizer = Field(Optimizer.ADAMW, description="Update rule.")
    recompute: Recompute | FullRecompute | SelectiveRecompute = Field(
        Recompute.NONE, description="Activation recomputation."
    )
    offload: Offload = Offload()
    overlap: Overlap = Overlap()
    distributed_optimizer_step: bool = Field(
        True, description="Each rank updates its shard; false: every rank updates everything, which needs zero 0."
    )

    @property
    def types(self) -> Precision:
        """The precision, a named recipe looked up."""
        return RECIPES[self.precision] if isinstance(self.precision, str) else self.precision
