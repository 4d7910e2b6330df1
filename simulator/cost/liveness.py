"""Which tensors of a layer live when, forward and backward: what autograd and the allocator see.

A layer's operators are walked in the order in which a framework runs them:

- forward, an operator's results are allocated before it runs; a tensor is freed after the last operator that reads
  it, unless an operator saves it for backward;
- backward, in reverse: what was dropped is recomputed when it is first needed, the gradients of what an operator
  read are allocated, then the gradients of what it wrote and the tensors that it saved are freed.

The walk yields a tape: allocations and frees in order, without sizes. Sizes come from shapes (`simulator.cost.swings`),
so that one tape serves any number of layouts. A layer takes over its input and hands on its output; backward it takes
over the gradient of its output and hands on that of its input.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import lru_cache

from simulator.errors import SimulatorFault
from simulator.model.layers import Layer, LayerKind
from simulator.model.operators import AttentionCore, ExpertMatMul, MatMul, Move, Operator, Streamed, Way
from simulator.model.tensors import Element, Tensor, Weight
from simulator.parallel.layout import ContextMethod
from simulator.parallel.recompute import KEEPS_RESULTS, RecomputeChoice


class WeightGradients(StrEnum):
    """Where an operator's backward puts the gradients of its weights."""

    ACCUMULATED = "accumulated"
    """A GEMM adds them to the resident ones; those of tables, norms and biases are temporary tensors."""
    TEMPORARY = "temporary"
    """In a temporary tensor each, added to the resident ones and freed at once."""
    KEPT = "kept"
    """In a tensor each that stays until the layer's gradients are reduced."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Splits:
    """What decides which tensors exist, beside the operators."""

    sequence: bool
    """Sequence parallelism: gathered tensors are copies."""
    experts: bool
    """Experts lie on several ranks: dispatched tensors are copies."""
    context: ContextMethod | None
    """How attention works on the keys of other ranks, for which it has buffers; None: there are no others."""
    gradients: WeightGradients
    """Where gradients of dense weights go."""
    expert_gradients: WeightGradients
    """Where gradients of experts go."""


class Use(StrEnum):
    """What a tensor is there for."""

    SAVED = "saved"
    """Kept, or restored, for backward."""
    PASSING = "passing"
    """Freed in the pass that made it."""
    WEIGHT_GRADIENT = "weight_gradient"
    """The gradients of an operator's weights."""


class Measure(StrEnum):
    """How the bytes of an entry follow from its tensor."""

    TENSOR = "tensor"
    """Those of the tensor."""
    GRADIENT = "gradient"
    """Those of its gradient: never in fewer bytes than the activation type."""
    WEIGHTS = "weights"
    """Those of the gradients of weights, as autograd makes them."""
    KEPT_WEIGHTS = "kept_weights"
    """The same where they stay until they are reduced."""
    CONTEXT_FORWARD = "context_forward"
    """Buffers of context parallel attention, forward."""
    CONTEXT_BACKWARD = "context_backward"
    """The same, backward."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A tensor that a tape allocates or frees."""

    name: str
    """As a memory viewer shows it."""
    operator: str
    """Who made it."""
    use: Use
    """What it is there for."""
    measure: Measure
    """How its bytes are found."""
    tensor: Tensor | None = None
    """The tensor, or that whose gradient it is."""
    weights: tuple[Weight, ...] = ()
    """The weights whose gradients it holds."""
    attention: AttentionCore | None = None
    """The attention core whose buffers it is."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Tape:
    """Allocations and frees in the order of the program."""

    entries: tuple[Entry, ...]
    """The tensors; those of a layer's forward and backward are the same tuple."""
    events: tuple[tuple[int, int], ...]
    """(entry, +1 allocated or -1 freed)."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LayerTapes:
    """What a layer does to memory in its two passes."""

    forward: Tape
    """From the layer's input being there to its output being there."""
    backward: Tape
    """From the gradient of its output to that of its input."""
    kept: tuple[Tensor, ...]
    """What stays from forward to backward."""
    given_gradient: str
    """Name of the entry that holds the gradient of its output, which it takes over; empty: there is none."""
    handed_gradient: str
    """Name of the entry that holds the gradient of its input at the end; a residual path hands on the same one."""


@lru_cache(maxsize=1024)
def layer_tapes(layer: Layer, choice: RecomputeChoice, splits: Splits) -> LayerTapes:
    """Returns the tapes of a layer.

    Args:
        layer: its operators.
        choice: what is recomputed.
        splits: which copies exist.

    Raises:
        SimulatorFault: an operator reads what nobody writes, or a tensor is never freed.
    """
    walk = _Walk(layer, choice, splits)
    forward = walk.forward()
    backward = walk.backward()
    entries = tuple(walk.entries)
    return LayerTapes(
        forward=Tape(entries=entries, events=tuple(forward)),
        backward=Tape(entries=entries, events=tuple(backward)),
        kept=tuple(walk.tensors[name] for name in walk.stored),
        given_gradient="" if layer.output is None else _gradient_name(walk.name(layer.output)),
        handed_gradient=walk.gradients.get(walk.name(layer.input.name), ""),
    )


@dataclass(slots=True)
class _Region:
    """Operators that are run again together."""

    label: str
    """The part or block."""
    operators: tuple[Operator, ...]
    """In order."""
    external: tuple[str, ...]
    """Tensors that they read and do not make."""
    kept: tuple[str, ...] = ()
    """Tensors that they make and that are not made again."""


@dataclass(slots=True)
class _Walk:
    layer: Layer
    choice: RecomputeChoice
    splits: Splits
    entries: list[Entry] = field(default_factory=list)
    events: list[tuple[int, int]] = field(default_factory=list)
    operators: tuple[Operator, ...] = ()
    """Those that run, in order: moves that move nothing are left out."""
    same_as: dict[str, str] = field(default_factory=dict)
    """Names of tensors that are another one, as nothing moves between them."""
    tensors: dict[str, Tensor] = field(default_factory=dict)
    live: dict[str, int] = field(default_factory=dict)
    """Entry of each tensor that is in memory."""
    stored: tuple[str, ...] = ()
    """Tensors kept from forward to backward."""
    blocks: dict[int, str] = field(default_factory=dict)
    """Block of each operator."""
    regions: list[_Region] = field(default_factory=list)
    region_of: dict[str, _Region] = field(default_factory=dict)
    """Region that makes a dropped tensor."""
    users: Counter[str] = field(default_factory=Counter)
    """How many operators and regions still need a saved tensor in backward."""
    gradients: dict[str, str] = field(default_factory=dict)
    """Buffer of each tensor's gradient."""
    holders: Counter[str] = field(default_factory=Counter)
    """How many gradients share a buffer."""

    def __post_init__(self) -> None:
        layer = self.layer
        self.tensors = {layer.input.name: layer.input, **layer.tensors}
        self.blocks = {id(operator): block.name for block in layer.blocks for operator in block.operators}
        running: list[Operator] = []
        for operator in layer.operators:
            if isinstance(operator, Move) and not self._moves(operator):
                for source, made in zip(operator.reads, operator.writes, strict=True):
                    # What a gather reads is saved whole; of the others, what they make.
                    if operator.way is Way.GATHER:
                        self.same_as[made.name] = source
                    else:
                        self.same_as[source] = made.name
            else:
                running.append(operator)
        if self.splits.context is ContextMethod.ULYSSES:
            running = [self._with_output_by_heads(operator) for operator in running]
        self.operators = tuple(running)
        self._choose_stored()

    def _with_output_by_heads(self, operator: Operator) -> Operator:
        """Ulysses keeps what the core makes before its all-to-all as well (Transformer Engine; measured, see docs)."""
        if not isinstance(operator, AttentionCore):
            return operator
        made = replace(operator.writes[0], name=f"{operator.writes[0].name} by heads")
        self.tensors[made.name] = made
        changed = replace(operator, writes=(*operator.writes, made), saves=(*operator.saves, made.name))
        self.blocks[id(changed)] = self.blocks[id(operator)]
        return changed

    def _moves(self, move: Move) -> bool:
        return self.splits.sequence if move.way in (Way.GATHER, Way.REDUCE) else self.splits.experts

    def name(self, name: str) -> str:
        """Returns the tensor that a name stands for."""
        while name in self.same_as:
            name = self.same_as[name]
        return name

    def names(self, names: Iterable[str]) -> tuple[str, ...]:
        """Returns the tensors that names stand for, each once."""
        return tuple(dict.fromkeys(self.name(name) for name in names))

    def writes(self, operator: Operator) -> tuple[str, ...]:
        """Returns the tensors that an operator makes."""
        return self.names(tensor.name for tensor in operator.writes)

    def _choose_stored(self) -> None:
        """Cuts the operators into regions to recompute; the rest of what is saved, and their inputs, are stored."""
        blocks = self.blocks
        run: list[Operator] = []
        label: str | None = None

        def close() -> None:
            if label is not None:
                made = {name for operator in run for name in self.writes(operator)}
                read = self.names(name for operator in run for name in operator.reads)
                region = _Region(
                    label=label, operators=tuple(run), external=tuple(name for name in read if name not in made)
                )
                self.regions.append(region)
                for name in made:
                    self.region_of[name] = region

        for operator in self.operators:
            found = self.choice.region(block=blocks[id(operator)], part=operator.part)
            if found != label:
                close()
                run, label = [], found
            run.append(operator)
        close()
        stored: dict[str, None] = {}
        for operator in self.operators:
            for name in self.names(operator.saves):
                self.users[name] += 1
                region = self.region_of.get(name)
                outside = region is not None and all(operator is not other for other in region.operators)
                if region is None or (region.label in KEEPS_RESULTS and outside):
                    stored[name] = None
        for region in self.regions:
            for name in region.external:
                self.users[name] += 1
                if name not in self.region_of or name in stored:
                    stored[name] = None
            region.kept = self._every_other_matmul() if self.choice.keeps_every_other_matmul else ()
            for name in region.kept:
                self.users[name] += 1
                stored[name] = None
        self.stored = tuple(stored)

    def _every_other_matmul(self) -> tuple[str, ...]:
        """Results of the first, third, fifth matrix product, and of attention, statistics included."""
        linear = [operator for operator in self.operators if isinstance(operator, MatMul | ExpertMatMul)]
        products = [
            name
            for operator in linear
            for name in self.writes(operator)
            if self.tensors[name].element is not Element.QUANTISED_COPY
        ]
        attention = [
            name
            for operator in self.operators
            if isinstance(operator, AttentionCore)
            for name in self.writes(operator)
            if name in self.names(operator.saves)
        ]
        return (*products[::2], *attention)

    def forward(self) -> list[tuple[int, int]]:
        """Returns the events of the forward pass."""
        self.events = []
        layer_input = self.name(self.layer.input.name)
        self.live[layer_input] = self._entry(layer_input, "layer before", Use.SAVED, Measure.TENSOR)
        kept = {*self.stored, *(() if self.layer.output is None else (self.name(self.layer.output),))}
        self._run(self.operators, kept)
        if layer_input in self.live and layer_input not in kept:
            self._free(layer_input)
        return self.events

    def _run(self, operators: Sequence[Operator], kept: set[str], *, given: Iterable[str] = ()) -> None:
        """Runs operators forward; what is not kept is freed after its last reader."""
        last: dict[str, int] = {}
        ends = {self.blocks[id(operator)]: place for place, operator in enumerate(operators)}
        for place, operator in enumerate(operators):
            for name in (*self.names(operator.reads), *self.writes(operator)):
                held = self.tensors[name].until_block_ends
                last[name] = max(last.get(name, 0), ends[self.blocks[id(operator)]] if held else place)
        foreign = set(given)
        for place, operator in enumerate(operators):
            missing = [name for name in self.names(operator.reads) if name not in self.live]
            if missing:
                raise SimulatorFault(f"{operator.name} reads {', '.join(missing)}, which nobody has made")
            for name in self.writes(operator):
                if name not in self.live:
                    use = Use.SAVED if name in kept else Use.PASSING
                    self._allocate(name, self._entry(name, operator.name, use, Measure.TENSOR))
            buffers = self._context_buffers(operator, Measure.CONTEXT_FORWARD)
            for name in buffers:
                self._free(name)
            for name in [name for name in last if last[name] == place and name in self.live]:
                if name not in kept and name not in foreign:
                    self._free(name)

    def backward(self) -> list[tuple[int, int]]:
        """Returns the events of the backward pass."""
        self.events = []
        output = self.layer.output
        self.live = {name: self._entry(name, self._maker(name), Use.SAVED, Measure.TENSOR) for name in self.stored}
        if output is not None:
            self._give_gradient(self.name(output), "layer after", allocate=False)
        for operator in reversed(self.operators):
            self._step_back(operator)
        allowed = {buffer for name, buffer in self.gradients.items() if name == self.name(self.layer.input.name)}
        allowed |= {name for name in self.live if name.startswith(_WEIGHTS)}
        if left := set(self.live) - allowed:
            raise SimulatorFault(f"never freed: {', '.join(sorted(left))}")
        return self.events

    def _step_back(self, operator: Operator) -> None:
        """The backward of one operator."""
        for name in self.names(operator.saves):
            self._restore(name)
        temporary: list[str] = []
        for name in operator.gathers_again:
            if self.name(name) == name:
                self._allocate(name, self._entry(name, operator.name, Use.PASSING, Measure.TENSOR))
                temporary.append(name)
        for tensor in operator.backward_workspace:
            entry = Entry(
                name=tensor.name, operator=operator.name, use=Use.PASSING, measure=Measure.TENSOR, tensor=tensor
            )
            self._allocate(tensor.name, self._number(entry))
            temporary.append(tensor.name)
        temporary += self._context_buffers(operator, Measure.CONTEXT_BACKWARD)
        temporary += self._gradients_of_inputs(operator)
        temporary += self._gradients_of_weights(operator)
        for name in temporary:
            self._free(name)
        for name in self.writes(operator):
            if name in self.gradients:
                self._drop_gradient(name)
        for name in self.names(operator.saves):
            self._used(name)

    def _gradients_of_inputs(self, operator: Operator) -> list[str]:
        """Makes the gradients of what an operator reads; returns those that are added to ones already there."""
        made = [self.gradients[name] for name in self.writes(operator) if name in self.gradients]
        added: list[str] = []
        for name in self.names(operator.reads):
            if not self._has_gradient(name):
                continue
            if isinstance(operator, Streamed) and operator.passes_gradient and made and name not in self.gradients:
                self.gradients[name] = made[0]
                self.holders[made[0]] += 1
            elif isinstance(operator, Streamed) and operator.in_place_gradient:
                self.gradients[name] = name
                self.holders[name] += 1
            elif name in self.gradients:
                contribution = f"gradient of {name}, by {operator.name}"
                entry = self._entry(name, operator.name, Use.PASSING, Measure.GRADIENT, shown=contribution)
                self._allocate(contribution, entry)
                added.append(contribution)
            else:
                self._give_gradient(name, operator.name, allocate=True)
        return added

    def _gradients_of_weights(self, operator: Operator) -> list[str]:
        """Makes the gradients of an operator's weights; returns those that are freed at once."""
        trained = tuple(weight for weight in operator.weights if weight.trained)
        where = self.splits.expert_gradients if isinstance(operator, ExpertMatMul) else self.splits.gradients
        if where is WeightGradients.ACCUMULATED and isinstance(operator, MatMul | ExpertMatMul):
            trained = tuple(weight for weight in trained if not weight.is_matrix)
        if not trained:
            return []
        kept = where is WeightGradients.KEPT
        name = f"{_WEIGHTS}{operator.name}" + ("" if kept else ", to be added")
        entry = Entry(
            name=name,
            operator=operator.name,
            use=Use.WEIGHT_GRADIENT,
            measure=Measure.KEPT_WEIGHTS if kept else Measure.WEIGHTS,
            weights=trained,
        )
        self._allocate(name, self._number(entry))
        return [] if kept else [name]

    def _restore(self, name: str) -> None:
        """Makes a dropped tensor again, with all that its region saves."""
        if name in self.live:
            return
        region = self.region_of[name]
        for source in region.external:
            self._restore(source)
        needed = {made for made, count in self.users.items() if count}
        given = (*region.external, *region.kept)
        self._run(region.operators, needed, given=given)
        for source in given:
            self._used(source)

    def _used(self, name: str) -> None:
        """Counts one use of a saved tensor; the last one frees it."""
        self.users[name] -= 1
        if self.users[name] == 0 and name in self.live and name not in self.holders:
            self._free(name)

    def _context_buffers(self, operator: Operator, measure: Measure) -> list[str]:
        if not (isinstance(operator, AttentionCore) and self.splits.context is not None):
            return []
        name = "buffers of context parallel attention"
        self._allocate(
            name,
            self._number(
                Entry(name=name, operator=operator.name, use=Use.PASSING, measure=measure, attention=operator)
            ),
        )
        return [name]

    def _has_gradient(self, name: str) -> bool:
        """Whether a tensor has a gradient: not the data that an embedding reads, no numbers of rows, no masks."""
        if self.layer.kind is LayerKind.EMBEDDING and name == self.name(self.layer.input.name):
            return False
        return self.tensors[name].element not in (Element.INDEX, Element.MASK)

    def _give_gradient(self, name: str, operator: str, *, allocate: bool) -> None:
        buffer = _gradient_name(name)
        entry = self._entry(name, operator, Use.PASSING, Measure.GRADIENT, shown=buffer)
        self.gradients[name] = buffer
        self.holders[buffer] += 1
        if allocate:
            self._allocate(buffer, entry)
        else:
            self.live[buffer] = entry

    def _drop_gradient(self, name: str) -> None:
        buffer = self.gradients.pop(name)
        self.holders[buffer] -= 1
        if self.holders[buffer] == 0:
            self._free(buffer)

    def _maker(self, name: str) -> str:
        return next((operator.name for operator in self.operators if name in self.writes(operator)), "layer before")

    def _entry(self, name: str, operator: str, use: Use, measure: Measure, *, shown: str | None = None) -> int:
        tensor = self.tensors[name]
        return self._number(Entry(name=shown or name, operator=operator, use=use, measure=measure, tensor=tensor))

    def _number(self, entry: Entry) -> int:
        """Returns the number of an entry; equal entries are one."""
        if entry in self.entries:
            return self.entries.index(entry)
        self.entries.append(entry)
        return len(self.entries) - 1

    def _allocate(self, name: str, entry: int) -> None:
        self.live[name] = entry
        self.events.append((entry, 1))

    def _free(self, name: str) -> None:
        self.events.append((self.live.pop(name), -1))


_WEIGHTS = "gradients of the weights of "


def _gradient_name(tensor: str) -> str:
    return f"gradient of {tensor}"
