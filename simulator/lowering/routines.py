"""The routines of one pipeline rank: begin of the step, forward, backward, end of the step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from simulator.cost.collectives import Collective
from simulator.cost.offload import NOTHING_OUTSIDE
from simulator.cost.pass_memory import paired
from simulator.cost.pricing import StageCost
from simulator.cost.states import shard
from simulator.errors import SimulatorFault
from simulator.lowering.builder import (
    BoundaryEnd,
    Category,
    Direction,
    Exchange,
    Message,
    Pair,
    Party,
    Registry,
    RoutineBuilder,
    WrittenRoutine,
)
from simulator.lowering.data import run_transfers
from simulator.lowering.offload import DOWN_STREAM, lower_update_on_host, send_gradients_down
from simulator.lowering.passes import BackwardPass, ForwardPass, PassLowering, lower_pair, lower_pass
from simulator.parallel.assumptions import Assumptions
from simulator.parallel.mesh import Group
from simulator.parallel.training import Dtype
from simulator.schedule import ActionKind


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """A virtual stage on its pipeline rank, with its neighbours."""

    number: int
    """Which chunk of its rank, from 0."""
    cost: StageCost
    """What it costs."""
    rank: int
    """Its pipeline rank."""
    previous: int | None
    """Pipeline rank of the stage before, if there is one."""
    next: int | None
    """Pipeline rank of the stage after, if there is one."""
    mirror: int | None = None
    """Pipeline rank that holds the same stage for the other direction, if there are two."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PassPlace:
    """Which pass of a stage an action is, and what is special about it in the step."""

    kind: ActionKind
    """Which pass."""
    first: bool
    """A forward: the stage's first, which waits for updated parameters; a backward (B, W): the first to make gradients
    of its weights."""
    completes_gradients: bool
    """A backward (B, W): the last to make gradients of the stage's weights."""
    last_parameters: bool
    """A backward (B, I): the last pass of the stage that needs its parameters."""


@dataclass(slots=True)
class RoutineWriter:
    """Writes the routines of all pipeline ranks."""

    registry: Registry
    meets: Callable[[Party], bool]
    passes: PassLowering
    assumptions: Assumptions

    def write(self, passes: Sequence[tuple[Chunk, PassPlace]]) -> WrittenRoutine:
        """Returns the routine of one action of a schedule, or of two that are joined: receive, compute, send.

        Args:
            passes: the stage and what is special of its pass; of joined ones the forward first.
        """
        if len(passes) == 1:
            ((chunk, at),) = passes
            build = self._builder(_title(chunk, at))
            lowered = self._pass(chunk, at, build, f"chunk {chunk.number}")
            lower_pass(lowered, build)
            self._send_on(chunk, at, build)
            build.memory(*lowered.memory.end)
            self._reduce_beside(chunk, at, lowered, build)
            return build.done(chunk.number)
        (first, first_at), (second, second_at) = passes
        build = self._builder(f"{_title(first, first_at)} & {_title(second, second_at)}")
        forward = self._pass(first, first_at, build, f"chunk {first.number}")
        # The index of a joined pair is the forward's microbatch: events of its backward are not those of one alone.
        backward = self._pass(second, second_at, build, f"chunk {second.number} beside {first.number}")
        if not isinstance(forward, ForwardPass) or not isinstance(backward, BackwardPass):
            raise SimulatorFault(f"{build.name}: a joined pair is a forward and a backward")
        both = paired(forward.memory, backward.memory, chunks=(first.number, second.number))
        lower_pair(forward, backward, both, build)
        self._send_on(first, first_at, build)
        self._send_on(second, second_at, build)
        build.memory(*both.end)
        self._reduce_beside(second, second_at, backward, build)
        return build.done()

    def _pass(self, chunk: Chunk, at: PassPlace, build: RoutineBuilder, place: str) -> ForwardPass | BackwardPass:
        """Returns the pass of a stage, once the routine has received what it needs."""
        share, memory = chunk.cost.share, self.passes.memory
        match at.kind:
            case ActionKind.FORWARD:
                self._receive(build, chunk, chunk.previous, Message.ACTIVATION, place)
                return ForwardPass(
                    stage=chunk.cost,
                    lowering=self.passes,
                    place=place,
                    memory=memory.forward(share, first=at.first, keeps_output=self._keeps_output(chunk)),
                    gathered=self._gathered_before(chunk) if at.first else {},
                    gathers_parameters=at.first or memory.reshard_after_forward,
                )
            case ActionKind.BACKWARD:
                swings = memory.backward(
                    share, first=at.first, last=at.completes_gradients, keeps_output=self._keeps_output(chunk)
                )
            case ActionKind.BACKWARD_INPUT:
                swings = memory.backward_input(share, last=at.last_parameters, keeps_output=self._keeps_output(chunk))
            case ActionKind.BACKWARD_WEIGHT:
                swings = memory.backward_weight(share, first=at.first, last=at.completes_gradients)
        if at.kind is not ActionKind.BACKWARD_WEIGHT:
            self._receive(build, chunk, chunk.next, Message.GRADIENT, place)
        return BackwardPass(
            kind=at.kind,
            stage=chunk.cost,
            lowering=self.passes,
            place=place,
            memory=swings,
            finished=self._complete_at(chunk) if at.completes_gradients else {},
        )

    def _send_on(self, chunk: Chunk, at: PassPlace, build: RoutineBuilder) -> None:
        """Sends what a pass has made for the neighbouring stage."""
        if at.kind is ActionKind.FORWARD:
            self._send(build, chunk, chunk.next, Message.ACTIVATION)
        elif at.kind is not ActionKind.BACKWARD_WEIGHT:
            self._send(build, chunk, chunk.previous, Message.GRADIENT)

    def _gathered_before(self, chunk: Chunk) -> dict[int, int]:
        """Layer position -> event after which its updated parameters are there."""
        if not self._gathers_at_begin:
            return {}
        return {
            bucket[0]: self.registry.event(_gathered(chunk.number, index), shared_over_calls=True)
            for index, bucket in enumerate(self._buckets(chunk.cost, backward=False))
            if self._bucket_gathers(chunk.cost, bucket)
        }

    def _complete_at(self, chunk: Chunk) -> dict[int, int]:
        """Layer position -> event to record when its gradients are complete, in the last pass that makes them."""
        data, number = self.passes.data, chunk.number
        if not data.reduces_once:
            return {0: self.registry.event(_reduced(number), shared_over_calls=True)}
        if not self.passes.training.overlap.dp:
            return {}
        return {
            bucket[-1]: self.registry.event(f"gradients of bucket {index} of chunk {number} are complete")
            for index, bucket in enumerate(self._buckets(chunk.cost, backward=True))
        }

    def _reduce_beside(
        self, chunk: Chunk, at: PassPlace, lowered: ForwardPass | BackwardPass, build: RoutineBuilder
    ) -> None:
        """Reduces the gradients of a stage, bucket by bucket, beside the pass that completes them."""
        overlaps = self.passes.training.overlap.dp and self.passes.data.reduces_once
        if not (at.completes_gradients and overlaps and isinstance(lowered, BackwardPass)):
            return
        number, buckets = chunk.number, self._buckets(chunk.cost, backward=True)
        reductions = [self._bucket_reductions(chunk.cost, bucket) for bucket in buckets]
        last_reduced = max((index for index, exchanges in enumerate(reductions) if exchanges), default=None)
        for index, (bucket, exchanges) in enumerate(zip(buckets, reductions, strict=True)):
            done = lowered.finished[bucket[-1]]
            if exchanges:
                reduced = self._bucket_event(number, index, is_last=index == last_reduced)
                run_transfers(exchanges, build, beside=True, waits=(done,), records=reduced)
                done = done if reduced is None else reduced
            self._send_gradients(
                build, chunk.cost, bucket, waits=(done,), name=f"gradients of bucket {index} of chunk {number}"
            )

    def _bucket_event(self, number: int, index: int, *, is_last: bool) -> int | None:
        """The event after which a bucket is reduced, if anyone waits for it."""
        if is_last:
            return self.registry.event(_reduced(number), shared_over_calls=True)
        if self.passes.training.offload.optimizer == "none":
            return None
        return self.registry.event(f"gradients of bucket {index} of chunk {number} are reduced")

    def _send_gradients(
        self, build: RoutineBuilder, stage: StageCost, positions: Sequence[int], *, waits: tuple[int, ...], name: str
    ) -> None:
        """Sends gradients to the host if the optimizer is there."""
        if self.passes.training.offload.optimizer != "none":
            counts = [int(stage.layers[position].share.gradient_shard_bytes) for position in positions]
            send_gradients_down(counts, build, self.passes.host, waits=waits, name=name)

    def begin(self, chunks: tuple[Chunk, ...]) -> WrittenRoutine:
        """Returns the begin of the step: gathers of the parameters that the last step updated (zero 1 and 2)."""
        build = self._builder("begin of step")
        if self._gathers_at_begin:
            for chunk in chunks:
                for index, bucket in enumerate(self._buckets(chunk.cost, backward=False)):
                    event = self.registry.event(_gathered(chunk.number, index), shared_over_calls=True)
                    run_transfers(self._bucket_gathers(chunk.cost, bucket), build, beside=True, records=event)
        return build.done()

    def end(self, chunks: tuple[Chunk, ...]) -> WrittenRoutine:
        """Returns the end of the step: remaining reductions, gradient norm, update."""
        build = self._builder("end of step")
        data, training = self.passes.data, self.passes.training
        blocking_data = not training.overlap.dp and data.reduces_once
        for chunk in chunks:
            layers = range(len(chunk.cost.layers))
            reductions = self._bucket_reductions(chunk.cost, layers)
            if blocking_data:
                for exchange, group in reductions:
                    build.blocking(exchange, party=group, category=Category.DATA)
            elif reductions:
                build.wait(self.registry.event(_reduced(chunk.number), shared_over_calls=True))
            build.memory(*self.passes.memory.end_of_step(chunk.cost.share, chunk=chunk.number))
        self._reduce_replicated(build, chunks)
        self._reduce_tied_table(build, chunks)
        self._reduce_mirrored(build, chunks)
        norm = data.transfers.collective(Group.WORLD, Collective.ALL_REDUCE, Dtype.FP32.bytes)
        if norm is not None:
            build.blocking(norm, party=Group.WORLD, category=Category(norm.axis))
        self._update_on_host(build, chunks, sent=training.overlap.dp and data.reduces_once)
        taken, given_back = self.passes.memory.update([chunk.cost.share for chunk in chunks])
        build.memory(*taken)
        build.compute(sum(chunk.cost.optimizer_s for chunk in chunks), "optimizer", Category.OPTIMIZER)
        build.memory(*given_back)
        if data.zero in (1, 2) and not training.overlap.dp:
            for chunk in chunks:
                for exchange, group in self._bucket_gathers(chunk.cost, range(len(chunk.cost.layers))):
                    build.blocking(exchange, party=group, category=Category.DATA)
        build.compute(self.assumptions.step_overhead, "step overhead", Category.OTHER)
        return build.done()

    @property
    def _gathers_at_begin(self) -> bool:
        return self.passes.training.overlap.dp and self.passes.data.zero in (1, 2)

    def _update_on_host(self, build: RoutineBuilder, chunks: tuple[Chunk, ...], *, sent: bool) -> None:
        """Updates on the host what lies there; `sent`: the last microbatch has sent its gradients already."""
        if self.passes.training.offload.optimizer == "none":
            return
        complete = self.registry.event("gradients are complete")
        build.record(complete)
        for chunk in () if sent else chunks:
            every = range(len(chunk.cost.layers))
            self._send_gradients(build, chunk.cost, every, waits=(complete,), name=f"gradients of chunk {chunk.number}")
        arrived = self.registry.event("all gradients are on the host")
        build.aside("gradients on host", stream=DOWN_STREAM, category=Category.OFFLOAD, demands=(), records=arrived)
        outside = sum((chunk.cost.share.outside for chunk in chunks), NOTHING_OUTSIDE)
        lower_update_on_host(outside, build, self.passes.host, first=arrived)

    def _keeps_output(self, chunk: Chunk) -> bool:
        return not self.assumptions.free_sent_activations and chunk.next is not None

    def _builder(self, name: str) -> RoutineBuilder:
        return RoutineBuilder(name=name, registry=self.registry, meets=self.meets)

    def _receive(self, build: RoutineBuilder, chunk: Chunk, source: int | None, what: Message, place: str) -> None:
        if source is None or source == chunk.rank:
            return
        transfers = self.passes.data.transfers
        arrived = self.registry.event(f"{what} of {place} has arrived")
        build.beside(
            transfers.message(self._message_bytes, source, chunk.rank, Direction.RECEIVE),
            stream=f"receive {what} {chunk.number}",
            party=BoundaryEnd(message=what, incoming=True, chunk=chunk.number),
            category=Category.PIPELINE,
            records=arrived,
        )
        build.wait(arrived)
        if self._scatters_messages:
            gather = transfers.collective(Group.TENSOR, Collective.ALL_GATHER, self.passes.boundary_bytes)
            build.blocking(gather, party=Group.TENSOR, category=Category.TENSOR)

    def _send(self, build: RoutineBuilder, chunk: Chunk, target: int | None, what: Message) -> None:
        if target is None or target == chunk.rank:
            return
        exchange = self.passes.data.transfers.message(self._message_bytes, chunk.rank, target, Direction.SEND)
        party = BoundaryEnd(message=what, incoming=False, chunk=chunk.number)
        if not self.passes.training.overlap.pp:
            build.blocking(exchange, party=party, category=Category.PIPELINE)
            return
        ready = self.registry.event(f"{what} of {build.name} is ready")
        build.record(ready)
        build.beside(
            exchange,
            stream=f"send {what} {chunk.number}",
            party=party,
            category=Category.PIPELINE,
            waits=(ready,),
        )

    @property
    def _scatters_messages(self) -> bool:
        degrees = self.passes.data.transfers.mesh.degrees
        return bool(self.assumptions.scatter_gather and degrees.sequence < degrees.tp)

    @property
    def _message_bytes(self) -> int:
        tp = self.passes.data.transfers.mesh.degrees.tp
        return -(-self.passes.boundary_bytes // tp) if self._scatters_messages else self.passes.boundary_bytes

    def _buckets(self, stage: StageCost, *, backward: bool) -> list[list[int]]:
        return self.passes.memory.buckets(stage.share, backward=backward)

    def _totals(self, stage: StageCost, positions: Sequence[int]) -> tuple[int, int]:
        layers = [stage.layers[position] for position in positions]
        return sum(layer.dense_parameters for layer in layers), sum(layer.expert_parameters for layer in layers)

    def _bucket_reductions(self, stage: StageCost, bucket: Sequence[int]) -> list[tuple[Exchange, Group]]:
        return self.passes.data.reductions(*self._totals(stage, bucket))

    def _bucket_gathers(self, stage: StageCost, bucket: Sequence[int]) -> list[tuple[Exchange, Group]]:
        return self.passes.data.gathers([stage.layers[position] for position in bucket])

    def _reduce_replicated(self, build: RoutineBuilder, chunks: tuple[Chunk, ...]) -> None:
        """Sums the gradients of norms and routers over tensor ranks that saw different tokens (E4.14)."""
        degrees = self.passes.data.transfers.mesh.degrees
        if degrees.sequence == 1:
            return
        count = int(sum(layer.replicated_parameters for chunk in chunks for layer in chunk.cost.share.layers))
        size = self.passes.training.types.reduce.bytes
        exchange = self.passes.data.transfers.collective(Group.TENSOR, Collective.ALL_REDUCE, size * count)
        build.blocking(exchange, party=Group.TENSOR, category=Category.TENSOR)

    def _reduce_tied_table(self, build: RoutineBuilder, chunks: tuple[Chunk, ...]) -> None:
        """Sums the gradients of a shared table over first and last stage (E4.14)."""
        transfers = self.passes.data.transfers
        pp = transfers.mesh.degrees.pp
        is_first, is_last = chunks[0].cost.stage.index == 0, chunks[-1].cost.stage.tied_copy is not None
        count = int(chunks[0].cost.share.tied_parameters)
        if pp > 1 and count and (is_first or is_last):
            degrees = transfers.mesh.degrees
            share = shard(count, degrees.shard_group, degrees.zero >= 2)
            exchange = transfers.between("embedding", self.passes.training.types.reduce.bytes * int(share), 0, pp - 1)
            build.blocking(exchange, party=Pair.TIED_TABLE, category=Category.OTHER)

    def _reduce_mirrored(self, build: RoutineBuilder, chunks: tuple[Chunk, ...]) -> None:
        """Sums the gradients of two ranks that hold the same stages, one for each direction (DualPipe).

        They hold the same shards, so the sum is over two ranks, after the reduction over data. Source: DeepSeek-AI
        2024, arXiv:2412.19437, section 3.2.1 (two copies of the parameters).
        """
        mirror = chunks[0].mirror
        if mirror is None:
            return
        degrees, size = self.passes.data.transfers.mesh.degrees, self.passes.training.types.reduce.bytes
        is_sharded = degrees.zero >= 1
        count = sum(
            int(shard(layer.dense_parameters, degrees.shard_group, is_sharded))
            + int(shard(layer.expert_parameters, degrees.expert_shard_group, is_sharded))
            for chunk in chunks
            for layer in chunk.cost.layers
        )
        exchange = self.passes.data.transfers.between("dp", size * count, chunks[0].rank, mirror)
        build.blocking(exchange, party=Pair.MIRROR, category=Category.DATA)


def _gathered(chunk: int, bucket: int) -> str:
    return f"parameters of bucket {bucket} of chunk {chunk} are gathered"


def _reduced(chunk: int) -> str:
    return f"gradients of chunk {chunk} are reduced"


_TITLES = {
    ActionKind.FORWARD: "forward",
    ActionKind.BACKWARD: "backward",
    ActionKind.BACKWARD_INPUT: "backward of inputs",
    ActionKind.BACKWARD_WEIGHT: "backward of weights",
}


def _title(chunk: Chunk, at: PassPlace) -> str:
    """Name of a pass in traces: of the first chunk of a rank without its number."""
    return f"{_TITLES[at.kind]} {chunk.number}" if chunk.number else _TITLES[at.kind]
