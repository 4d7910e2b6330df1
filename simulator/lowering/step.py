"""Lowers a whole step: rank classes, their programs, what they share."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from simulator.cost.pricing import StageCosts
from simulator.engine import Communicator, Program, RankClass, Resource
from simulator.lowering.builder import (
    CATEGORIES,
    COMPUTE_STREAM,
    IN,
    MEMORY,
    OUT,
    Exchange,
    Memory,
    Registry,
    WrittenRoutine,
)
from simulator.lowering.data import DataLowering
from simulator.lowering.layers import LayerLowering
from simulator.lowering.members import Membership, folded_members, single_members
from simulator.lowering.passes import PassLowering
from simulator.lowering.routines import EMBEDDING_COMMUNICATOR, Chunk, RoutineWriter
from simulator.lowering.transfers import Transfers
from simulator.parallel.assumptions import Assumptions
from simulator.parallel.layout import Layout
from simulator.parallel.mesh import DeviceMesh, Group
from simulator.parallel.training import Training
from simulator.schedule import PipelineSchedule
from simulator.schedule.actions import BACKWARD_CODE, FORWARD_CODE

NUM_DIRECTIONS = 2


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LoweredStep:
    """A step as a program for the engine, and the books of what it puts on the network."""

    program: Program
    """What the engine runs."""
    pipeline_ranks: tuple[int, ...]
    """Pipeline rank of each class of the program."""
    exchanges: tuple[tuple[Exchange, ...], ...]
    """For each routine of the program, its collectives and messages."""


def lower_step(
    costs: StageCosts,
    mesh: DeviceMesh,
    schedule: PipelineSchedule,
    layout: Layout,
    training: Training,
    assumptions: Assumptions,
    *,
    fold: bool = True,
) -> LoweredStep:
    """Returns the program of one step.

    Args:
        costs: prices of the stages.
        mesh: groups and places.
        schedule: order of actions on every pipeline rank.
        layout: how attention is split over context ranks.
        training: the recipe.
        assumptions: constants.
        fold: simulate the ranks of a pipeline rank as one class; false: every rank alone, which must give the same
            result and exists to test that.
    """
    members = folded_members(mesh) if fold else single_members(mesh)
    registry = Registry()
    registry.streams.number(COMPUTE_STREAM)
    writer = _writer(costs, mesh, layout, training, assumptions, registry, members)
    routines: list[WrittenRoutine] = []
    numbers: dict[object, int] = {}
    calls: list[npt.NDArray[np.int32]] = []

    def add(key: object, written: WrittenRoutine) -> int:
        numbers[key] = len(routines)
        routines.append(written)
        return numbers[key]

    for rank in range(schedule.pp):
        chunks = _chunks(costs, schedule, rank)
        calls.append(_calls(schedule, rank, chunks, writer, numbers, add))
    program = _program(costs, mesh, schedule, assumptions, registry, members, routines, calls)
    return LoweredStep(
        program=program,
        pipeline_ranks=members.pipeline_ranks,
        exchanges=tuple(written.exchanges for written in routines),
    )


def _writer(
    costs: StageCosts,
    mesh: DeviceMesh,
    layout: Layout,
    training: Training,
    assumptions: Assumptions,
    registry: Registry,
    members: Membership,
) -> RoutineWriter:
    transfers = Transfers(mesh)
    layers = LayerLowering(
        transfers=transfers,
        overlap=training.overlap,
        context_method=layout.cp_method,
        tp_chunks=assumptions.tp_overlap_chunks,
        loss_bytes=costs.loss_bytes,
    )
    data = DataLowering(
        transfers=transfers,
        training=training,
        zero=int(mesh.degrees.zero),
        prefetch=assumptions.fsdp_prefetch_layers,
    )
    passes = PassLowering(layers=layers, training=training, data=data, boundary_bytes=costs.boundary_bytes)
    return RoutineWriter(registry=registry, meets=members.meets, passes=passes, assumptions=assumptions)


def _chunks(costs: StageCosts, schedule: PipelineSchedule, rank: int) -> tuple[Chunk, ...]:
    holder = schedule.stage_to_rank
    last = schedule.num_stages - 1
    return tuple(
        Chunk(
            number=number,
            cost=costs.stages[stage],
            rank=rank,
            previous=holder[stage - 1] if stage > 0 else None,
            next=holder[stage + 1] if stage < last else None,
        )
        for number, stage in enumerate(schedule.stages_of(rank))
    )


def _calls(
    schedule: PipelineSchedule,
    rank: int,
    chunks: tuple[Chunk, ...],
    writer: RoutineWriter,
    numbers: dict[object, int],
    add: object,
) -> npt.NDArray[np.int32]:
    """The calls of one pipeline rank; stages that do the same work in the same surroundings share routines."""
    hop_key = tuple(_surroundings(chunk, writer) for chunk in chunks)

    def number(kind: str, index: int | None, variant: bool) -> int:
        key = (kind, hop_key if index is None else (index, hop_key[index]), variant)
        if key not in numbers:
            written = (
                {"begin": writer.begin, "end": writer.end}[kind](chunks)
                if index is None
                else writer.forward(chunks[index], first=variant)
                if kind == "forward"
                else writer.backward(chunks[index], last=variant)
            )
            return add(key, written)  # type: ignore[no-any-return, operator]
        return numbers[key]

    actions = schedule.ranks[rank]
    stages = np.array(schedule.stages_of(rank))
    chunk_of = np.searchsorted(stages, actions[:, 1])
    table = np.full((4, len(chunks), 2), -1, dtype=np.int32)
    for index in range(len(chunks)):
        for variant in (False, True):
            table[FORWARD_CODE, index, int(variant)] = number("forward", index, variant)
            table[BACKWARD_CODE, index, int(variant)] = number("backward", index, variant)
    special = np.where(actions[:, 0] == FORWARD_CODE, actions[:, 2] == 0, actions[:, 2] == schedule.microbatches - 1)
    middle = np.stack([table[actions[:, 0], chunk_of, special.astype(np.int64)], actions[:, 2]], axis=1)
    begin, end = [number("begin", None, False), 0], [number("end", None, False), 0]
    return np.concatenate([[begin], middle, [end]]).astype(np.int32)


def _surroundings(chunk: Chunk, writer: RoutineWriter) -> object:
    """What a chunk's routines depend on beside its number: its work, and the ways to its neighbours."""
    mesh = writer.passes.data.transfers.mesh
    hops = tuple(
        None if other is None else ("local" if other == chunk.rank else mesh.pipeline_hop(*way))
        for other, way in (
            (chunk.previous, (chunk.previous, chunk.rank)),
            (chunk.next, (chunk.rank, chunk.next)),
        )
    )
    stage = chunk.cost.stage
    return stage.key, stage.tied_copy is not None, stage.index == 0, hops


def _program(
    costs: StageCosts,
    mesh: DeviceMesh,
    schedule: PipelineSchedule,
    assumptions: Assumptions,
    registry: Registry,
    members: Membership,
    routines: list[WrittenRoutine],
    calls: list[npt.NDArray[np.int32]],
) -> Program:
    communicators: list[Communicator] = []
    by_name: dict[object, int] = {}
    slots = list(registry.communicators.numbers)
    resources: list[Resource] = []
    classes: list[RankClass] = []
    for number, rank in enumerate(members.pipeline_ranks):
        bound: list[int] = []
        for slot in slots:
            name, participants = members.communicator(slot, number, schedule)
            if name not in by_name:
                by_name[name] = len(communicators)
                communicators.append(Communicator(name=str(name), participants=participants))
            bound.append(by_name[name])
        first = len(resources)
        resources += [
            Resource(
                name=f"{members.names[number]} / {mesh.cluster.tiers[port.tier].name}"
                f"{f' axis {port.dim}' if mesh.cluster.tiers[port.tier].dims else ''} {way}",
                bytes_per_s=port.bytes_per_s,
            )
            for port in costs.ports
            for way in ("out", "in")
        ]
        classes.append(
            RankClass(
                name=members.names[number],
                count=members.counts[number],
                calls=calls[rank],
                resources=tuple(range(first, len(resources))),
                communicators=tuple(bound),
                initial=_initial(costs, mesh, schedule, assumptions, rank),
            )
        )
    return Program(
        streams=tuple(registry.streams.numbers),
        categories=tuple(CATEGORIES),
        counters=tuple(MEMORY),
        events=tuple(registry.events),
        num_indices=schedule.microbatches,
        routines=tuple(written.routine for written in routines),
        classes=tuple(classes),
        resources=tuple(resources),
        communicators=tuple(communicators),
    )


def _initial(
    costs: StageCosts, mesh: DeviceMesh, schedule: PipelineSchedule, assumptions: Assumptions, rank: int
) -> tuple[int, ...]:
    """The steady level of each memory category: states, communicator buffers, device context (E3.13)."""
    states = [costs.stages[stage].states for stage in schedule.stages_of(rank)]
    groups = sum(shape.size > 1 for group, shape in mesh.shapes.items() if group is not Group.WORLD)
    pipeline_neighbours = (schedule.pp > 1) * NUM_DIRECTIONS
    level = dict.fromkeys(Memory, 0)
    level[Memory.PARAMETERS] = sum(int(state.parameters) for state in states)
    level[Memory.GRADIENTS] = sum(int(state.gradients) for state in states)
    level[Memory.OPTIMIZER] = sum(int(state.optimizer) for state in states)
    level[Memory.COMMUNICATION] = (groups + pipeline_neighbours) * assumptions.communicator_buffers
    level[Memory.FRAMEWORK] = assumptions.device_context
    return tuple(level[counter] for counter in MEMORY)


__all__ = ["EMBEDDING_COMMUNICATOR", "IN", "OUT", "LoweredStep", "lower_step"]
