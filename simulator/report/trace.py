"""The timeline as Chrome trace events, which Perfetto (ui.perfetto.dev) and chrome://tracing show.

A process is a rank class, a thread one of its streams, a complete event a task; the memory of a class is a counter
track with all categories stacked, its actions are a thread of their own above the streams. Flow events are arrows from
sender to receiver and from what was waited for to the waiter. The file is written as it is made, in an order that
depends on nothing but the trace: the same input gives the same bytes.

An end of an arrow follows its task in the file at once and has a time within it, as viewers bind it to the task that
they read last on that thread. The source's time is the begin of its task, the target's the middle: never before it.

Source: Trace Event Format, Google, 2016 (`X`, `C`, `M`, `s` and `f` events; `ts` and `dur` in microseconds).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TextIO

import numpy as np
import numpy.typing as npt

from simulator.engine.program import Program
from simulator.engine.timeline import Timeline, counter_track
from simulator.errors import SimulatorFault
from simulator.report.trace_flows import Flow, by_row, find_flows
from simulator.report.trace_pipeline import TracedPipeline, action_slices

if TYPE_CHECKING:
    IntArray = npt.NDArray[np.int64]

DEFAULT_MAX_SPANS = 1_000_000
_PICOSECONDS_PER_MICROSECOND = 1_000_000
_SPANS_AT_ONCE = 1 << 15


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Trace:
    """What a trace file is made of."""

    program: Program
    """The program that ran."""
    timeline: Timeline
    """What ran when, with its spans recorded."""
    class_names: tuple[str, ...]
    """Name of each rank class, in the order of `program.classes`."""
    classes: tuple[int, ...] | None = None
    """The classes to write; None: as many as there is room for."""
    pipeline: TracedPipeline | None = None
    """The pipeline that it is a trace of; None: without arrows and actions."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceCoverage:
    """How much of a trace has been written."""

    written_spans: int
    """Task executions in the file."""
    total_spans: int
    """Task executions of all classes."""
    left_out: tuple[str, ...]
    """Rank classes that are not in the file."""


def write_trace(trace: Trace, file: TextIO, *, max_spans: int = DEFAULT_MAX_SPANS) -> TraceCoverage:
    """Writes the trace as JSON and returns how much of it that was.

    Args:
        trace: what to write.
        file: where to; written to in order, not closed.
        max_spans: budget of task executions. Beyond it whole rank classes are left out: the first, the last and
            evenly spread ones between are kept (the first in any case). The file names those left out in `otherData`.
            It does not count where the trace names its classes.

    Raises:
        SimulatorFault: the timeline was recorded without any spans, or the names do not match the classes.
    """
    spans, num_classes = trace.timeline.spans, len(trace.program.classes)
    if spans is None:
        raise SimulatorFault("a trace needs a timeline with spans; run the engine with record_spans=True")
    if len(trace.class_names) != num_classes:
        raise SimulatorFault(f"{len(trace.class_names)} class names for {num_classes} rank classes")
    sizes = spans_per_class(trace.program)
    recorded = set(np.unique(spans["class"]).tolist())
    wanted = choose_classes(sizes, max_spans=max_spans) if trace.classes is None else set(trace.classes)
    kept = {at for at in wanted if at in recorded or not sizes[at]}
    left_out = tuple(name for at, name in enumerate(trace.class_names) if at not in kept)
    written = sum(sizes[at] for at in kept)
    coverage = TraceCoverage(written_spans=written, total_spans=sum(sizes), left_out=left_out)
    file.write(f'{{"displayTimeUnit":"ms","otherData":{_json(_other_data(trace, coverage))},"traceEvents":[\n')
    separator = ""
    for event in _events(trace, spans, sorted(kept)):
        file.write(separator)
        file.write(event)
        separator = ",\n"
    file.write("\n]}\n")
    return coverage


def spans_per_class(program: Program) -> list[int]:
    """Returns how many tasks each class of a program runs."""
    lengths = np.array([len(routine.tasks) for routine in program.routines], dtype=np.int64)
    return [int(lengths[rank_class.calls[:, 0]].sum()) for rank_class in program.classes]


def choose_classes(sizes: Sequence[int], *, max_spans: int) -> set[int]:
    """Returns the classes to keep so that their spans stay within `max_spans`.

    All of them if they do; else the first, the last, the middle, the quarters, the eighths... until one is too many.
    """
    if sum(sizes) <= max_spans:
        return set(range(len(sizes)))
    kept, spent = set[int](), 0
    for at in _spread(len(sizes)):
        if kept and spent + sizes[at] > max_spans:
            break
        kept.add(at)
        spent += sizes[at]
    return kept


def _spread(count: int) -> Iterator[int]:
    """Yields 0 to `count` - 1 each once, from coarse to fine."""
    seen = set[int]()
    parts = 1
    while len(seen) < count:
        for position in range(parts + 1):
            at = position * (count - 1) // parts
            if at not in seen:
                seen.add(at)
                yield at
        parts *= 2


def _other_data(trace: Trace, coverage: TraceCoverage) -> dict[str, Any]:
    return {
        **{f"program.{key}": value for key, value in sorted(trace.program.metadata.items())},
        "generator": "shardsim",
        "makespan_us": f"{_microseconds(trace.timeline.makespan_ps)}",
        "rank_classes": len(trace.class_names),
        "rank_classes_left_out": list(coverage.left_out),
        "spans": coverage.total_spans,
        "spans_written": coverage.written_spans,
    }


def _events(trace: Trace, spans: npt.NDArray[np.void], classes: Sequence[int]) -> Iterator[str]:
    heads = [
        [_head(trace.program, routine, task) for task in range(len(routine.tasks))]
        for routine in trace.program.routines
    ]
    order = np.lexsort((spans["end_ps"], spans["begin_ps"], spans["stream"], spans["class"]))
    ordered = spans[order[np.isin(spans["class"][order], classes)]]
    flows = _flows(trace, ordered)
    ends = by_row(flows)
    bounds = np.searchsorted(ordered["class"], np.arange(len(trace.class_names) + 1))
    for at in classes:
        mine = range(int(bounds[at]), int(bounds[at + 1]))
        yield from _names(
            trace, at, streams=[int(stream) for stream in np.unique(ordered["stream"][mine.start : mine.stop])]
        )
        yield from _counters(trace, at)
        yield from _actions(trace, at)
        for begin in range(mine.start, mine.stop, _SPANS_AT_ONCE):
            rows = range(begin, min(begin + _SPANS_AT_ONCE, mine.stop))
            for row, (task, span) in zip(rows, _tasks(heads, ordered[rows.start : rows.stop]), strict=True):
                yield task
                for number, is_source in ends.get(row, ()):
                    yield _flow_end(flows[number], number, is_source=is_source, span=span)


def _flows(trace: Trace, ordered: npt.NDArray[np.void]) -> list[Flow]:
    if trace.pipeline is None:
        return []
    return find_flows(trace.program, ordered, sends=trace.pipeline.sends, receives=trace.pipeline.receives)


def _flow_end(flow: Flow, number: int, *, is_source: bool, span: tuple[int, ...]) -> str:
    at, stream, _, _, _, begin_ps, end_ps = span
    time_ps = begin_ps if is_source else begin_ps + (end_ps - begin_ps) // 2
    phase = '"ph":"s"' if is_source else '"ph":"f","bp":"e"'
    return (
        f'{{"name":"{flow.name}","cat":"flow",{phase},"id":{number + 1},'
        f'"pid":{at + 1},"tid":{stream + 1},"ts":{_microseconds(time_ps)}}}'
    )


def _actions(trace: Trace, at: int) -> Iterator[str]:
    """Yields the actions of a class, on the thread after its streams."""
    if trace.pipeline is None:
        return
    thread = len(trace.program.streams)
    yield _metadata("thread_name", {"name": "actions"}, at=at, stream=thread)
    yield _metadata("thread_sort_index", {"sort_index": -1}, at=at, stream=thread)
    for action in action_slices(trace.pipeline, trace.program, trace.timeline, at):
        head = {"name": action.name, "cat": "action", "ph": "X", "cname": action.colour, "args": action.args}
        yield (
            f'{_json(head)[:-1]},"pid":{at + 1},"tid":{thread + 1},'
            f'"ts":{_microseconds(action.begin_ps)},"dur":{_microseconds(action.end_ps - action.begin_ps)}}}'
        )


def _names(trace: Trace, at: int, *, streams: Sequence[int]) -> Iterator[str]:
    name = f"{trace.class_names[at]} (x{trace.program.classes[at].count})"
    yield _metadata("process_name", {"name": name}, at=at)
    yield _metadata("process_sort_index", {"sort_index": at}, at=at)
    for stream in streams:
        yield _metadata("thread_name", {"name": trace.program.streams[stream]}, at=at, stream=stream)
        yield _metadata("thread_sort_index", {"sort_index": stream}, at=at, stream=stream)


def _metadata(name: str, args: dict[str, object], *, at: int, stream: int | None = None) -> str:
    thread = {} if stream is None else {"tid": stream + 1}
    return _json({"name": name, "ph": "M", "pid": at + 1, **thread, "args": args})


def _counters(trace: Trace, at: int) -> Iterator[str]:
    """Yields the memory of a class: the level of every category after each instant that changes one."""
    names = [_json(name) for name in trace.program.counters]
    if not names:
        return
    times_ps, levels = counter_track(trace.timeline, at)
    last_of_instant = np.append(times_ps[1:] != times_ps[:-1], True)
    times_ps, levels = times_ps[last_of_instant], levels[last_of_instant]
    changed = np.append(True, (levels[1:] != levels[:-1]).any(axis=1))
    for time_ps, level in zip(times_ps[changed].tolist(), levels[changed].tolist(), strict=True):
        values = ",".join(f"{name}:{value}" for name, value in zip(names, level, strict=True))
        yield f'{{"name":"memory","ph":"C","pid":{at + 1},"ts":{_microseconds(time_ps)},"args":{{{values}}}}}'


def _head(program: Program, routine: Any, task: int) -> str:
    """Returns what all executions of a task share: the event up to the value of `index`, without times."""
    this = routine.tasks[task]
    fixed = {"name": this.name, "cat": program.categories[this.category], "ph": "X"}
    return f'{_json(fixed)[:-1]},"args":{{"routine":{_json(routine.name)},"index":'


def _tasks(heads: Sequence[Sequence[str]], spans: npt.NDArray[np.void]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yields the event of each task, and its span."""
    for span in spans.tolist():
        at, stream, routine, task, index, begin_ps, end_ps = span
        yield (
            f'{heads[routine][task]}{index}}},"pid":{at + 1},"tid":{stream + 1},'
            f'"ts":{_microseconds(begin_ps)},"dur":{_microseconds(end_ps - begin_ps)}}}',
            span,
        )


def _microseconds(time_ps: int) -> str:
    """Returns the time in microseconds, exact to the picosecond."""
    whole, rest = divmod(time_ps, _PICOSECONDS_PER_MICROSECOND)
    return f"{whole}.{rest:06d}"


def _json(value: object) -> str:
    return json.dumps(value, separators=(",", ":"))
