"""Which tensors of a layer live when, forward and backward: what autograd and the allocator see.

A layer's operators are walked in the order in which a framework runs them:

- forward, an operator's results are allocated before it runs; a tensor is freed after the last operator that reads
  it, unless an operator saves it for backward;
- backward, in reverse: what was dropped is recomputed when it is first needed, the gradients of what an operator
  read are allocated, then the gradients of what it wrote and the tensors that it saved are freed.

The walk yields a tape: allocations and frees in order, without sizes. Sizes come from shapes (`simulator.cost.memory`),
so that one tape serves any number of layouts. A layer takes over its input and hands on its output; backward it takes
over the gradient of its output and hands on that of its input.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

from simulator.cost.flow import Flow
from simulator.cost.regions import Storage, choose_storage
from simulator.cost.tape import Entry, LayerTapes, Measure, Splits, Tape, Use, WeightGradients
from simulator.errors import SimulatorFault
from simulator.model.layers import Layer, LayerKind
from simulator.model.operators import AttentionCore, ExpertMatMul, MatMul, Operator, Streamed
from simulator.model.tensors import Element
from simulator.parallel.recompute import RecomputeChoice


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
    flow = Flow(layer, splits)
    walk = _Walk(flow, choose_storage(flow, choice))
    forward = walk.forward()
    backward = walk.backward()
    entries = tuple(walk.entries)
    return LayerTapes(
        forward=Tape(entries=entries, events=tuple(forward)),
        backward=Tape(entries=entries, events=tuple(backward)),
        kept=tuple(flow.tensors[name] for name in walk.storage.stored),
        given_gradient="" if flow.output is None else _gradient_name(flow.output),
        handed_gradient=walk.gradients.get(flow.input, ""),
    )


@dataclass(slots=True)
class _Walk:
    flow: Flow
    storage: Storage
    entries: list[Entry] = field(default_factory=list)
    events: list[tuple[int, int]] = field(default_factory=list)
    live: dict[str, int] = field(default_factory=dict)
    """Entry of each tensor that is in memory."""
    gradients: dict[str, str] = field(default_factory=dict)
    """Buffer of each tensor's gradient."""
    holders: Counter[str] = field(default_factory=Counter)
    """How many gradients share a buffer."""

    def forward(self) -> list[tuple[int, int]]:
        """Returns the events of the forward pass."""
        self.events = []
        layer_input = self.flow.input
        self.live[layer_input] = self._entry(layer_input, "layer before", Use.SAVED, Measure.TENSOR)
        kept = {*self.storage.stored, *(() if self.flow.output is None else (self.flow.output,))}
        self._run(self.flow.operators, kept)
        if layer_input in self.live and layer_input not in kept:
            self._free(layer_input)
        return self.events

    def _run(self, operators: Sequence[Operator], kept: set[str], *, given: Iterable[str] = ()) -> None:
        """Runs operators forward; what is not kept is freed after its last reader."""
        last: dict[str, int] = {}
        ends = {self.flow.blocks[id(operator)]: place for place, operator in enumerate(operators)}
        for place, operator in enumerate(operators):
            for name in (*self.flow.names(operator.reads), *self.flow.writes(operator)):
                held = self.flow.tensors[name].until_block_ends
                last[name] = max(last.get(name, 0), ends[self.flow.blocks[id(operator)]] if held else place)
        foreign = set(given)
        for place, operator in enumerate(operators):
            missing = [name for name in self.flow.names(operator.reads) if name not in self.live]
            if missing:
                raise SimulatorFault(f"{operator.name} reads {', '.join(missing)}, which nobody has made")
            for name in self.flow.writes(operator):
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
        self.live = {
            name: self._entry(name, self._maker(name), Use.SAVED, Measure.TENSOR) for name in self.storage.stored
        }
        if self.flow.output is not None:
            self._give_gradient(self.flow.output, "layer after", allocate=False)
        for operator in reversed(self.flow.operators):
            self._step_back(operator)
        allowed = {buffer for name, buffer in self.gradients.items() if name == self.flow.input}
        allowed |= {name for name in self.live if name.startswith(_WEIGHTS)}
        if left := set(self.live) - allowed:
            raise SimulatorFault(f"never freed: {', '.join(sorted(left))}")
        return self.events

    def _step_back(self, operator: Operator) -> None:
        """The backward of one operator."""
        for name in self.flow.names(operator.saves):
            self._restore(name)
        temporary: list[str] = []
        for name in operator.gathers_again:
            if self.flow.name(name) == name:
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
        for name in self.flow.writes(operator):
            if name in self.gradients:
                self._drop_gradient(name)
        for name in self.flow.names(operator.saves):
            self._used(name)

    def _gradients_of_inputs(self, operator: Operator) -> list[str]:
        """Makes the gradients of what an operator reads; returns those that are added to ones already there."""
        made = [self.gradients[name] for name in self.flow.writes(operator) if name in self.gradients]
        added: list[str] = []
        for name in self.flow.names(operator.reads):
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
        where = self.flow.splits.expert_gradients if isinstance(operator, ExpertMatMul) else self.flow.splits.gradients
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
        region = self.storage.region_of[name]
        for source in region.external:
            self._restore(source)
        needed = {made for made, count in self.storage.users.items() if count}
        given = (*region.external, *region.kept)
        self._run(region.operators, needed, given=given)
        for source in given:
            self._used(source)

    def _used(self, name: str) -> None:
        """Counts one use of a saved tensor; the last one frees it."""
        self.storage.users[name] -= 1
        if self.storage.users[name] == 0 and name in self.live and name not in self.holders:
            self._free(name)

    def _context_buffers(self, operator: Operator, measure: Measure) -> list[str]:
        if not (isinstance(operator, AttentionCore) and self.flow.splits.context is not None):
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
        if self.flow.layer.kind is LayerKind.EMBEDDING and name == self.flow.input:
            return False
        return self.flow.tensors[name].element not in (Element.INDEX, Element.MASK)

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
        return next(
            (operator.name for operator in self.flow.operators if name in self.flow.writes(operator)), "layer before"
        )

    def _entry(self, name: str, operator: str, use: Use, measure: Measure, *, shown: str | None = None) -> int:
        tensor = self.flow.tensors[name]
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
