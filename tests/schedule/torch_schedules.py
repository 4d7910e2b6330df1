"""Schedules of torch.distributed.pipelining, made without a process group: stages only know their place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

CLASSES = {
    "interleaved-1f1b": "ScheduleInterleaved1F1B",
    "looped-bfs": "ScheduleLoopedBFS",
    "interleaved-zb": "ScheduleInterleavedZeroBubble",
    "zb-v": "ScheduleZBVZeroBubble",
    "dualpipe-v": "ScheduleDualPipeV",
}
"""Class of torch by the name of the schedule here."""
IN_A_V = ("zb-v", "dualpipe-v")


def torch_schedule(name: str, *, pp: int, vpp: int, microbatches: int) -> Any:
    """Returns torch's schedule as rank 0 makes it; it holds the order of all ranks.

    Raises:
        ValueError: torch does not run this schedule with these sizes.
    """
    import torch
    from torch.distributed.pipelining import schedules

    class Stage:
        def __init__(self, index: int) -> None:
            self.stage_index = index
            self.group_rank, self.group_size, self.num_stages = 0, pp, pp * vpp
            self.is_first, self.is_last = index == 0, index == pp * vpp - 1
            self.submod = torch.nn.Identity()
            self.has_backward = True
            self.stage_index_to_group_rank: dict[int, int] = {}

    held = (0, 2 * pp - 1) if name in IN_A_V else range(0, pp * vpp, pp)
    return getattr(schedules, CLASSES[name])(
        [Stage(index) for index in held], microbatches, loss_fn=lambda output, _target: output
    )


def torch_table(schedule: Any, folder: Path, *, lowered: bool = False) -> str:
    """Returns the table that torch writes of its schedule, with its communication if lowered."""
    path = folder / "torch.csv"
    schedule._dump_csv(path, format="compute_comms" if lowered else "compute_only")
    return path.read_text(encoding="utf-8")
