"""A started system, and passes of two systems that are cut into slices which alternate."""

from __future__ import annotations

import argparse
import json
import select
import subprocess
import time
from pathlib import Path
from typing import Any

from active_clock import write_paused_s
from processes import CpuTimes, ProcessTree, count_cpu_s
from turns import Turn, Turns, add_turns, order_turns

__all__ = ["Running", "add_slices", "compare", "run_together"]


class Running:
    """A process that speaks `peers/protocol.py`.

    Args:
        process: with pipes for its standard input and output.
        paused_file: what `active_clock.PAUSED_FILE` names in its environment.
    """

    def __init__(self, process: subprocess.Popen[str], paused_file: Path) -> None:
        self._process = process
        self._tree = ProcessTree(process.pid)
        self._paused_file = paused_file
        self._paused_s = 0.0
        self._paused_at: float | None = None
        self._before: CpuTimes | None = None
        self.pass_s = 0.0
        """Seconds that the last pass took here, without its pauses; 0 before the first."""
        self._active_s = 0.0
        self.versions: dict[str, str] = self._read_answer()["versions"]

    def run(self) -> Turn:
        """Make one pass over all contents, with the CPU seconds of all its processes."""
        turn = self.proceed(None)
        assert turn is not None
        return turn

    def proceed(self, seconds: float | None) -> Turn | None:
        """Start a pass, or resume the one that is stopped, for so many seconds at most.

        Returns:
            The pass if it has ended; otherwise None, and all processes are stopped.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        if self._before is None:
            self._before, self._active_s = self._tree.read_times(), 0.0
            print("run", file=self._process.stdin, flush=True)
        self._resume()
        started = time.perf_counter()
        readable, _, _ = select.select([self._process.stdout], [], [], seconds)
        self._active_s += time.perf_counter() - started
        if not readable:
            self._paused_at = time.perf_counter()
            self._tree.stop()
            return None
        answer = self._read_answer()
        cpu_s = count_cpu_s(self._before, self._tree.read_times())
        self._before, self.pass_s = None, self._active_s
        return Turn(answer["items"], answer["seconds"], cpu_s)

    def close(self) -> None:
        """Close its input, and resume stopped processes, which would not see that."""
        assert self._process.stdin is not None
        self._resume()
        self._process.stdin.close()

    def _resume(self) -> None:
        if self._paused_at is not None:
            self._paused_s += time.perf_counter() - self._paused_at
            write_paused_s(self._paused_file, self._paused_s)
            self._paused_at = None
            self._tree.resume()

    def _read_answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"{self._process.args!r} ended; its standard error says why")
        answer: dict[str, Any] = json.loads(line)
        return answer


def run_together(one: Running, other: Running, *, slice_s: float) -> tuple[Turn, Turn]:
    """Make a pass of each, in slices of about `slice_s` seconds that alternate.

    While one runs, all processes of the other are stopped, and neither its seconds nor its CPU
    seconds go on. Both have the same number of slices, as their last passes foretell, so that both
    see the same changes of the machine's speed; the first slice is half as long, so that the slices
    of both have the same middle. Both must have made a pass before.
    """
    slices = max(1, round(max(one.pass_s, other.pass_s) / slice_s))
    turns: dict[Running, Turn] = {}
    waiting, share = [one, other], 0.5
    while waiting:
        system = waiting.pop(0)
        turn = system.proceed(share * system.pass_s / slices if waiting else None)
        share = 1.0
        if turn is None:
            waiting.append(system)
        else:
            turns[system] = turn
    return turns[one], turns[other]


def compare(own: Running, other: Running, *, turns: int, slice_s: float) -> Turns:
    """Make `turns` passes of each by `run_together`; the one that begins changes.

    Both must have made a pass before, which warms them up.
    """
    taken: dict[Running, list[Turn]] = {own: [], other: []}
    for first, second in order_turns((own, other), turns):
        made = run_together(first, second, slice_s=slice_s)
        taken[first].append(made[0])
        taken[second].append(made[1])
    return Turns(taken[own], taken[other])


def add_slices(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `compare`: `--turns`, and `--slice-s` for the length of a slice."""
    add_turns(parser)
    parser.add_argument("--slice-s", type=float, default=3.0, help="seconds of a slice of a pass")
