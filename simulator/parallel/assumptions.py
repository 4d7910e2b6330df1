"""Constants of the model that a user may change, each with its default and source."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from simulator.model.kernels import CrossEntropy, ExpertWeighting, Kernels
from simulator.parallel.collective_choice import Algorithm, Collective, CollectiveChoice, Protocol
from simulator.units import Bytes, Seconds

GIB = 1 << 30
AtLeastOne = Annotated[float, Field(ge=1, le=1000)]


class FlopsConvention(StrEnum):
    """How model FLOPs are counted for MFU."""

    MEGATRON = "megatron"
    CAUSAL = "causal"
    SIX_N = "6n"


class AttentionKernel(StrEnum):
    """Whether the score matrix exists in memory."""

    FLASH = "flash"
    FLASH_UNSKIPPED = "flash-unskipped"
    UNFUSED = "unfused"


class Fusion(StrEnum):
    """Whether an operator is one kernel."""

    FUSED = "fused"
    UNFUSED = "unfused"


class Allocator(StrEnum):
    """Who hands out device memory."""

    AUTO = "auto"
    CACHING = "caching"
    EXPANDABLE = "expandable"
    STATIC = "static"


class GradientReduction(StrEnum):
    """When sharded gradients (zero 2 and 3) are reduced."""

    LAST_MICROBATCH = "last-microbatch"
    EVERY_MICROBATCH = "every-microbatch"


class Assumptions(BaseModel):
    """Every constant by name; a scenario overrides what it knows better."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    flops_convention: FlopsConvention = Field(
        FlopsConvention.MEGATRON,
        description="megatron: attention in full; causal: halved; 6n: 6 x parameters x tokens.",
    )
    attention_kernel: AttentionKernel = Field(
        AttentionKernel.FLASH,
        description="flash (Dao 2023) keeps no score matrix and skips what causality masks; flash-unskipped keeps none "
        "but computes the masked half too (Triton kernels of 2023); unfused keeps E3.5's 5as/h term and computes all.",
    )
    cross_entropy: CrossEntropy = Field(
        CrossEntropy.UNFUSED,
        description="unfused works in place on an fp32 copy of the logits (Megatron-LM, E3.10); fused writes the "
        "gradient over them; eager holds log-softmax and both fp32 gradients (torch.nn.functional.cross_entropy), "
        "eager-kept the logits beside them as well.",
    )
    norm_kernel: Fusion = Field(
        Fusion.FUSED, description="unfused norms keep an fp32 copy of their input and the normalised tensor."
    )
    activation_kernel: Fusion = Field(
        Fusion.FUSED, description="unfused gated activations keep the activated gate (E3.6: 2f a token more)."
    )
    expert_weighting: ExpertWeighting = Field(
        ExpertWeighting.FUSED,
        description="The router's probability multiplies the expert's output, the activation before its down "
        "projection, or the activation inside its kernel: x = 2h, 2f_e or 0 in E3.8.",
    )
    gradient_accumulation_fusion: bool = Field(
        True,
        description="Weight gradients of GEMMs are added into the resident gradients by the GEMM (Megatron-LM); false: "
        "each is a temporary tensor first.",
    )
    weight_gradient_placeholders: bool = Field(
        True,
        description="With fused accumulation one 16-bit tensor of each distinct shape of a linear weight stays in "
        "memory (Transformer Engine); zero 3 and TPUs have none.",
    )
    free_gradients: bool = Field(
        True, description="zero 3: sharded gradients do not exist outside backward and update (zero_grad sets None)."
    )
    raw_gradients: bool = Field(
        False,
        description="What autograd makes stays beside the gradient buffers it is added to, over the whole step "
        "(DeepSpeed's bf16 optimizer: 2 bytes a parameter beside its fp32 gradients); zero 3 has none.",
    )
    bucket_copies: Annotated[int, Field(ge=0)] = Field(
        0,
        description="Elements of two resident copies, of gradients to reduce and of parameters to gather, no more than "
        "a rank has: 5e8 in DeepSpeed's zero 1 and 2 (E3.4); 0: reduced and gathered in place.",
    )
    gemm_workspace: Bytes = Field(
        32 << 20,
        description="Workspace of the GEMM library, one for each stream that GEMMs run on: one, and four for experts "
        "(cuBLAS on Hopper and Blackwell; Transformer Engine). TPUs have none.",
    )
    vocab_padding: Annotated[int, Field(ge=0, le=1 << 20)] = Field(
        128, description="Vocabulary is padded to a multiple of this x tp (Megatron-LM, E1.11); 0: no padding."
    )
    device_context: Bytes = Field(
        GIB, description="Device context and loaded kernels; 0.5 to 2 GiB (E3.13). Unverified for each accelerator."
    )
    communicator_buffers: Bytes = Field(
        16 * 9_633_792,
        description="Staging buffers of one communicator: 16 connections x 9,633,792 B (NCCL defaults, E3.13). "
        "TPUs have none.",
    )
    host_update_efficiency: Annotated[float, Field(ge=0.01, le=1)] = Field(
        0.45,
        description="Share of the bandwidth of host memory that an update on the host reaches (offload). CPU-Adam: "
        "10e9 parameters of 28 bytes in 2.57 s on two sockets of 128 GB/s (Ren 2021, table 4; recalled, unverified).",
    )
    allocator: Allocator = Field(
        Allocator.AUTO,
        description="caching: PyTorch's allocator as it comes; expandable: with expandable_segments:True; static: a "
        "compiler plans memory ahead, reserved equals allocated (XLA); auto: static on TPUs, caching elsewhere.",
    )
    gradient_bucket_elements: Annotated[int, Field(ge=1)] = Field(
        40_000_000, description="Smallest gradient bucket; the bucket is max(this, 1e6 x dp) (Megatron-LM, E3.4)."
    )
    zero2_reduction: GradientReduction = Field(
        GradientReduction.LAST_MICROBATCH,
        description="zero 2: gradients of a stage stay whole from its first to its last microbatch and are scattered "
        "once (Llama 3, section 3.3.2), or are scattered after every microbatch (E3.2).",
    )
    zero3_reduction: GradientReduction = Field(
        GradientReduction.EVERY_MICROBATCH,
        description="zero 3: gradients are scattered after every microbatch (FSDP2), or are whole, in the type of the "
        "network, until the last one (torchtitan with a pipeline).",
    )
    fsdp_prefetch_layers: Annotated[int, Field(ge=0, le=16)] = Field(
        1, description="Layers gathered ahead of the one that computes under zero 3 (torch FSDP, E3.3)."
    )
    free_sent_activations: bool = Field(
        True, description="A stage frees its output once sent (Megatron-LM deallocate_pipeline_outputs)."
    )
    scatter_gather: bool = Field(
        True,
        description="Without sequence parallelism a tensor rank sends 1/tp of a pipeline message and the receivers "
        "gather it (Narayanan 2021, section 4.1).",
    )
    expert_imbalance: AtLeastOne = Field(
        1.0, description="Tokens of the fullest expert rank over the mean; 1: balanced routing."
    )
    expert_capacity: Annotated[float, Field(ge=0, le=1000)] = Field(
        0.0,
        description="Capacity factor: every expert works on ceil(factor x top_k x tokens / experts) tokens of a rank, "
        "padded or dropped (E3.8); 0: dropless.",
    )
    expanded_kv: bool = Field(
        False, description="Keys and values are copied to all query heads before attention (eager PyTorch models)."
    )
    tp_overlap_chunks: Annotated[int, Field(ge=2, le=1024)] = Field(
        4,
        description="Chunks of a GEMM that overlaps its tensor collective (Transformer Engine userbuffers).",
    )
    collective_algorithm: Algorithm = Field(
        Algorithm.AUTO,
        description="auto: as NCCL would choose (E4.8), on TPUs the fastest. A fixed one (NCCL_ALGO) holds on every "
        "group on which it can run.",
    )
    collective_algorithms: dict[Collective, Algorithm] = Field(
        {}, description="The same for one collective, for example {all-reduce: tree}; goes before the one for all."
    )
    collective_protocol: Protocol = Field(
        Protocol.AUTO, description="auto: as NCCL would choose among ll, ll128 and simple (E4.8, NCCL_PROTO)."
    )
    in_network_reduction: bool = Field(
        True, description="Switches that can reduce do so where NCCL would use them; false: never (NCCL_NVLS_ENABLE=0)."
    )
    sustained_compute: Annotated[float, Field(ge=0.01, le=1)] = Field(
        0.86,
        description="Rate of GEMM and attention kernels inside a training step over that of the same kernels alone "
        "(power, caches, neighbours, launch gaps). Fitted: mean error 0 over 37 published A100 runs, none of them of "
        "GPT-3 175B or Llama 3.1 405B (docs/accuracy.md).",
    )
    communication_interference: Annotated[float, Field(ge=0, le=10)] = Field(
        0.0,
        description="What collectives cost the compute beside them: this times the share of multiprocessors that the "
        "library's channels hold (E4.17), 0.13 for NVLink of an H100. TPUs have none.",
    )
    step_overhead: Annotated[Seconds, Field(le=1e5)] = Field(
        0.0, description="Host time of a step that nothing hides (logging, data loading)."
    )

    @property
    def collectives(self) -> CollectiveChoice:
        """What is fixed of how collectives run."""
        return CollectiveChoice(
            algorithm=self.collective_algorithm,
            algorithms=self.collective_algorithms,
            protocol=self.collective_protocol,
            in_network=self.in_network_reduction,
        )

    @property
    def kernels(self) -> Kernels:
        """Which operators are fused."""
        return Kernels(
            flash_attention=self.attention_kernel is not AttentionKernel.UNFUSED,
            fused_norm=self.norm_kernel is Fusion.FUSED,
            fused_activation=self.activation_kernel is Fusion.FUSED,
            cross_entropy=self.cross_entropy,
            expert_weighting=self.expert_weighting,
            expanded_kv=self.expanded_kv,
        )
