"""Lowers a whole step: rank classes, their programs, what they share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt

from simulator.cost.pricing import StageCosts
from simulator.engine import Communicator, Program, RankClass, Resource
from simulator.lowering.builder import (
    CATEGORIES,
    COMPUTE_STREAM,
    MEMORY,
    Exchange,
    Memory,
    Registry,
    WrittenRoutine,
)
from simulator.lowering.data import DataLowering
from simulator.lowering.layers import LayerLowering
from simulator.lowering.members import Membership, folded_members, single_members
from simulator.lowering.passes import PassLowering
from simulator.lowering.routines import Chunk, RoutineWriter
from simulator.lowering.transfers import Transfers
from simulator.parallel.assumptions import Assumptions, GradientReduction
from simulator.parallel.layout import Layout
from simulator.parallel.mesh import DeviceMesh, Group
from simulator.parallel.training import Training
from simulator.schedule import PipelineSchedule
from simulator.schedule.actions import BACKWARD_CODE, FORWARD_CODE

NUM_DIRECTIONS = 2
NUM_ACTION_KINDS = 4
MICROBATCH_PLACES = ((True, False), (False, False), (False, True), (True, True))
"""(first, last) of a microbatch in its step; a step of one microbatch has one that is both."""


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

    for rank in range(schedule.pp):
        chunks = _chunks(costs, schedule, rank)
        calls.append(_calls(schedule, rank, chunks, writer, routines, numbers))
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
        reduces_once=mesh.degrees.zero < 2
        or (mesh.degrees.zero == 2 and assumptions.zero2_reduction is GradientReduction.LAST_MICROBATCH),
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
    routines: list[WrittenRoutine],
    numbers: dict[object, int],
) -> npt.NDArray[np.int32]:
    """The calls of one pipeline rank; stages that do the same work in the same surroundings share routines."""
    surroundings = tuple(_surroundings(chunk, writer) for chunk in chunks)

    def number(kind: str, key: object, write: Callable[[], WrittenRoutine]) -> int:
        if (kind, key) not in numbers:
            numbers[kind, key] = len(routines)
            routines.append(write())
        return numbers[kind, key]

    actions = schedule.ranks[rank]
    stages = np.array(schedule.stages_of(rank))
    chunk_of = np.searchsorted(stages, actions[:, 1])
    is_first, is_last = actions[:, 2] == 0, actions[:, 2] == schedule.microbatches - 1
    table = np.full((NUM_ACTION_KINDS, len(chunks), 2, 2), -1, dtype=np.int32)
    for index, chunk in enumerate(chunks):
        for first, last in MICROBATCH_PLACES:
            key = (index, surroundings[index], first, last)
            table[FORWARD_CODE, index, int(first), int(last)] = number(
                "forward", key[:3], partial(writer.forward, chunk, first=first)
            )
            table[BACKWARD_CODE, index, int(first), int(last)] = number(
                "backward", key, partial(writer.backward, chunk, first=first, last=last)
            )
    middle = np.stack(
        [table[actions[:, 0], chunk_of, is_first.astype(np.int64), is_last.astype(np.int64)], actions[:, 2]], axis=1
    )
    begin = number("begin", surroundings, partial(writer.begin, chunks))
    end = number("end", surroundings, partial(writer.end, chunks))
    return np.concatenate([[[begin, 0]], middle, [[end, 0]]]).astype(np.int32)


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
    by_name: dict[str, int] = {}
    resources: list[Resource] = []
    classes: list[RankClass] = []
    for number, rank in enumerate(members.pipeline_ranks):
        bound: list[int] = []
        for party, stream in registry.communicators.numbers:
            name, participants = members.communicator(party, stream, number, schedule)
            if name not in by_name:
                by_name[name] = len(communicators)
                communicators.append(Communicator(name=name, participants=participants))
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
