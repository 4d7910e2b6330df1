"""From a table that somebody wrote to a schedule that is complete and runs, or to what is wrong with it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from simulator.errors import Problem, ScenarioError, Violation
from simulator.schedule.actions import (
    BACKWARD_CODE,
    BACKWARD_INPUT_CODE,
    BACKWARD_WEIGHT_CODE,
    FORWARD_CODE,
    Action,
    ActionKind,
    PipelineSchedule,
)
from simulator.schedule.deadlock import Wait, circle_of_waits
from simulator.schedule.longest_path import longest_path
from simulator.schedule.table import Table, read_table

_ONCE = "every microbatch goes once forward and once back through every stage"
_MOST = 10**9
"""Above any stage and microbatch that a table can name."""


def read_schedule_csv(text: str, *, file: str = "schedule.csv") -> PipelineSchedule:
    """Returns the schedule of a table in the CSV format of torch.distributed.pipelining; see `table` for the format.

    Ranks, stages, their placement and the microbatches are those that the table names. The stages of a rank are the
    same number for all ranks.

    Args:
        text: Content of the file.
        file: Its name, for messages; it becomes the name of the schedule.

    Raises:
        ScenarioError: One problem, with line and column: a cell that is no action; an action that is missing or there
            twice; a stage on two ranks; ranks with different numbers of stages; or a deadlock, with who waits for whom.
    """
    table = read_table(text, file=file)
    if problem := next(_incomplete(table), None):
        raise ScenarioError([problem])
    schedule = _schedule(table)
    path = longest_path(schedule, np.ones((len(ActionKind), schedule.num_stages)))
    if not path.is_complete:
        raise ScenarioError([_deadlock(table, schedule, circle_of_waits(schedule, path.reached))])
    return schedule


def table_violations(schedule: PipelineSchedule, *, pp: int, vpp: int, microbatches: int) -> tuple[Violation, ...]:
    """Returns where a schedule that was read from a table does not fit the layout and the batch.

    Args:
        schedule: The schedule of the table.
        pp: Pipeline ranks of the layout.
        vpp: Virtual stages per pipeline rank of the layout.
        microbatches: Microbatches of a step, per pipeline.
    """
    found = []
    for path, given, made_for, what in (
        ("layout.pp", pp, schedule.pp, "rows, one for each pipeline rank"),
        ("layout.vpp", vpp, schedule.vpp, "stages on each rank" if schedule.directions == 1 else "stages each way"),
    ):
        if given != made_for:
            found.append(
                Violation(
                    path=path,
                    problem=f"{given}, but the schedule table has {made_for} {what}",
                    why="a table is the order of one layout",
                    mend=f"set {path} to {made_for}, or give a table for {given}",
                )
            )
    if microbatches != schedule.microbatches:
        found.append(
            Violation(
                path="training.global_batch",
                problem=f"gives {microbatches} microbatches a replica, but the schedule table has "
                f"{schedule.microbatches}",
                why="a table is the order of one number of microbatches",
                mend=f"change training.global_batch so that each replica gets {schedule.microbatches} microbatches "
                "(global_batch = microbatches * micro_batch * dp)",
            )
        )
    return tuple(found) or tuple(islice(_crossings(schedule), 1))


def _crossings(schedule: PipelineSchedule) -> Iterator[Violation]:
    """Boundaries between ranks whose messages are not taken in the order in which they are sent."""
    for stage, rank in enumerate(schedule.stage_to_rank):
        for target, kinds, what in (
            (schedule.next(stage), (FORWARD_CODE,), "activations"),
            (schedule.previous(stage), (BACKWARD_CODE, BACKWARD_INPUT_CODE), "gradients"),
        ):
            if target is None or schedule.stage_to_rank[target] == rank:
                continue
            sent, taken = (_microbatches(schedule, each, kinds) for each in (stage, target))
            crossed = np.flatnonzero(sent != taken)
            if crossed.size:
                first, instead = int(taken[crossed[0]]), int(sent[crossed[0]])
                yield Violation(
                    path="schedule",
                    problem=f"stage {target} takes the {what} of microbatch {first} where stage {stage} sends those of "
                    f"{instead}",
                    why="messages from one rank to another arrive in the order in which they are sent (NCCL)",
                    mend=f"put the microbatches of stage {target} in the order of stage {stage}",
                )


def _microbatches(schedule: PipelineSchedule, stage: int, kinds: tuple[int, ...]) -> NDArray[np.int32]:
    """The microbatches of the actions of such kinds of a stage, in order."""
    actions = schedule.ranks[schedule.stage_to_rank[stage]]
    microbatches: NDArray[np.int32] = actions[(actions[:, 1] == stage) & np.isin(actions[:, 0], kinds), 2]
    return microbatches


def _schedule(table: Table) -> PipelineSchedule:
    """The schedule of a complete table."""
    placed = {stage: rank for rank, row in enumerate(table.rows) for stage in set(row.actions[:, 1].tolist())}
    microbatches = 1 + max(int(row.actions[:, 2].max()) for row in table.rows)
    return PipelineSchedule(
        name=table.file,
        pp=len(table.rows),
        vpp=len(placed) // (len(table.rows) * table.directions),
        microbatches=microbatches * table.directions,
        stage_to_rank=tuple(placed[stage] for stage in range(len(placed))),
        ranks=tuple(row.actions for row in table.rows),
        directions=table.directions,
    )


def _incomplete(table: Table) -> Iterator[Problem]:
    """What keeps a table from being complete, most basic first."""
    actions = np.concatenate([row.actions for row in table.rows])
    rank = np.repeat(np.arange(len(table.rows)), [len(row.actions) for row in table.rows])
    place = np.concatenate([np.arange(len(row.actions)) for row in table.rows])
    yield from _twice(table, actions, rank, place)
    yield from _misplaced(table, actions, rank, place)
    yield from _uneven(table)
    yield from _missing(table, actions, rank)


def _twice(
    table: Table, actions: NDArray[np.int32], rank: NDArray[np.int64], place: NDArray[np.int64]
) -> Iterator[Problem]:
    """An action that is there twice, a whole backward beside a half of one."""
    kind, stage, microbatch, _ = actions.astype(np.int64).T
    makes = np.where(kind == BACKWARD_INPUT_CODE, BACKWARD_CODE, kind)  # B and I make the same gradient
    for chosen in (makes, np.where(kind == BACKWARD_WEIGHT_CODE, BACKWARD_CODE, kind)):  # B and W the same gradients
        key = (chosen * _MOST + stage) * _MOST + microbatch
        order = np.argsort(key, kind="stable")
        again = order[1:][key[order[1:]] == key[order[:-1]]]
        if again.size:
            second = int(again.min())
            first = int(np.flatnonzero(key == key[second])[0])
            cells = _cell(actions[first]), _cell(actions[second])
            seen = table.where(int(rank[first]), int(place[first]))
            violation = Violation(
                path=table.where(int(rank[second]), int(place[second])),
                problem=f"{cells[1]} is there already, at {seen}"
                if cells[0] == cells[1]
                else f"{cells[1]} computes what {cells[0]} does, at {seen}",
                why=f"{_ONCE}; the backward is either whole, B, or its two halves, I and W",
                mend="take one of the two out, or give it another microbatch",
            )
            yield table.problem(violation, rank=int(rank[second]), place=int(place[second]))


def _misplaced(
    table: Table, actions: NDArray[np.int32], rank: NDArray[np.int64], place: NDArray[np.int64]
) -> Iterator[Problem]:
    """A stage on two ranks, or a number that no stage has."""
    stages, first, which = np.unique(actions[:, 1], return_index=True, return_inverse=True)
    wrong = np.flatnonzero(rank != rank[first][which])
    if wrong.size:
        row, stage = int(wrong[0]), int(actions[wrong[0], 1])
        holder = int(rank[first[which[row]]])
        violation = Violation(
            path=table.where(int(rank[row]), int(place[row])),
            problem=f"{_cell(actions[row])} runs stage {stage} on rank {rank[row]}, but rank {holder} runs it too",
            why="one rank holds the weights of a stage",
            mend=f"move the actions of stage {stage} to one of the two ranks",
        )
        yield table.problem(violation, rank=int(rank[row]), place=int(place[row]))
    gaps = np.flatnonzero(stages != np.arange(len(stages)))
    if gaps.size:
        row = int(first[gaps[0]])
        violation = Violation(
            path=table.where(int(rank[row]), int(place[row])),
            problem=f"{_cell(actions[row])} is of stage {stages[gaps[0]]}, but no rank runs stage {gaps[0]}",
            why="stages are numbered from 0 without gaps, and a microbatch goes through all of them",
            mend=f"add the actions of stage {gaps[0]}, or number the stages from 0",
        )
        yield table.problem(violation, rank=int(rank[row]), place=int(place[row]))


def _uneven(table: Table) -> Iterator[Problem]:
    """A rank that holds fewer or more stages than the first one."""
    stages = [np.unique(row.actions[:, 1]) for row in table.rows]
    for rank, held in enumerate(stages):
        if len(held) == 0 or len(held) != len(stages[0]):
            violation = Violation(
                path=table.where(rank),
                problem=f"number of stages: {len(held)}, on rank 0 {len(stages[0])}",
                why="every pipeline rank holds layout.vpp stages",
                mend="give each row the same number of stages, and each rank one row",
            )
            yield table.problem(violation, rank=rank)
    chain = sum(len(held) for held in stages) // table.directions
    for rank, held in enumerate(stages):
        first_direction = np.count_nonzero(held < chain)
        if first_direction * table.directions != len(held):
            violation = Violation(
                path=table.where(rank),
                problem=f"holds {first_direction} stages below {chain} and {len(held) - first_direction} others",
                why="with 2 directions those are the first one's, and each rank holds as many stages of one direction "
                "as of the other",
                mend="number the stages of one direction before those of the other, or take out the line # directions",
            )
            yield table.problem(violation, rank=rank)


def _missing(table: Table, actions: NDArray[np.int32], rank: NDArray[np.int64]) -> Iterator[Problem]:
    """A pass of a microbatch through a stage that is not there."""
    kind, stage, microbatch, _ = actions.T
    num_stages, num_microbatches = int(stage.max()) + 1, int(microbatch.max()) + 1
    is_input, is_weight = kind == BACKWARD_INPUT_CODE, kind == BACKWARD_WEIGHT_CODE
    is_whole = kind == BACKWARD_CODE
    for passes, lacks, cells in (
        (kind == FORWARD_CODE, "no forward of microbatch {1}", "{0}F{1}"),
        (is_input | is_whole, "no backward of microbatch {1}", "{0}B{1}, or {0}I{1} and {0}W{1},"),
        (is_weight | is_whole, "{0}I{1}, the backward of inputs, but not {0}W{1}, that of weights", "{0}W{1}"),
    ):
        counts = np.bincount(stage[passes], minlength=num_stages)
        if (counts == num_microbatches).all():
            continue
        lacking = int(np.argmax(counts != num_microbatches))
        there = np.sort(microbatch[passes & (stage == lacking)])
        absent = int(np.argmax(np.append(there, _MOST) != np.arange(len(there) + 1)))
        holder = int(rank[np.argmax(stage == lacking)])
        violation = Violation(
            path=table.where(holder),
            problem=f"stage {lacking} has {lacks.format(lacking, absent)}",
            why=f"{_ONCE}; this table has stages 0 to {num_stages - 1} and microbatches 0 to {num_microbatches - 1}",
            mend=f"add {cells.format(lacking, absent)} to rank {holder}",
        )
        yield table.problem(violation, rank=holder)


def _deadlock(table: Table, schedule: PipelineSchedule, circle: tuple[Wait, ...]) -> Problem:
    """The problem of ranks that wait for each other."""
    first, second = circle[0], circle[1 % len(circle)]
    mend = f"on rank {second.rank} put {_named(first.needs)} before {_named(second.action)}"
    if len(circle) == 1 and _are_joined(schedule, first):
        mend = f"take {_named(first.needs)} and {_named(first.action)} apart"
    elif schedule.vpp % 2 == 0 and _runs(_as_two_chains(schedule)):
        mend = "if microbatches enter at both ends of the pipeline, begin the file with a line # directions: 2"
    violation = Violation(
        path=table.where(first.rank, first.place),
        problem="deadlock: " + "; ".join(_wait(table, wait) for wait in circle),
        why="a forward needs that of the stage before, a backward its own forward and the backward of the stage after, "
        "W its own I; a pair needs the inputs of both",
        mend=mend,
    )
    return table.problem(violation, rank=first.rank, place=first.place)


def _wait(table: Table, wait: Wait) -> str:
    where = "of its own row" if wait.holder == wait.rank else f"of rank {wait.holder}"
    cell = table.rows[wait.rank].cells[wait.place] + 1
    return f"rank {wait.rank} at {_named(wait.action)} (cell {cell}) waits for {_named(wait.needs)} {where}"


def _are_joined(schedule: PipelineSchedule, wait: Wait) -> bool:
    """Whether an action waits for the other one of its pair."""
    pair = schedule.ranks[wait.rank][wait.place : wait.place + 2]
    return bool(pair[0, 3]) and _named(wait.needs) in [_cell(action) for action in pair]


def _as_two_chains(schedule: PipelineSchedule) -> PipelineSchedule:
    """The same table read as a bidirectional schedule."""
    return replace(schedule, directions=2, vpp=schedule.vpp // 2, microbatches=2 * schedule.microbatches)


def _runs(schedule: PipelineSchedule) -> bool:
    return longest_path(schedule, np.ones((len(ActionKind), schedule.num_stages))).is_complete


def _named(action: Action) -> str:
    return f"{action.stage}{action.kind}{action.microbatch}"


def _cell(action: NDArray[np.int32]) -> str:
    kind, stage, microbatch, _ = action.tolist()
    return f"{stage}{tuple(ActionKind)[kind]}{microbatch}"
