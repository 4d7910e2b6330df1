"""Nothing begins before what it needs has ended: read off the spans of the engine, call by call."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field

from hypothesis import given, settings

from simulator.config.scenario import Scenario
from simulator.engine import Program
from simulator.report.simulated import Simulated
from simulator.schedule import ActionKind
from simulator.simulate import run_steps
from tests.system.jobs import scenarios
from tests.system.pipelines import actions_of_calls, source_of

often = settings(max_examples=40, deadline=None, derandomize=True)
IN_A_LAYER = ("tp", "cp", "ep")
"""How the streams begin whose transfers belong to the layers of a pass."""
MAKES = {
    ActionKind.FORWARD: "activation",
    ActionKind.BACKWARD: "gradient",
    ActionKind.BACKWARD_INPUT: "gradient",
}
"""What the stage next to it waits for."""
REDUCTIONS = ("reduce-scatter dp", "all-reduce dp")
GATHER = "all-gather dp"


@dataclass
class _Call:
    """The spans of one call on one rank: (begin, end, name), in order of begin."""

    compute: list[tuple[int, int, str]] = field(default_factory=list)
    beside: dict[str, list[tuple[int, int, str]]] = field(default_factory=lambda: defaultdict(list))

    @property
    def begin(self) -> int:
        """Of the first task that takes time; a joined pair waits for one input after the other."""
        return next((begin for begin, end, _ in self.compute if end > begin), self.compute[-1][0])

    @property
    def end(self) -> int:
        return self.compute[-1][1]

    def ends(self, names: tuple[str, ...]) -> list[int]:
        """Ends of the transfers with these names, on whatever stream."""
        spans = [span for stream in (self.compute, *self.beside.values()) for span in stream]
        return [end for _, end, name in spans if name in names]


@often
@given(scenario=scenarios())
def test_a_pass_begins_after_the_one_that_it_receives_from(scenario: Scenario) -> None:
    simulated, calls = _simulated(scenario)
    schedule = simulated.schedule
    made = {
        (MAKES[action.kind], action.stage, action.microbatch): calls[rank][place]
        for rank in range(schedule.pp)
        for place, actions in enumerate(actions_of_calls(schedule, rank), start=1)
        for action in actions
        if action.kind in MAKES
    }
    for rank in range(schedule.pp):
        for place, actions in enumerate(actions_of_calls(schedule, rank), start=1):
            call, remote = calls[rank][place], 0
            if not call.compute:  # the weights of a stage without matrices
                continue
            for action in actions:
                source = source_of(schedule, action)
                if source is not None:
                    assert made[MAKES[action.kind], source, action.microbatch].end <= call.begin
                    remote += schedule.stage_to_rank[source] != rank
            arrivals = [end for name, spans in call.beside.items() if name.startswith("receive") for _, end, _ in spans]
            assert len(arrivals) == remote
            assert max(arrivals, default=call.begin) <= call.begin


@often
@given(scenario=scenarios())
def test_a_pass_ends_after_the_transfers_of_its_layers(scenario: Scenario) -> None:
    _, calls = _simulated(scenario)
    for calls_of_rank in calls:
        for call in calls_of_rank[1:-1]:
            if not call.compute:  # the weights of a stage without matrices
                continue
            ends = [end for name, spans in call.beside.items() if name.startswith(IN_A_LAYER) for _, end, _ in spans]
            assert call.end >= max(ends, default=0)


@often
@given(scenario=scenarios())
def test_the_update_begins_after_all_gradients_are_reduced(scenario: Scenario) -> None:
    _, calls = _simulated(scenario)
    for calls_of_rank in calls:
        begin = next(begin for begin, _, name in calls_of_rank[-1].compute if name == "optimizer")
        assert all(end <= begin for call in calls_of_rank for end in call.ends(REDUCTIONS))


@often
@given(scenario=scenarios())
def test_parameters_are_gathered_before_the_layers_that_use_them_end(scenario: Scenario) -> None:
    """Zero 1 and 2: before the first microbatch is through; zero 3: before each pass is through."""
    simulated, calls = _simulated(scenario)
    for rank, calls_of_rank in enumerate(calls):
        for call in calls_of_rank[1:-1]:
            if call.compute:
                assert call.end > max(call.ends((GATHER,)), default=-1)
        first = [
            calls_of_rank[place].end
            for place, actions in enumerate(actions_of_calls(simulated.schedule, rank), start=1)
            for action in actions
            if action.kind is ActionKind.FORWARD and action.microbatch == 0
        ]
        assert max(first) > max(calls_of_rank[0].ends((GATHER,)), default=-1)


@often
@given(scenario=scenarios())
def test_every_transfer_that_records_an_event_is_waited_for(scenario: Scenario) -> None:
    """An end of a transfer that nobody waits for is a dependency that was forgotten."""
    program = run_steps(scenario).step.program
    for rank_class in program.classes:
        recorded, waited = set(), set()
        for routine, index in rank_class.calls.tolist():
            for task in program.routines[routine].tasks:
                waited |= {_event(program, slot, index) for slot in task.waits}
                if task.demands and task.records is not None:
                    recorded.add(_event(program, task.records, index))
        assert recorded <= waited


def _event(program: Program, slot: int, index: int) -> tuple[str, int]:
    event = program.events[slot]
    return event.name, 0 if event.shared_over_calls else index


def _simulated(scenario: Scenario) -> tuple[Simulated, list[list[_Call]]]:
    """The step, and the spans of every call of every class."""
    simulated = run_steps(scenario, record_spans=True)
    program, spans = simulated.step.program, simulated.timeline.spans
    assert spans is not None
    found: dict[tuple[int, int, int], _Call] = defaultdict(_Call)
    for number, stream, routine, task, index, begin, end in spans.tolist():
        call = found[number, routine, index]
        span = (begin, end, program.routines[routine].tasks[task].name)
        (call.compute if stream == 0 else call.beside[program.streams[stream]]).append(span)
    return simulated, [
        [found[number, routine, index] for routine, index in rank_class.calls.tolist()]
        for number, rank_class in enumerate(program.classes)
    ]
