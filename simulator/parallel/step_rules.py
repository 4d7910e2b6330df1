"""Rules on the job as a whole: devices, batch, stages, sharding, recipe."""

from __future__ import annotations

from simulator.model.adapters import adapter_targets
from simulator.model.decoder import build_model
from simulator.parallel.case import Case, Check, divisors
from simulator.parallel.degrees import num_microbatches
from simulator.parallel.layout import DEFAULT_ORDER, Axis, StageBalance
from simulator.parallel.training import FullRecompute
from simulator.schedule import SCHEDULES

MAX_PASSES = 20_000_000
"""Forward and backward passes of all pipeline ranks in a step."""


def degrees_multiply_to_devices(case: Case) -> Check:
    """tp · cp · dp · pp is the number of devices."""
    d, layout = case.degrees, case.layout
    others = layout.tp * layout.cp * layout.pp
    if layout.dp == "auto":
        problem = f"{case.devices} devices are not a multiple of tp * cp * pp, which is {others}"
        mend = f"set devices to a multiple of {others}, for example {max(1, case.devices // others) * others}"
    else:
        problem = (
            f"tp * cp * dp * pp is {layout.tp} * {layout.cp} * {d.dp} * {layout.pp} = {others * layout.dp}, "
            f"but the job has {case.devices} devices"
        )
        mend = f"set layout.dp to auto, or devices to {others * layout.dp}"
    return Check(
        holds=d.devices == case.devices,
        path="layout.dp" if layout.dp != "auto" else "devices",
        problem=lambda: problem,
        why="every device of the job holds exactly one rank of the mesh",
        mend=lambda: mend,
    )


def batch_fills_microbatches(case: Case) -> Check:
    """dp · micro_batch divides the global batch."""
    per_microbatch = case.degrees.dp * case.training.micro_batch
    batch = case.training.global_batch
    return Check(
        holds=batch % per_microbatch == 0,
        path="training.global_batch",
        problem=lambda: f"{batch} is not a multiple of dp * micro_batch, which is {per_microbatch}",
        why="every data-parallel rank runs the same number of whole microbatches",
        mend=lambda: (
            f"set training.global_batch to a multiple of {per_microbatch}, for example "
            f"{max(1, batch // per_microbatch) * per_microbatch}"
        ),
    )


def step_is_short_enough(case: Case) -> Check:
    """The passes of a step can be simulated one by one."""
    d = case.degrees
    microbatches = num_microbatches(case.training, d)
    passes = 2 * microbatches * d.pp * d.vpp
    return Check(
        holds=passes <= MAX_PASSES,
        path="training.global_batch",
        problem=lambda: f"{microbatches} microbatches on {d.pp * d.vpp} stages are {passes} passes",
        why=f"every pass of a step is simulated, and more than {MAX_PASSES} would take minutes and gigabytes",
        mend=lambda: "lower training.global_batch: a step repeats itself long before that",
    )


def layers_fill_stages(case: Case) -> Check:
    """Every virtual stage gets a layer."""
    stages, layers = case.degrees.pp * case.degrees.vpp, case.model.num_layers
    return Check(
        holds=(case.layout.listed_stages is not None) | (stages <= layers),
        path="layout.pp",
        problem=lambda: f"pp * vpp is {stages}, but the model has only {layers} layers",
        why="every pipeline stage holds at least one layer",
        mend=lambda: f"set layout.pp * layout.vpp to at most {layers}",
    )


def listed_stages_hold_all_layers(case: Case) -> Check:
    """A list of stages has pp · vpp entries that add up to the layers."""
    stages = case.layout.listed_stages
    num_stages = case.layout.pp * case.layout.vpp
    listed = stages or ()
    return Check(
        holds=stages is None or (len(listed) == num_stages and sum(listed) == case.model.num_layers),
        path="layout.stages",
        problem=lambda: (
            f"{len(listed)} stages with {sum(listed)} layers; "
            f"the layout has pp * vpp = {num_stages} stages and the model {case.model.num_layers} layers"
        ),
        why="each layer lies on exactly one virtual stage",
        mend=lambda: (
            f"list {num_stages} numbers that add up to {case.model.num_layers}, or set layout.stages to even or auto"
        ),
    )


def inner_stages_hold_layers(case: Case) -> Check:
    """Only the first and the last stage may be without a layer."""
    inner = (case.layout.listed_stages or ())[1:-1]
    empty = next((index for index, count in enumerate(inner, start=1) if count == 0), 0)
    return Check(
        holds=empty == 0,
        path="layout.stages",
        problem=lambda: f"stage {empty} (counted from 0) holds no layer",
        why="only the first stage, which has the embedding, and the last, which has the head, do work without a layer",
        mend=lambda: "give every stage between them at least one layer",
    )


def memory_is_balanced_in_a_known_order(case: Case) -> Check:
    """Stages can be balanced by memory if the order of the schedule does not depend on them."""
    kind = SCHEDULES.get(case.schedule)
    return Check(
        holds=case.layout.stages != StageBalance.AUTO_MEMORY or kind is None or not kind.needs_profile,
        path="layout.stages",
        problem=lambda: f"auto-memory with schedule {case.schedule}",
        why="the order of this schedule is made for the stages, and how much a stage holds follows from the order",
        mend=lambda: "set layout.stages to even, auto or a list, or schedule to 1f1b or another with a fixed order",
    )


def shard_group_divides_replicas(case: Case) -> Check:
    """The shard group divides the ranks that hold the same parameters."""
    replicas, group = case.degrees.replicas, case.degrees.shard_group
    return Check(
        holds=(group <= replicas) & (replicas % group == 0),
        path="layout.shard_group",
        problem=lambda: f"{group} does not divide dp * cp, which is {replicas}",
        why="the ranks that hold the same parameters split into equal shard groups (HSDP)",
        mend=lambda: f"set layout.shard_group to one of {divisors(replicas)}, or auto",
    )


def order_names_every_axis(case: Case) -> Check:
    """The order is a permutation of the axes."""
    order = case.layout.order
    return Check(
        holds=sorted(order) == sorted(Axis) and len(order) == len(Axis),
        path="layout.order",
        problem=lambda: f"[{', '.join(order)}] does not name each of {', '.join(DEFAULT_ORDER)} once",
        why="the order says how ranks are laid on devices, fastest-varying axis first",
        mend=lambda: f"set layout.order to a permutation of [{', '.join(DEFAULT_ORDER)}]",
    )


def compute_type_is_supported(case: Case) -> Check:
    """The accelerator multiplies matrices of the compute type."""
    types = case.cluster.accelerator.peak_flops_per_s
    compute = case.training.types.compute
    return Check(
        holds=compute in types,
        path="training.precision",
        problem=lambda: f"{compute} matrix multiplication is not supported by {case.cluster.accelerator.name}",
        why="the accelerator's data sheet gives no rate for it",
        mend=lambda: f"choose a compute type among {', '.join(types)}",
    )


def adapters_have_their_weights(case: Case) -> Check:
    """Listed targets of adapters are weights of the model."""
    lora = case.training.lora
    listed = lora.targets if lora is not None and lora.targets != "all-linear" else ()
    known = adapter_targets(build_model(case.model, sequence_length=1)) if listed else ()
    unknown = [target for target in listed if target not in known]
    return Check(
        holds=not unknown,
        path="training.lora.targets",
        problem=lambda: f"{unknown[0]} is no linear layer of {case.model.name}",
        why="an adapter stands beside the weight of a linear layer",
        mend=lambda: f"choose among {', '.join(known)}, or all-linear",
    )


def recomputed_layers_exist(case: Case) -> Check:
    """Full recompute of more layers than a stage has makes no sense."""
    recompute, stages = case.training.recompute, case.layout.listed_stages
    count = recompute.full_layers if isinstance(recompute, FullRecompute) else 0
    num_stages = case.degrees.pp * case.degrees.vpp
    most = -(-case.model.num_layers // num_stages) if stages is None else max(stages, default=0)
    return Check(
        holds=count <= most,
        path="training.recompute.full_layers",
        problem=lambda: f"{count} layers of each stage, but no stage has more than {most}",
        why="only layers that exist can be recomputed",
        mend=lambda: f"set full_layers to at most {most}, or training.recompute to full",
    )


def sharded_state_is_updated_in_shards(case: Case) -> Check:
    """A rank that holds a shard of the optimizer state cannot update everything."""
    return Check(
        holds=(case.degrees.zero == 0) | case.training.distributed_optimizer_step,
        path="training.distributed_optimizer_step",
        problem=lambda: f"false with layout.zero {case.degrees.zero}",
        why="with zero 1 and more each rank holds the optimizer state of its shard only",
        mend=lambda: "set it to true, or layout.zero to 0",
    )
