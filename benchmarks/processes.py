"""A process and all below it: the time they take, and stopping them for a while."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import psutil

from active_clock import read_active_s
from turns import Turn

__all__ = ["CpuTimes", "ProcessTree", "Spent", "count_cpu_s", "measure"]

CpuTimes = Mapping[psutil.Process, tuple[float, float]]
"""User and system seconds of each process, and those of the children that it has waited for."""

LeaveOut = Callable[[psutil.Process], bool]
"""Says of a process that its time does not count; it may raise psutil.NoSuchProcess."""


class ProcessTree:
    """The processes below a process, by default this one, and itself."""

    def __init__(self, pid: int | None = None) -> None:
        self._root = psutil.Process(pid)
        self._stopped: list[psutil.Process] = []

    def read_times(self, leave_out: LeaveOut | None = None) -> CpuTimes:
        """Read the CPU seconds so far."""
        read = {}
        for process in self._list():
            # One may end meanwhile.
            with suppress(psutil.NoSuchProcess):
                if leave_out is None or not leave_out(process):
                    times = process.cpu_times()
                    waited_for = times.children_user + times.children_system
                    read[process] = times.user + times.system, waited_for
        return read

    def stop(self) -> None:
        """Send SIGSTOP to all, also to those that are started while this lists them."""
        while started := [one for one in self._list() if one not in self._stopped]:
            for process in started:
                with suppress(psutil.NoSuchProcess):
                    process.send_signal(signal.SIGSTOP)
            self._stopped += started

    def resume(self) -> None:
        """Send SIGCONT to all that `stop` has stopped."""
        while self._stopped:
            with suppress(psutil.NoSuchProcess):
                self._stopped.pop().send_signal(signal.SIGCONT)

    def _list(self) -> list[psutil.Process]:
        with suppress(psutil.NoSuchProcess):
            return [self._root, *self._root.children(recursive=True)]
        return []


def count_cpu_s(before: CpuTimes, after: CpuTimes) -> float:
    """Count the CPU seconds between two readings.

    A child that was waited for brings the time of its whole life. Lost is the time since the first
    reading of a process that has ended, where its parent has not waited for it: Spark's daemon
    waits for none of its workers. A process whose parent ended leaves the tree and is lost too.
    """
    nothing = 0.0, 0.0
    own = sum(after[one][0] - before.get(one, nothing)[0] for one in after)
    waited_for = sum(after[one][1] - before.get(one, nothing)[1] for one in after)
    counted_before = sum(sum(before[one]) for one in before.keys() - after.keys())
    return own + max(0.0, waited_for - counted_before)


@dataclass(slots=True)
class Spent:
    """Wall time, and user and system time of all processes, once `measure` has ended."""

    seconds: float = 0.0
    cpu_s: float = 0.0

    def on(self, items: int) -> Turn:
        return Turn(items, self.seconds, self.cpu_s)


@contextmanager
def measure(leave_out: LeaveOut | None = None) -> Iterator[Spent]:
    """Measure what this process and all below it spend."""
    tree, spent = ProcessTree(), Spent()
    before = tree.read_times(leave_out)
    started = read_active_s()
    yield spent
    spent.seconds = read_active_s() - started
    spent.cpu_s = count_cpu_s(before, tree.read_times(leave_out))
