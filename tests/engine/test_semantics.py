"""Each rule of `simulator.engine.program`, worked out by hand, in both engines."""

from __future__ import annotations

import pickle
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from simulator.engine import CounterChange, Program, ProgramError, RankClass, counter_track, run
from simulator.engine.reference import run_reference
from tests.engine.programs import (
    COPY,
    HOST,
    Engine,
    assert_same,
    both_engines,
    moves,
    program_of,
    talk,
    times,
    work,
)


@both_engines
def test_tasks_of_a_stream_run_one_after_another_in_call_order(engine: Engine) -> None:
    timeline = engine(program_of([work(5), work(7)], indices=2))
    assert times(timeline) == [(0, 5), (5, 12), (12, 17), (17, 24)]
    assert timeline.makespan_ps == 24
    assert timeline.events == 4


@both_engines
def test_streams_run_side_by_side_until_they_wait(engine: Engine) -> None:
    timeline = engine(program_of([work(5, records=0), talk(3), talk(4, waits=(0,))]))
    assert times(timeline) == [(0, 5), (0, 3), (5, 9)]


@both_engines
def test_an_event_belongs_to_its_index_unless_it_is_shared(engine: Engine) -> None:
    own = program_of([work(5, records=0), talk(1, waits=(0,))], indices=2)
    assert times(engine(own)) == [(0, 5), (5, 10), (5, 6), (10, 11)]
    # Slot 5 is shared: recorded in the call with index 1, the talk of both calls waits for it.
    program = program_of([work(5)], [work(5, records=5)], [talk(1, waits=(5,))], indices=2)
    (rank_class, *_) = program.classes
    mixed = Program(
        **{
            **{name: getattr(program, name) for name in Program.__dataclass_fields__},
            "classes": (
                RankClass(
                    name="mixed",
                    count=1,
                    calls=np.array([(2, 0), (0, 0), (1, 1), (2, 1)], dtype=np.int32),
                    initial=rank_class.initial,
                ),
            ),
        }
    )
    assert times(engine(mixed)) == [(0, 5), (5, 10), (10, 11), (11, 12)]


@both_engines
def test_a_lone_transfer_takes_its_latency_and_then_its_slowest_resource(engine: Engine) -> None:
    demands = (*moves(1000, link=0), *moves(900, link=1))
    timeline = engine(program_of([talk(100, demands=demands)], links=(1e9, 0.7e9)))
    assert times(timeline) == [(0, 100 + 1_285_715)]  # 900 / 0.7e9 s = 1,285,714.3 ps
    assert timeline.resource_bytes.tolist() == [1000, 900]
    assert timeline.resource_busy_ps.tolist() == [1_285_715, 1_285_715]


@both_engines
def test_demands_on_one_resource_add_up_and_none_count_as_no_transfer(engine: Engine) -> None:
    two_slots = program_of([talk(0, demands=(*moves(600), *moves(400)))], links=(1e9,))
    assert times(engine(two_slots)) == [(0, 1_000_000)]
    assert times(engine(program_of([talk(7, demands=moves(0))], links=(1e9,)))) == [(0, 7)]


@both_engines
def test_two_transfers_on_one_link_get_half_each_and_then_the_whole(engine: Engine) -> None:
    # 1,000 bytes and 3,000 bytes at 1e9 bytes/s: 2,000 ns together, then 2,000 bytes alone.
    program = program_of([talk(0, demands=moves(1000)), talk(0, stream=HOST, demands=moves(3000))], links=(1e9,))
    timeline = engine(program)
    assert times(timeline) == [(0, 2_000_000), (0, 4_000_000)]
    assert timeline.resource_busy_ps.tolist() == [4_000_000]
    assert timeline.resource_bytes.tolist() == [4000]


@both_engines
def test_a_transfer_that_comes_later_slows_the_one_that_moves(engine: Engine) -> None:
    # Alone for 1,000 ns, then shared: 1,000 bytes left of the first, which ends at 1,000 + 2,000 ns; the second has
    # moved 1,000 of 2,000 bytes by then and needs 1,000 ns more. Latency uses no link.
    program = program_of(
        [talk(0, demands=moves(2000)), talk(1_000_000, stream=HOST, demands=moves(2000))], links=(1e9,)
    )
    assert times(engine(program)) == [(0, 3_000_000), (0, 4_000_000)]


@both_engines
def test_max_min_rates_of_three_flows_on_two_links(engine: Engine) -> None:
    # The classic: flow A crosses links 0 (10) and 1 (4), B only link 0, C only link 1 (Bertsekas and Gallager, 6.5.2).
    # Link 1 is tightest: A and C get 2 each; B gets the rest of link 0, 8.
    classes = (
        [talk(0, demands=(*moves(2000, 0), *moves(2000, 1)))],
        [talk(0, demands=moves(8000, 0))],
        [talk(0, demands=moves(2000, 1))],
    )
    timeline = engine(program_of(*classes, links=(10e9, 4e9)))
    assert [times(timeline, number) for number in range(3)] == [[(0, 1_000_000)]] * 3


@both_engines
def test_a_transfer_that_meets_nobody_on_a_shared_link_takes_as_long_as_alone(engine: Engine) -> None:
    tasks = [talk(3, demands=(*moves(997, 0), *moves(1009, 1)), records=0)]
    alone = times(engine(program_of(tasks, links=(7.7e9, 12345.678e6))))
    later = talk(0, stream=HOST, demands=(*moves(5, 0), *moves(5, 1)), waits=(0,))
    shared = program_of([*tasks, later], links=(7.7e9, 12345.678e6))
    assert times(engine(shared))[0] == alone[0]


@both_engines
def test_a_meeting_begins_with_the_last_and_ends_for_all(engine: Engine) -> None:
    # Rank 0 comes at 5, rank 1 at 8; latency is the larger one; 1,000 + 500 bytes on link 0.
    classes = (
        [work(5, records=0), talk(10, communicator=0, demands=moves(1000), waits=(0,))],
        [work(8, records=0), talk(20, communicator=0, demands=moves(500), waits=(0,))],
    )
    timeline = engine(program_of(*classes, links=(1e9,), communicators=(2,)))
    assert times(timeline, 0)[1] == times(timeline, 1)[1] == (8, 8 + 20 + 1_500_000)


@both_engines
def test_meetings_of_a_communicator_match_in_order(engine: Engine) -> None:
    classes = ([talk(3, communicator=0), talk(4, communicator=0)], [talk(5, communicator=0), talk(1, communicator=0)])
    timeline = engine(program_of(*classes, communicators=(2,)))
    assert times(timeline, 0) == times(timeline, 1) == [(0, 5), (5, 9)]


@both_engines
def test_a_meeting_of_one_is_a_task(engine: Engine) -> None:
    assert times(engine(program_of([work(2), work(3, communicator=0)], communicators=(1,)))) == [(0, 2), (2, 5)]


@both_engines
def test_a_gap_counts_to_the_awaited_stream_as_far_as_it_was_busy(engine: Engine) -> None:
    # The network is idle until 4, then busy to 10; the compute stream waits from 2 to 10.
    program = program_of(
        [work(2), work(4, stream=HOST, category=COPY, records=0), talk(6, waits=(0,), records=1), work(1, waits=(1,))]
    )
    timeline = engine(program)
    assert timeline.time_ps.tolist() == [[2, 3, 6, 0]]
    assert timeline.busy_ps.tolist() == [[0, 3, 6, 4]]


@both_engines
def test_a_busy_period_goes_on_over_tasks_without_a_pause(engine: Engine) -> None:
    program = program_of([work(2), talk(4), talk(6, records=1, category=COPY), work(1, waits=(1,))])
    assert engine(program).time_ps.tolist() == [[0, 3, 0, 8]]


@both_engines
def test_waiting_for_others_in_a_meeting_is_bubble_in_both_places(engine: Engine) -> None:
    on_compute = program_of([work(2, communicator=0)], [work(5), work(3, communicator=0)], communicators=(2,))
    assert engine(on_compute).time_ps[0].tolist() == [5, 3, 0, 0]
    beside = program_of(
        [talk(2, communicator=0, records=0), work(1, waits=(0,))],
        [work(5, records=0), talk(2, communicator=0, waits=(0,))],
        communicators=(2,),
    )
    assert engine(beside).time_ps[0].tolist() == [5, 1, 2, 0]


@both_engines
def test_of_two_awaited_events_the_later_one_counts_and_the_first_named_of_equals(engine: Engine) -> None:
    host = work(6, stream=HOST, category=COPY, records=1)
    assert engine(program_of([talk(4, records=0), host, work(1, waits=(0, 1))])).time_ps[0].tolist() == [0, 1, 0, 6]
    assert engine(program_of([talk(6, records=0), host, work(1, waits=(0, 1))])).time_ps[0].tolist() == [0, 1, 6, 0]


@both_engines
def test_the_tail_counts_to_the_last_stream_and_then_to_the_bubble(engine: Engine) -> None:
    program = program_of([work(2, records=0), talk(3, waits=(0,)), talk(4)], [work(20)])
    timeline = engine(program)
    assert timeline.time_ps.tolist() == [[11, 2, 7, 0], [0, 20, 0, 0]]
    assert timeline.end_ps.tolist() == [9, 20]


@both_engines
def test_counters_change_at_begins_and_ends_and_the_first_peak_counts(engine: Engine) -> None:
    up, down = (CounterChange(counter=1, delta=10),), (CounterChange(counter=1, delta=-10),)
    program = program_of([work(5, at_start=up), work(5, at_end=down), work(5, at_start=up)], initial=(3, 0))
    timeline = engine(program)
    (peak,) = timeline.counter_peaks
    assert (peak.time_ps, peak.at_peak, peak.total) == (0, (3, 10), 13)
    assert (peak.final, peak.highest, peak.lowest, peak.lowest_total) == ((3, 10), (3, 10), (3, 0), 3)
    track_times, levels = counter_track(timeline, 0)
    assert track_times.tolist() == [0, 0, 10, 10]
    assert levels[:, 1].tolist() == [0, 10, 0, 10]


@both_engines
def test_memory_freed_and_taken_at_one_instant_is_not_counted_twice(engine: Engine) -> None:
    take, free = (CounterChange(counter=0, delta=8),), (CounterChange(counter=0, delta=-8),)
    program = program_of([work(5, at_start=take, at_end=free), work(5, at_start=take, at_end=free)])
    (peak,) = engine(program).counter_peaks
    assert (peak.time_ps, peak.total, peak.final, peak.lowest_total) == (0, 8, (0, 0), 0)


@both_engines
def test_a_task_of_no_time_takes_before_it_frees(engine: Engine) -> None:
    take, free = (CounterChange(counter=0, delta=8),), (CounterChange(counter=0, delta=-8),)
    (peak,) = engine(program_of([work(0, at_start=take, at_end=free)])).counter_peaks
    assert (peak.lowest_total, peak.total, peak.final) == (0, 8, (0, 0))


@both_engines
def test_a_class_without_calls_only_waits(engine: Engine) -> None:
    program = program_of([work(4)], [])
    timeline = engine(program)
    assert timeline.time_ps.tolist() == [[0, 4, 0, 0], [4, 0, 0, 0]]
    assert timeline.end_ps.tolist() == [4, 0]


def test_a_program_without_classes_takes_no_time() -> None:
    for engine in (run_reference, run):
        assert engine(program_of()).makespan_ps == 0


def test_spans_can_be_kept_for_some_classes_only() -> None:
    program = program_of([work(4)], [work(5), work(6)], [work(7)])
    spans = run(program, record_spans=(1,)).spans
    assert spans is not None
    assert spans.tolist() == [(1, 0, 1, 0, 0, 0, 5), (1, 0, 1, 1, 0, 5, 11)]
    assert run(program).spans is None
    with pytest.raises(ProgramError, match=r"record_spans names classes \[3\], the program has 3"):
        run(program, record_spans=(3,))


def test_a_timeline_can_be_sent_to_another_process() -> None:
    up = (CounterChange(counter=1, delta=10),)
    timeline = run(program_of([work(5, at_start=up)]))
    received = pickle.loads(pickle.dumps(timeline))
    assert_same(received, timeline)


def test_importing_the_engine_does_not_import_numba() -> None:
    command = "import sys, simulator.engine; sys.exit('numba' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", command], check=False).returncode == 0


BROKEN = {
    "routine `step`, task `work`: stream 3 does not exist": program_of([work(1, stream=3)]),
    "routine `step`, task `work`: category 9 does not exist": program_of([work(1, category=9)]),
    "routine `step`, task `work`: duration is -1 ps": program_of([work(-1)]),
    "routine `step`, task `work`: event slot 6 does not exist": program_of([work(1, waits=(6,))]),
    "routine `step`, task `work`: counter 2 does not exist": program_of(
        [work(1, at_end=(CounterChange(counter=2, delta=1),))]
    ),
    "rank class `rank 0`: `initial` needs one level for each counter": program_of([work(1)], initial=()),
    "rank class `rank 0`: routine `step`, task `talk` uses a resource slot that the class lacks": program_of(
        [talk(1, demands=moves(1, 1))], links=(1e9,)
    ),
    "rank class `rank 0`: routine `step`, task `talk` uses a communicator slot that the class lacks": program_of(
        [talk(1, communicator=0)]
    ),
    "rank class `rank 0`: event `event 0` is recorded twice": program_of([work(1, records=0), work(1, records=0)]),
    "rank class `rank 0`: event `event 5` is recorded twice": program_of([work(1, records=5)], indices=2),
    "rank class `rank 0` uses communicator `group 0` from two streams": program_of(
        [work(1, communicator=0), talk(1, communicator=0)], communicators=(1,)
    ),
    "communicator `group 0` has 1 participants, but 2 rank classes use it": program_of(
        [work(1, communicator=0)], [work(1, communicator=0)], communicators=(1,)
    ),
    "resource `link 0`: capacity 0.0 bytes/s": program_of([work(1)], links=(0.0,)),
}


@both_engines
@pytest.mark.parametrize("problem", BROKEN)
def test_a_program_that_breaks_a_rule_is_refused(engine: Engine, problem: str) -> None:
    with pytest.raises(ProgramError) as error:
        engine(BROKEN[problem])
    assert str(error.value) == problem


@both_engines
def test_ranks_that_share_a_link_have_a_flow_each(engine: Engine) -> None:
    # Three ranks of one class and one of another on 4 GB/s: 1 GB/s each. 1000 bytes of the one take 1 us; then the
    # three have 4/3 GB/s, and 1000 of their 2000 bytes are left: 0.75 us.
    program = program_of([talk(0, demands=moves(2000))], [talk(0, demands=moves(1000))], links=(4e9,))
    three = replace(program.classes[0], sharers=(3,))
    timeline = engine(replace(program, classes=(three, program.classes[1])))
    assert [times(timeline, number) for number in range(2)] == [[(0, 1_750_000)], [(0, 1_000_000)]]
    assert timeline.resource_bytes.tolist() == [7000]


@both_engines
def test_what_rounding_leaves_does_not_count_as_a_picosecond(engine: Engine) -> None:
    # 303 bytes at 0.3 GB/s are 1,010,000 ps, which floating point makes a little more.
    assert 303 / 0.3e9 * 1e12 > 1_010_000
    timeline = engine(program_of([talk(0, demands=moves(303))], links=(0.3e9,)))
    assert times(timeline, 0) == [(0, 1_010_000)]
