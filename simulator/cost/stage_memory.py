"""What every pass of a stage does to memory, tensor by tensor, in the order of the program.

The host runs ahead of the device and allocates in program order, so that memory does not depend on how long anything
takes (PyTorch's caching allocator works at the host's calls). Lowering puts these swings on the tasks of a step;
`evaluate_memory` adds them up without pricing any time.

FSDP (zero 3), as torch's `fully_shard` runs it: before a layer's forward its parameters are gathered into a buffer and
copied out of it, the buffer is freed when the next layer's copy is made; backward gathers the next layer beside the one
that runs. A layer's gradients are copied into the input of a reduce-scatter, which is freed when the next one starts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from simulator.cost.buckets import gradient_buckets
from simulator.cost.liveness import layer_tapes
from simulator.cost.memory import Held, Memory, Swing, given_back, measured, released, taken
from simulator.cost.pass_memory import (
    ALL_GATHER_BUFFER,
    GATHERED_PARAMETERS,
    REDUCE_SCATTER_INPUT,
    SHARDED_GRADIENTS,
    STAGE_INPUT,
    STAGE_OUTPUT,
    At,
    LayerMemory,
    PassMemory,
    layer_tensor_bytes,
)
from simulator.cost.shares import StageShare
from simulator.cost.tape import LayerTapes, Splits, Tape, WeightGradients
from simulator.model.layers import Layer, LayerKind
from simulator.model.tensors import Tensor
from simulator.parallel.assumptions import Assumptions, GradientReduction
from simulator.parallel.degrees import Degrees, Int
from simulator.parallel.layout import ContextMethod
from simulator.parallel.recompute import recompute_choice
from simulator.parallel.sharding import Workload, activation_bytes, tensor_bytes, workload_of_layer
from simulator.parallel.training import Training

Change = Callable[[str, Memory, Int], Swing]
"""Takes or gives back one tensor."""


@dataclass(frozen=True, kw_only=True, eq=False)
class MemoryRules:
    """What the memory of every stage depends on.

    Candidates that are evaluated together agree in `zero` and in which degrees are greater than one.
    """

    workload: Workload
    """The microbatch."""
    degrees: Degrees
    """The cuts."""
    training: Training
    """The recipe."""
    assumptions: Assumptions
    """Constants."""
    has_experts: bool
    """Whether the model is a mixture of experts."""
    context: ContextMethod = ContextMethod.RING
    """Context parallel attention."""
    planned_ahead: bool = False
    """Whether a compiler plans memory (XLA on TPUs): there are no libraries that keep tensors of their own."""
    reshard_after_forward: bool = True
    """Whether zero 3 frees parameters after each pass; else after the last backward of a step."""
    _measured: dict[object, Swing] = field(default_factory=dict, init=False, repr=False)
    """Swings of layers that were asked for before."""
    _released: dict[Swing, Swing] = field(default_factory=dict, init=False, repr=False)
    """What frees the whole gradients that a swing leaves."""
    _tapes: dict[object, LayerTapes] = field(default_factory=dict, init=False, repr=False)
    """Tapes of layers that were asked for before; a layer is known by its identity, the stages keep it alive."""

    @cached_property
    def zero(self) -> int:
        """ZeRO stage."""
        return int(np.max(self.degrees.zero))

    @cached_property
    def reduces_once(self) -> bool:
        """Whether gradients are reduced after the last microbatch only; else after every one."""
        assumptions = self.assumptions
        when = assumptions.zero2_reduction if self.zero == 2 else assumptions.zero3_reduction
        return self.zero < 2 or when is GradientReduction.LAST_MICROBATCH

    def first_differs(self, *, is_backward: bool) -> bool:
        """Whether a pass of a step's first microbatch does more than others: gradients or parameters come."""
        if not is_backward:
            return self.zero >= 3 and not self.reshard_after_forward
        return self.zero >= 2 and (self.reduces_once or self.frees_gradients)

    def last_differs(self, *, is_backward: bool) -> bool:
        """Whether a pass of its last microbatch does: gathered parameters or whole gradients go."""
        return is_backward and self.zero >= 2 and (self.frees_gradients_in_buckets or not self.reshard_after_forward)

    @cached_property
    def weight_gradient_bytes(self) -> int:
        """Bytes of an element of a weight's gradient as autograd makes it: of the type that the weight computes in."""
        types = self.training.types
        activation = activation_bytes(types.compute)
        return activation if types.parameters.is_quantised else min(types.parameters.bytes, activation)

    @cached_property
    def kept_gradient_bytes(self) -> int:
        """Bytes of an element of a whole gradient that waits for its reduction.

        For a microbatch alone it is as autograd makes it; over microbatches of the type of the gradient buffers (zero
        2) or of the network (FSDP2).
        """
        if not self.reduces_once:
            return self.weight_gradient_bytes
        return self.training.types.reduce.bytes if self.zero >= 3 else self.training.types.gradients.bytes

    def forward(self, share: StageShare, *, first: bool, keeps_output: bool) -> PassMemory:
        """Returns the forward pass of a microbatch.

        Args:
            share: the stage.
            first: the first microbatch of a step, which gathers parameters that stay.
            keeps_output: whether the stage's output stays in memory until backward.
        """
        order = range(len(share.layers))
        opening, closing = share.layers[0].layer, share.layers[-1].layer
        offloaded = self.offloaded_layers(share)
        layers = {}
        for position in order:
            before: tuple[At, ...] = ()
            after: tuple[At, ...] = ()
            if self.zero >= 3 and (first or self.reshard_after_forward):
                before = (
                    self._tensor(ALL_GATHER_BUFFER, share, position, taken),
                    *((self._tensor(ALL_GATHER_BUFFER, share, position - 1, given_back),) if position else ()),
                    self._tensor(GATHERED_PARAMETERS, share, position, taken),
                )
                if self.reshard_after_forward:
                    after = (self._tensor(GATHERED_PARAMETERS, share, position, given_back),)
                if position == order[-1]:
                    after += (self._tensor(ALL_GATHER_BUFFER, share, position, given_back),)
            if position - 1 in offloaded:
                after += (self._outside(share, position - 1, -1),)
            layers[position] = LayerMemory(
                before=before + self._restored(share, position, taken),
                during=self._during(share, position),
                after=self._restored(share, position, given_back) + after,
            )
        received = taken(STAGE_INPUT, Memory.ACTIVATIONS, self._bytes_in(opening, opening.input))
        sent: tuple[At, ...] = ()
        if closing.kind is not LayerKind.HEAD and not keeps_output:
            sent = (_stage(given_back(STAGE_OUTPUT, Memory.ACTIVATIONS, self.boundary_bytes(share))),)
        return PassMemory(begin=(_stage(received),), layers=layers, end=sent)

    def backward(self, share: StageShare, *, first: bool, last: bool, keeps_output: bool) -> PassMemory:
        """Returns the backward pass of a microbatch.

        Args:
            share: the stage.
            first: the first microbatch of a step, which begins the gradients.
            last: the last one, after which gradients are reduced.
            keeps_output: whether the stage's output stayed in memory.
        """
        edge = self.boundary_bytes(share)
        order = range(len(share.layers) - 1, -1, -1)
        buckets = self.buckets(share, backward=True) if last and self.frees_gradients_in_buckets else []
        ends_of_buckets = {bucket[-1]: number for number, bucket in enumerate(buckets)}
        offloaded = self.offloaded_layers(share)
        layers = {}
        reducing: tuple[At, ...] = ()
        issued: set[int] = set()
        for position in order:
            before: tuple[At, ...] = ()
            after: tuple[At, ...] = ()
            if self.zero >= 3 and not self.reshard_after_forward:
                after = (self._tensor(GATHERED_PARAMETERS, share, position, given_back),) if last else ()
            elif self.zero >= 3:
                until = max(-1, position - 1 - self.assumptions.fsdp_prefetch_layers)
                fresh = [number for number in range(position - 1, until, -1) if number not in issued]
                own = () if position in issued else (self._tensor(ALL_GATHER_BUFFER, share, position, taken),)
                issued |= {position, *fresh}
                before = (
                    *own,
                    self._tensor(GATHERED_PARAMETERS, share, position, taken),
                    self._tensor(ALL_GATHER_BUFFER, share, position, given_back),
                    *(self._tensor(ALL_GATHER_BUFFER, share, number, taken) for number in fresh),
                )
                after = (self._tensor(GATHERED_PARAMETERS, share, position, given_back),)
            if not self.reduces_once:
                after += (
                    *reducing,
                    self._tensor(REDUCE_SCATTER_INPUT, share, position, taken),
                    self._unsharded(share, position),
                    *(
                        (self._tensor(SHARDED_GRADIENTS, share, position, taken),)
                        if first and self.frees_gradients
                        else ()
                    ),
                )
                reducing = (self._tensor(REDUCE_SCATTER_INPUT, share, position, given_back),)
            elif ends_of_buckets.get(position):
                done = buckets[ends_of_buckets[position] - 1]
                after += tuple(self._unsharded(share, number) for number in done)
            if position - 1 in offloaded:
                before += (self._outside(share, position - 1, 1),)
            layers[position] = LayerMemory(
                before=before + self._restored(share, position, taken),
                during=self._during(share, position, begins=first or not self.reduces_once),
                after=self._restored(share, position, given_back) + after,
            )
        end = [*reducing]
        if share.layers[0].layer.kind is not LayerKind.EMBEDDING:
            end.append(_stage(given_back(f"gradient of {STAGE_INPUT}", Memory.TEMPORARY, edge)))
        if keeps_output:
            end.append(_stage(given_back(STAGE_OUTPUT, Memory.ACTIVATIONS, edge)))
        begin: tuple[At, ...] = ()
        if share.layers[-1].layer.kind is not LayerKind.HEAD:
            begin = (_stage(taken(f"gradient of {STAGE_OUTPUT}", Memory.TEMPORARY, edge)),)
        return PassMemory(begin=begin, layers=layers, end=tuple(end))

    def end_of_step(self, share: StageShare, *, chunk: int) -> tuple[At, ...]:
        """Returns what a stage, of this number on its rank, frees when its gradients are reduced (zero 2 and 3)."""
        if not (self.zero >= 2 and self.reduces_once):
            return ()
        freed = self.buckets(share, backward=True)[-1] if self.frees_gradients_in_buckets else range(len(share.layers))
        gone = [self._unsharded(share, number) for number in freed]
        if self.frees_gradients:
            gone += [self._tensor(SHARDED_GRADIENTS, share, number, taken) for number in range(len(share.layers))]
        return tuple(replace(at, chunk=chunk) for at in gone)

    def update(self, shares: Sequence[StageShare]) -> tuple[tuple[At, ...], tuple[At, ...]]:
        """Returns what the optimizer's update of a rank takes, and what is given back when it is done."""
        size = sum(share.optimizer_temporary_bytes for share in shares)
        name = "gradients in the type of the master weights"
        freed = [_stage(given_back(name, Memory.TEMPORARY, size))]
        if self.frees_gradients:
            for chunk, share in enumerate(shares):
                freed += [
                    replace(self._tensor(SHARDED_GRADIENTS, share, position, given_back), chunk=chunk)
                    for position in range(len(share.layers))
                ]
        return (_stage(taken(name, Memory.TEMPORARY, size)),), tuple(freed)

    @cached_property
    def frees_gradients(self) -> bool:
        """Whether sharded gradients come in the first backward of a step and go after the update."""
        return self.zero >= 3 and self.assumptions.free_gradients

    @cached_property
    def frees_gradients_in_buckets(self) -> bool:
        """Whether whole gradients go bucket by bucket, each when the next one is reduced (overlapped)."""
        return self.zero >= 2 and self.reduces_once and self.training.overlap.dp

    def buckets(self, share: StageShare, *, backward: bool) -> list[list[int]]:
        """Returns the positions of the layers of each gradient bucket, in the order of the pass (E3.4)."""
        return gradient_buckets(
            share, self.degrees, smallest=self.assumptions.gradient_bucket_elements, backward=backward
        )

    def boundary_bytes(self, share: StageShare) -> Int:
        """Returns the bytes of the activation at a stage's edge (E4.15)."""
        first = share.layers[0].layer
        stream = first.tensors[first.output] if first.kind is LayerKind.EMBEDDING and first.output else first.input
        return tensor_bytes(stream, self.workload, self.degrees)

    def tapes(self, share: StageShare, position: int, *, begins: bool = True) -> LayerTapes:
        """Returns the tapes of a layer; `begins`: its gradients are not added to those of earlier microbatches."""
        layer = share.layers[position].layer
        among_transformers = position - (share.layers[0].layer.kind is LayerKind.EMBEDDING)
        # The gradients of repeated layers are added to those of the layer that stores their weights.
        begins = begins and not layer.repeats
        choice = recompute_choice(self.training, layer.kind, among_transformers)
        key = (id(layer), choice, begins)
        if key not in self._tapes:
            self._tapes[key] = layer_tapes(layer, choice, self._splits(begins=begins))
        return self._tapes[key]

    def _splits(self, *, begins: bool) -> Splits:
        dense, expert = self._kept_apart
        resident = (
            WeightGradients.ACCUMULATED if self.assumptions.gradient_accumulation_fusion else WeightGradients.TEMPORARY
        )
        return Splits(
            sequence=bool(np.max(self.degrees.sequence) > 1),
            experts=bool(np.max(self.degrees.ep * self.degrees.etp) > 1),
            context=self.context if np.max(self.degrees.cp) > 1 else None,
            gradients=WeightGradients.KEPT if dense and begins else resident,
            expert_gradients=WeightGradients.KEPT if expert and begins else resident,
        )

    @cached_property
    def _kept_apart(self) -> tuple[bool, bool]:
        """Whether the gradients of dense and of expert weights are whole for a while, beside their resident shards."""
        degrees = self.degrees
        if self.zero < 2:
            return False, False
        if self.reduces_once:
            dense, expert = degrees.shard_group, degrees.expert_shard_group
        else:
            dense, expert = degrees.replicas, degrees.expert_replicas
        return bool(np.max(dense) > 1), bool(np.max(expert) > 1)

    def _during(self, share: StageShare, position: int, *, begins: bool | None = None) -> At:
        """The own tensors of a layer: forward, or backward if it is said whether that begins the gradients."""
        tapes = self.tapes(share, position, begins=bool(begins))
        tape = tapes.forward if begins is None else tapes.backward
        if tape not in self._measured:
            self._measured[tape] = self._measure(tape, tapes, share.layers[position].layer)
        return At(swing=self._measured[tape], place=position)

    def _measure(self, tape: Tape, tapes: LayerTapes, layer: Layer) -> Swing:
        twin = tapes.backward if tape is tapes.forward else tapes.forward
        if twin in self._measured:
            return Swing(held=self._measured[twin].held, events=tape.events)
        return measured(
            tape,
            workload_of_layer(self.workload, layer),
            self.degrees,
            weight_gradient_bytes=self.weight_gradient_bytes,
            kept_gradient_bytes=self.kept_gradient_bytes,
        )

    def _unsharded(self, share: StageShare, position: int) -> At:
        """Frees the whole gradients of a layer."""
        swing = self._during(share, position, begins=True).swing
        if swing not in self._released:
            self._released[swing] = released(swing, Memory.GRADIENTS)
        return At(swing=self._released[swing], place=position)

    def _tensor(self, name: str, share: StageShare, position: int, change: Change) -> At:
        """A tensor of a layer that belongs to none of its operators; equal layers share the swing."""
        layer = share.layers[position]
        key = (layer.layer, name, change)
        if key not in self._measured:
            category = Memory.GRADIENTS if name == SHARDED_GRADIENTS else Memory.TEMPORARY
            reduced = self.training.types.reduce.bytes
            size = layer_tensor_bytes(name, layer, self.degrees, reduced_apart=self._kept_apart, element_bytes=reduced)
            self._measured[key] = change(name, category, size)
        return At(swing=self._measured[key], place=position)

    def _restored(self, share: StageShare, position: int, change: Change) -> tuple[At, ...]:
        """The 16-bit copy of a quantised frozen weight."""
        size = share.layers[position].restored_bytes
        if not (size if isinstance(size, int) else np.any(size)):
            return ()
        return (At(swing=change("restored weight", Memory.TEMPORARY, size), place=position),)

    def offloaded_layers(self, share: StageShare) -> range:
        """Returns the positions of the layers whose kept activations leave the device between their passes.

        The transformer layers of a stage but its last, whose backward comes next (Megatron-LM, Transformer Engine).
        """
        if self.training.offload.activations == "none":
            return range(0)
        kinds = [layer.layer.kind for layer in share.layers]
        inner = [at for at, kind in enumerate(kinds) if kind not in (LayerKind.EMBEDDING, LayerKind.HEAD)]
        return range(inner[0], inner[-1]) if inner else range(0)

    def offloaded_bytes(self, share: StageShare, position: int) -> Int:
        """Returns the bytes of a layer's kept activations: its input alone where it is recomputed in full."""
        return sum(tensor.bytes for tensor in self._outside(share, position, 1).swing.held)

    def _outside(self, share: StageShare, position: int, sign: int) -> At:
        """Kept activations of a layer leave the device (-1) or come back (1)."""
        held = tuple(
            Held(
                name=tensor.name,
                operator="",
                category=Memory.ACTIVATIONS,
                bytes=self._bytes_in(share.layers[position].layer, tensor),
            )
            for tensor in self.tapes(share, position).kept
        )
        return At(swing=Swing(held=held, events=tuple((number, sign) for number in range(len(held)))), place=position)

    def _bytes_in(self, layer: Layer, tensor: Tensor) -> Int:
        """The bytes of a tensor of a layer, which may have a sequence of its own (an encoder)."""
        return tensor_bytes(tensor, workload_of_layer(self.workload, layer), self.degrees)


def _stage(swing: Swing) -> At:
    return At(swing=swing, place=None)
