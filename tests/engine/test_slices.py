"""A long run tells how far it is, and ends soon when it is interrupted."""

from __future__ import annotations

import signal
import subprocess
import sys

from simulator.engine import Task, run
from tests.engine.programs import program_of

LONG_RUN = """
import time
from simulator.engine import Task, run
from tests.engine.programs import program_of

# Two streams that wait for each other in turn: 100 million steps, some seconds.
tasks = []
for number in range(100):
    waits = (number - 1,) if number else ()
    tasks.append(Task(name="turn", stream=number % 2, category=1, duration_ps=1, waits=waits, records=number))
program = program_of(tasks, events=101, indices=1_000_000)
run(program_of(tasks, events=101))
told_s = []
def tell(share):
    told_s.append(time.process_time())
    print(share, flush=True)
try:
    run(program, progress=tell)
except KeyboardInterrupt:
    print(time.process_time() - told_s[-1])
    raise
"""


def test_the_share_that_is_done_ends_at_one() -> None:
    shares: list[float] = []
    run(program_of([Task(name="work", stream=0, category=1, duration_ps=1)]), progress=shares.append)
    assert shares == [1.0]


def test_an_empty_program_is_done_at_once() -> None:
    shares: list[float] = []
    assert run(program_of(), progress=shares.append).makespan_ps == 0
    assert shares == [1.0]


def test_an_interrupt_ends_a_long_run_within_a_second() -> None:
    child = subprocess.Popen(
        [sys.executable, "-c", LONG_RUN], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    first = float(child.stdout.readline())
    child.send_signal(signal.SIGINT)
    rest, error = child.communicate(timeout=60)
    *shares, passed_s = [float(line) for line in rest.split()]
    assert 0 < first < 1
    assert all(first < share < 1 for share in shares)
    # On the core, not on the wall, so that a busy machine does not fail this.
    assert 0 <= passed_s < 1
    assert error.strip().endswith("KeyboardInterrupt")
    assert child.returncode == -signal.SIGINT
