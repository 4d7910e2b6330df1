"""The lists of calls of a program, each distinct one once: many classes run the same calls on different hardware."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from simulator.engine.program import Program

IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CallList:
    """One list of calls and who runs it."""

    calls: npt.NDArray[np.int32]
    """As in `RankClass.calls`."""
    classes: IntArray
    """Numbers of the classes that run it, ascending."""

    @property
    def routines(self) -> list[int]:
        """Return the routines that are called, ascending."""
        called: list[int] = np.flatnonzero(np.bincount(self.calls[:, 0])).tolist()
        return called


def call_lists(program: Program) -> list[CallList]:
    """Return the distinct lists of calls, in the order of the first class of each.

    Arrays that are the same object are not compared, others by their content.
    """
    by_identity: dict[int, list[int]] = {}
    by_content: dict[tuple[object, ...], list[int]] = {}
    first: list[npt.NDArray[np.int32]] = []
    for number, rank_class in enumerate(program.classes):
        calls = rank_class.calls
        classes = by_identity.get(id(calls))
        if classes is None:
            content = calls.shape, calls.dtype.str, calls.tobytes()
            if content not in by_content:
                by_content[content] = []
                first.append(calls)
            classes = by_identity[id(calls)] = by_content[content]
        classes.append(number)
    return [
        CallList(calls=calls, classes=np.array(classes, dtype=np.int64))
        for calls, classes in zip(first, by_content.values(), strict=True)
    ]
