"""The rules of validity: each is one named function.

A rule looks at a `Case` and returns a `Check`: whether it holds, and the words for when it does not. With
numbers `holds` is a truth value and the check becomes a `Violation`; with arrays of candidates in
`Case.degrees` it is a mask, by which a search counts reasons.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from simulator.cluster import Cluster, ClusterSpec, build_cluster
from simulator.errors import Violation
from simulator.model.spec import ModelSpec, Positions
from simulator.parallel.assumptions import Assumptions
from simulator.parallel.degrees import Degrees, num_microbatches, resolve_degrees
from simulator.parallel.groups import can_take
from simulator.parallel.layout import DEFAULT_ORDER, Axis, ContextMethod, Layout
from simulator.parallel.mesh import axis_strides, place, stage_digits
from simulator.parallel.training import FullRecompute, Training
from simulator.schedule import schedule_violations

MAX_LISTED = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """What the rules look at."""

    model: ModelSpec
    """The architecture."""
    cluster: Cluster
    """The machine."""
    devices: int
    """Devices of the job."""
    layout: Layout
    """The layout as written."""
    degrees: Degrees
    """Its degrees, numbers or arrays of candidates."""
    schedule: str
    """Name of the pipeline schedule."""
    training: Training
    """The recipe."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """What a rule found."""

    holds: Any
    """Truth value, or mask over candidates."""
    path: str
    """Key at fault."""
    problem: Callable[[], str]
    """What is wrong, made only when needed."""
    why: str
    """Reason for the rule."""
    mend: Callable[[], str]
    """What to change."""


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


def tensor_degree_divides_heads(case: Case) -> Check:
    """tp divides the query heads."""
    heads = case.model.heads
    return Check(
        holds=heads % case.degrees.tp == 0,
        path="layout.tp",
        problem=lambda: f"{case.degrees.tp} does not divide model.heads, which is {heads}",
        why="each tensor-parallel rank holds a whole number of attention heads",
        mend=lambda: f"set layout.tp to one of {_divisors(heads)}",
    )


def tensor_degree_matches_kv_heads(case: Case) -> Check:
    """tp divides the key-value heads, or is a multiple of them."""
    kv_heads = case.model.heads if case.model.latent_attention else case.model.key_value_heads
    tp = case.degrees.tp
    return Check(
        holds=(kv_heads % tp == 0) | (tp % kv_heads == 0),
        path="layout.tp",
        problem=lambda: f"{tp} neither divides model.kv_heads, which is {kv_heads}, nor is a multiple of it",
        why="key-value heads are split evenly over the tensor ranks or copied evenly to them",
        mend=lambda: f"set layout.tp to one of {_divisors(kv_heads)}, or a multiple of {kv_heads}",
    )


def tensor_degree_divides_mlp(case: Case) -> Check:
    """tp divides the width of the dense and shared MLPs."""
    widths = {"model.ffn": case.model.ffn or 0}
    if (experts := case.model.experts) is not None:
        widths["the width of the shared experts"] = experts.shared * (experts.shared_ffn or experts.ffn)
    name, width = next(
        ((name, width) for name, width in widths.items() if _any_not(width % case.degrees.tp == 0)), ("model.ffn", 0)
    )
    return Check(
        holds=width % case.degrees.tp == 0,
        path="layout.tp",
        problem=lambda: f"{case.degrees.tp} does not divide {name}, which is {width}",
        why="each tensor-parallel rank holds an equal part of the MLP's hidden layer",
        mend=lambda: f"set layout.tp to one of {_divisors(width)}",
    )


def context_degree_divides_sequence(case: Case) -> Check:
    """Two chunks for each context rank (zigzag, E4.10) divide the sequence."""
    s, cp = case.training.sequence_length, case.degrees.cp
    return Check(
        holds=(cp == 1) | (s % (2 * cp) == 0),
        path="layout.cp",
        problem=lambda: f"2 * {cp} does not divide training.sequence_length, which is {s}",
        why="each context rank takes two chunks of the sequence, one from each end, to balance causal attention",
        mend=lambda: f"set training.sequence_length to a multiple of {2 * cp}, or layout.cp to 1",
    )


def sequence_parallel_divides_sequence(case: Case) -> Check:
    """The tensor ranks split the tokens of a context rank evenly."""
    s, cp, sequence = case.training.sequence_length, case.degrees.cp, case.degrees.sequence
    return Check(
        holds=s % (cp * sequence) == 0,
        path="layout.tp",
        problem=lambda: (
            f"cp * tp = {cp * sequence} does not divide training.sequence_length, which is {s}, "
            "and sequence parallelism is on"
        ),
        why="with sequence parallelism each tensor rank holds an equal share of the tokens",
        mend=lambda: "set layout.sp to false, or choose degrees that divide the sequence",
    )


def ulysses_divides_heads(case: Case) -> Check:
    """Ulysses hands out whole heads: cp divides the query heads of a tensor rank."""
    heads, tp, cp = case.model.heads, case.degrees.tp, case.degrees.cp
    return Check(
        holds=(case.layout.cp_method is not ContextMethod.ULYSSES) | (heads % (tp * cp) == 0),
        path="layout.cp",
        problem=lambda: f"tp * cp = {tp * cp} does not divide model.heads, which is {heads}, with cp_method ulysses",
        why="Ulysses gives each context rank a whole number of heads (Jacobs 2023)",
        mend=lambda: "set layout.cp_method to ring, or choose tp * cp that divides the heads",
    )


def expert_degree_needs_experts(case: Case) -> Check:
    """ep and etp are for models with experts."""
    d = case.degrees
    return Check(
        holds=(case.model.experts is not None) | ((d.ep == 1) & (d.etp == 1)),
        path="layout.ep" if case.layout.ep > 1 else "layout.etp",
        problem=lambda: f"{d.ep if case.layout.ep > 1 else d.etp} with a model that has no experts",
        why="expert parallelism splits the experts of a mixture-of-experts model",
        mend=lambda: "set layout.ep and layout.etp to 1, or choose a model with experts",
    )


def expert_degree_divides_experts(case: Case) -> Check:
    """ep divides the number of experts."""
    count = case.model.experts.count if case.model.experts else 1
    return Check(
        holds=(case.model.experts is None) | (count % case.degrees.ep == 0),
        path="layout.ep",
        problem=lambda: f"{case.degrees.ep} does not divide model.experts.count, which is {count}",
        why="each expert-parallel rank holds a whole number of experts",
        mend=lambda: f"set layout.ep to one of {_divisors(count)}",
    )


def expert_tensor_degree_divides_expert_mlp(case: Case) -> Check:
    """etp divides the width of an expert."""
    width = case.model.experts.ffn if case.model.experts else 1
    return Check(
        holds=(case.model.experts is None) | (width % case.degrees.etp == 0),
        path="layout.etp",
        problem=lambda: f"{case.degrees.etp} does not divide model.experts.ffn, which is {width}",
        why="each expert-tensor rank holds an equal part of every expert's hidden layer",
        mend=lambda: f"set layout.etp to one of {_divisors(width)}",
    )


def expert_groups_fill_the_stage(case: Case) -> Check:
    """ep · etp divides the ranks of a pipeline stage, in whole steps of the mesh."""
    d = case.degrees
    stage = d.tp * d.cp * d.dp
    return Check(
        holds=stage % (d.ep * d.etp) == 0,
        path="layout.ep",
        problem=lambda: f"ep * etp = {d.ep * d.etp} does not divide the {stage} ranks of a stage (tp * cp * dp)",
        why="the ranks of a pipeline stage are dealt out evenly to expert groups",
        mend=lambda: f"set layout.ep to one of {_divisors(stage // max(1, case.layout.etp))}",
    )


def experts_need_sequence_parallelism(case: Case) -> Check:
    """Experts beside tensor parallelism need sequence parallelism."""
    d = case.degrees
    return Check(
        holds=(case.model.experts is None) | (d.sequence == d.tp),
        path="layout.sp",
        problem=lambda: f"false with tp = {d.tp} and a mixture-of-experts model",
        why="without it every tensor rank would send the same tokens to the experts (Megatron-LM refuses it too)",
        mend=lambda: "set layout.sp to true, or layout.tp to 1",
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


def layers_fill_stages(case: Case) -> Check:
    """Every virtual stage gets a layer."""
    stages, layers = case.degrees.pp * case.degrees.vpp, case.model.layers
    return Check(
        holds=(case.layout.stages != "auto") | (stages <= layers),
        path="layout.pp",
        problem=lambda: f"pp * vpp is {stages}, but the model has only {layers} layers",
        why="every pipeline stage holds at least one layer",
        mend=lambda: f"set layout.pp * layout.vpp to at most {layers}",
    )


def listed_stages_hold_all_layers(case: Case) -> Check:
    """A list of stages has pp · vpp entries that add up to the layers."""
    stages = case.layout.stages
    num_stages = case.layout.pp * case.layout.vpp
    listed = () if stages == "auto" else stages
    return Check(
        holds=stages == "auto" or (len(listed) == num_stages and sum(listed) == case.model.layers),
        path="layout.stages",
        problem=lambda: (
            f"{len(listed)} stages with {sum(listed)} layers; "
            f"the layout has pp * vpp = {num_stages} stages and the model {case.model.layers} layers"
        ),
        why="each layer lies on exactly one virtual stage",
        mend=lambda: f"list {num_stages} numbers that add up to {case.model.layers}, or set layout.stages to auto",
    )


def inner_stages_hold_layers(case: Case) -> Check:
    """Only the first and the last stage may be without a layer."""
    inner = () if case.layout.stages == "auto" else case.layout.stages[1:-1]
    empty = next((index for index, count in enumerate(inner, start=1) if count == 0), 0)
    return Check(
        holds=empty == 0,
        path="layout.stages",
        problem=lambda: f"stage {empty} (counted from 0) holds no layer",
        why="only the first stage, which has the embedding, and the last, which has the head, do work without a layer",
        mend=lambda: "give every stage between them at least one layer",
    )


def shard_group_divides_replicas(case: Case) -> Check:
    """The shard group divides the ranks that hold the same parameters."""
    replicas, group = case.degrees.replicas, case.degrees.shard_group
    return Check(
        holds=(group <= replicas) & (replicas % group == 0),
        path="layout.shard_group",
        problem=lambda: f"{group} does not divide dp * cp, which is {replicas}",
        why="the ranks that hold the same parameters split into equal shard groups (HSDP)",
        mend=lambda: f"set layout.shard_group to one of {_divisors(replicas)}, or auto",
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


def positions_cover_the_sequence(case: Case) -> Check:
    """Learned positions are at least as many as tokens."""
    s, rows = case.training.sequence_length, case.model.max_positions or 0
    return Check(
        holds=case.model.positions is not Positions.LEARNED or s <= rows,
        path="training.sequence_length",
        problem=lambda: f"{s} tokens, but the model has only {rows} learned positions",
        why="every token needs a row of the position table",
        mend=lambda: f"set training.sequence_length to at most {rows}, or model.max_positions to {s}",
    )


def recomputed_layers_exist(case: Case) -> Check:
    """Full recompute of more layers than a stage has makes no sense."""
    recompute = case.training.recompute
    count = recompute.full_layers if isinstance(recompute, FullRecompute) else 0
    return Check(
        holds=count <= case.model.layers,
        path="training.recompute.full_layers",
        problem=lambda: f"{count} layers of each stage, but the model has only {case.model.layers}",
        why="only layers that exist can be recomputed",
        mend=lambda: "lower full_layers, or set training.recompute to full",
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


def offload_is_none(case: Case) -> Check:
    """Offload is refused rather than ignored."""
    offload = case.training.offload
    used = [name for name in ("optimizer", "parameters", "activations") if getattr(offload, name) != "none"]
    return Check(
        holds=not used,
        path=f"training.offload.{used[0]}" if used else "training.offload",
        problem=lambda: f"{getattr(offload, used[0])}: offload is not modelled by this version",
        why="a result that ignored the host link would be wrong",
        mend=lambda: "set training.offload to {optimizer: none, parameters: none, activations: none}",
    )


RULES: tuple[Callable[[Case], Check], ...] = (
    degrees_multiply_to_devices,
    tensor_degree_divides_heads,
    tensor_degree_matches_kv_heads,
    tensor_degree_divides_mlp,
    context_degree_divides_sequence,
    sequence_parallel_divides_sequence,
    ulysses_divides_heads,
    expert_degree_needs_experts,
    expert_degree_divides_experts,
    expert_tensor_degree_divides_expert_mlp,
    expert_groups_fill_the_stage,
    experts_need_sequence_parallelism,
    batch_fills_microbatches,
    layers_fill_stages,
    listed_stages_hold_all_layers,
    inner_stages_hold_layers,
    shard_group_divides_replicas,
    order_names_every_axis,
    compute_type_is_supported,
    positions_cover_the_sequence,
    recomputed_layers_exist,
    sharded_state_is_updated_in_shards,
    offload_is_none,
)
"""Every rule that one layout can be checked by on its own."""


def groups_fall_on_whole_steps(case: Case) -> Check:
    """Shard groups and expert groups are cut out of the mesh in whole steps of its axes."""
    d, axes = case.degrees, axis_strides(case.layout, case.degrees)
    stage = stage_digits(axes)
    replicas = tuple((n, stride) for axis, n, stride in axes if axis in (Axis.CONTEXT, Axis.DATA) and n > 1)
    expert_last = case.layout.order.index(Axis.EXPERT) > case.layout.order.index(Axis.DATA)
    inside = d.etp * (d.expert_replicas if expert_last else 1)
    shard_ok = can_take(replicas, skip=1, count=d.shard_group)
    shard_ok = shard_ok and can_take(replicas, skip=d.shard_group, count=d.replicas // d.shard_group)
    return Check(
        holds=shard_ok
        and can_take(stage, skip=1, count=d.etp)
        and can_take(stage, skip=inside, count=d.ep)
        and can_take(stage, skip=d.etp * (1 if expert_last else d.ep), count=d.expert_replicas)
        and d.expert_replicas % d.expert_shard_group == 0,
        path="layout.ep" if shard_ok else "layout.shard_group",
        problem=lambda: (
            "groups of this size do not cut the mesh "
            f"[{', '.join(f'{axis} {n}' for axis, n, _ in axes)}] into whole steps"
        ),
        why="the ranks of a group lie at regular distances, so that one calculation holds for all groups",
        mend=lambda: "choose degrees that divide each other, for example powers of two",
    )


def cluster_has_enough_domains(case: Case) -> Check:
    """The domains that the job touches exist."""
    axes = axis_strides(case.layout, case.degrees)
    domains, _ = place(axes, case.layout, case.cluster)
    tier, used = case.cluster.tiers[0], domains[0]
    needed = -(-case.devices // used) * tier.size
    return Check(
        holds=needed <= max(case.cluster.num_devices, tier.size),
        path="devices",
        problem=lambda: (
            f"{case.devices} devices at {used} of each {tier.name} domain of {tier.size} touch "
            f"{needed} devices, but {case.cluster.name} has {case.cluster.num_devices}"
        ),
        why="groups fill a domain evenly, which leaves some of its devices unused",
        mend=lambda: (
            f"set devices to at most {case.cluster.num_devices // tier.size * used}, "
            "or choose degrees that fill a domain"
        ),
    )


PLACEMENT_RULES: tuple[Callable[[Case], Check], ...] = (groups_fall_on_whole_steps, cluster_has_enough_domains)
"""Rules on a layout that the others have passed; for one layout at a time."""


def scenario_violations(
    model: ModelSpec,
    cluster: ClusterSpec,
    devices: int,
    layout: Layout,
    schedule: str,
    training: Training,
    assumptions: Assumptions,  # noqa: ARG001  (part of the signature: no rule looks at them yet)
) -> tuple[Violation, ...]:
    """Returns every rule that a scenario breaks, in the order of `RULES`; empty if it is valid."""
    if devices > cluster.devices.value:
        return (
            Violation(
                path="devices",
                problem=f"{devices} devices of cluster {cluster.name}, which has {cluster.devices.value}",
                why="a job uses at most all devices of the cluster",
                mend=f"set devices to at most {cluster.devices.value}, or choose a larger cluster",
            ),
        )
    degrees = resolve_degrees(layout, devices=devices)
    case = Case(
        model=model,
        cluster=build_cluster(cluster),
        devices=devices,
        layout=layout,
        degrees=degrees,
        schedule=schedule,
        training=training,
    )
    found = list(_broken(case, RULES))
    microbatches = max(1, num_microbatches(training, degrees))
    found += schedule_violations(schedule, layout.pp, layout.vpp, microbatches)
    return tuple(found) if found else tuple(_broken(case, PLACEMENT_RULES))


def _broken(case: Case, rules: tuple[Callable[[Case], Check], ...]) -> Iterator[Violation]:
    for rule in rules:
        check = rule(case)
        if not check.holds:
            yield Violation(path=check.path, problem=check.problem(), why=check.why, mend=check.mend())


def _any_not(mask: Any) -> bool:
    return not mask if isinstance(mask, bool) else not mask.all()


def _divisors(number: int) -> str:
    found = [divisor for divisor in range(1, min(number, 4096) + 1) if number % divisor == 0]
    shown = found if len(found) <= MAX_LISTED else [*found[: MAX_LISTED - 1], "…"]
    return ", ".join(map(str, shown))
