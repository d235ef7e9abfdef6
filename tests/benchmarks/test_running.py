"""Passes of two real processes that take turns: what is stopped, and what is counted."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import psutil

from active_clock import PAUSED_FILE, write_paused_s
from processes import ProcessTree, count_cpu_s
from running import Running, compare

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"

# A peer whose child does the work: it burns CPU seconds, not wall time.
PEER = """\
import multiprocessing, sys, time
from contextlib import contextmanager
from protocol import serve

CPU_S = float(sys.argv.pop())

def burn(connection):
    while connection.recv():
        end = time.process_time() + CPU_S
        while time.process_time() < end:
            pass
        connection.send(3)

@contextmanager
def prepare(contents, precision, backend):
    own, others = multiprocessing.Pipe()
    child = multiprocessing.get_context("fork").Process(target=burn, args=(others,), daemon=True)
    child.start()

    def run():
        own.send(True)
        return own.recv()

    yield run

if __name__ == "__main__":
    serve(prepare)
"""


@contextmanager
def started(folder: Path, name: str, cpu_s: float) -> Iterator[tuple[Running, psutil.Process]]:
    script, paused_file = folder / f"{name}.py", folder / f"{name}.paused"
    script.write_text(PEER)
    write_paused_s(paused_file, 0.0)
    path = os.pathsep.join([str(BENCHMARKS), str(BENCHMARKS / "peers")])
    process = subprocess.Popen(
        [sys.executable, str(script), "--contents", str(folder), str(cpu_s)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": path, PAUSED_FILE: str(paused_file)},
    )
    with process, closing(Running(process, paused_file)) as system:
        yield system, psutil.Process(process.pid)


def read_cpu_s(process: psutil.Process) -> float:
    return sum(sum(one.cpu_times()[:2]) for one in [process, *process.children(recursive=True)])


def await_stop(process: psutil.Process) -> None:
    deadline = time.monotonic() + 30
    family = [process, *process.children(recursive=True)]
    assert len(family) == 2
    while any(one.status() != psutil.STATUS_STOPPED for one in family):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_stopped_pass_uses_nothing_and_its_pause_does_not_count(tmp_path: Path) -> None:
    with started(tmp_path, "slow", 0.6) as (system, process):
        began = time.perf_counter()
        assert system.proceed(0.05) is None
        await_stop(process)
        stopped_at = read_cpu_s(process)
        time.sleep(1.0)
        assert read_cpu_s(process) == stopped_at

        turn = system.run()
        wall_s = time.perf_counter() - began

    assert turn.items == 3
    # The child's CPU seconds are counted, whichever machine runs it; a tick is 10 ms.
    assert 0.55 < turn.cpu_s < 1.2
    assert 0.55 < turn.seconds < wall_s - 0.95


def test_two_systems_take_turns_and_each_has_its_own_time(tmp_path: Path) -> None:
    with (
        started(tmp_path, "light", 0.2) as (light, _),
        started(tmp_path, "heavy", 0.4) as (heavy, _),
    ):
        for system in (light, heavy):
            system.run()

        turns = compare(light, heavy, turns=2, slice_s=heavy.pass_s / 2)

    assert [turn.items for turn in (*turns.own, *turns.other)] == [3] * 4
    assert all(0.15 < turn.cpu_s < 0.4 for turn in turns.own)
    assert all(0.35 < turn.cpu_s < 0.8 for turn in turns.other)
    assert 1.2 < turns.cpu.median < 2.5


def test_a_system_that_ends_while_it_is_stopped_leaves_no_stopped_process(tmp_path: Path) -> None:
    with started(tmp_path, "slow", 0.5) as (system, process):
        assert system.proceed(0.01) is None
        family = [process, *process.children(recursive=True)]

    _, alive = psutil.wait_procs(family, timeout=30)
    assert not alive


def test_children_that_were_waited_for_count_whole() -> None:
    tree = ProcessTree()
    before = tree.read_times()

    burn = "import time\nwhile time.process_time() < 0.3: pass"
    subprocess.run([sys.executable, "-c", burn], check=True)

    # The clock of `burn` is finer than the ticks of 10 ms that are counted.
    assert count_cpu_s(before, tree.read_times()) > 0.25
