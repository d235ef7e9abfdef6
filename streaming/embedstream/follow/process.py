"""What follows the table, as a child process of the stream's driver.

A process of its own, because one that crashes, runs out of memory or takes a processor must not
touch the stream. Its lines are reports in JSON; anything else it prints is passed on.
"""

from __future__ import annotations

import logging
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal

from pydantic import ValidationError

from embedstream.follow.reports import FollowReport, Trouble
from embedstream.follow.table_reader import open_table
from embedstream.logs.events import Event, log_event
from embedstream.logs.remote import handle_line
from embedstream_core.errors import SetupError

__all__ = ["Follower", "FollowerProcess", "Kind"]

_LOG = logging.getLogger(__name__)

_FIRST_RETRY_S = 1.0
_LAST_RETRY_S = 60.0
_LAG_S = 30.0
_KILL_S = 5.0
# Being killed costs it nothing but the repetition of a write; the driver's end costs more.
_END_S = 10.0


Kind = Literal["progress", "skipped", "trouble", "recovered", "behind", "output"]
"""What an event of a follower is about."""


@dataclass(frozen=True, slots=True)
class Follower:
    """What a process does, and how the driver's log speaks of it.

    Attributes:
        name: The command, and the beginning of its lines and events.
        holds: What the process does with a version of the table, such as `holds`.
        read_report: Returns the report that a line of the process is; raises ValidationError for
            any other line.
    """

    name: str
    holds: str
    read_report: Callable[[str], FollowReport]

    def get_event(self, kind: Kind) -> Event:
        """Return the follower's own event."""
        return Event(f"{self.name}_{kind}")


class FollowerProcess:
    """Keeps a follower of the table running while the context lasts.

    `command` is its command with `--of-stream`, without `--continuous`. What it does is in the log,
    and so is what the process logs.
    """

    def __init__(
        self, follower: Follower, command: Sequence[str], *, table: str, stop_s: float
    ) -> None:
        self._follower = follower
        self._command = list(command)
        self._table = table
        self._stop_s = stop_s
        self._stopping = threading.Event()
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None
        self._retry_s = _FIRST_RETRY_S
        self.address = ""
        """Where it writes, without secrets; empty before the process has opened that."""
        self._version = -1
        self._trouble = ""
        self._passing = 0.0
        self._threads = [
            threading.Thread(target=run, daemon=True) for run in (self._supervise, self._watch_lag)
        ]

    @property
    def version(self) -> int | None:
        """The version of the table that it has reached; None before its first pass has ended."""
        return self._version if self._version >= 0 else None

    @property
    def trouble(self) -> str:
        """Why it cannot follow the table now; empty while it can."""
        return self._trouble

    def __enter__(self) -> FollowerProcess:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """End the process after its write in flight, or kill it when it takes too long."""
        self._stopping.set()
        with self._lock:
            process = self._process
            if process is not None:
                process.terminate()
        if process is not None:
            _await(process, min(_END_S, self._stop_s))
        for thread in self._threads:
            thread.join(_KILL_S)

    def finish(self) -> None:
        """Stop following, and bring it to the version that the table has now.

        It takes no longer than `stop_s`; the next start goes on.
        """
        self.stop()
        with self._start([]) as process:
            is_late = threading.Event()

            def end() -> None:
                is_late.set()
                process.terminate()

            timer = threading.Timer(self._stop_s, end)
            timer.start()
            self._read_lines(process)
            timer.cancel()
            code = _await(process, _KILL_S)
        if code == 0 and not is_late.is_set():
            said = f"it {self._follower.holds} version {self._version}, the table's last"
            self._report("progress", said)
        else:
            self._report(
                "trouble",
                f"it was not brought to the table's last version; `embedstream "
                f"{self._follower.name}` or the next start does that",
            )

    def _supervise(self) -> None:
        while not self._stopping.is_set():
            try:
                end = self._run()
            except OSError as error:
                end = f"cannot be started: {error}"
            if self._stopping.is_set():
                return
            self._complain(f"its process {end}")
            self._stopping.wait(self._retry_s)
            self._retry_s = min(2 * self._retry_s, _LAST_RETRY_S)

    def _run(self) -> str:
        """Run the process to its end; return how that was."""
        with self._lock:
            if self._stopping.is_set():
                return ""
            self._process = process = self._start(["--continuous"])
        with process:
            self._read_lines(process)
            return _describe_end(process.wait())

    def _start(self, arguments: Sequence[str]) -> subprocess.Popen[str]:
        return subprocess.Popen(  # noqa: S603
            [*self._command, *arguments],
            # The pipe's other end is closed when this process ends, even by kill -9.
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="backslashreplace",
            # Ctrl-C is the driver's.
            process_group=0,
        )

    def _read_lines(self, process: subprocess.Popen[str]) -> None:
        """Take over the lines of a process until it ends."""
        if process.stdout is not None:
            for line in process.stdout:
                self._take(line.rstrip())

    def _take(self, line: str) -> None:
        name = self._follower.name
        try:
            report = self._follower.read_report(line)
        except ValidationError:
            if line and not handle_line(line, process=name):
                log_event(_LOG, self._follower.get_event("output"), f"{name}: {line}")
            return
        if isinstance(report, Trouble):
            self._complain(report.reason)
            return
        if not report.is_progress:
            self.address = str(getattr(report, "address", ""))
            self._version = -1 if report.held is None else report.held
            return
        if report.held is not None:
            self._version = report.held
        if report.logged == "sometimes":
            if time.monotonic() - self._passing < _LAG_S:
                return
            self._passing = time.monotonic()
        self._retry_s = _FIRST_RETRY_S
        if self._trouble:
            self._report("recovered", "it follows the table again")
            self._trouble = ""
        if report.logged != "never":
            told = report.model_dump(mode="json")
            self._report(report.event, report.to_text(), report=told)

    def _report(self, kind: Kind, text: str, **fields: Any) -> None:
        level = logging.WARNING if kind in ("trouble", "skipped") else logging.INFO
        name, event = self._follower.name, self._follower.get_event(kind)
        log_event(_LOG, event, f"{name}: {text}", level=level, version=self._version, **fields)

    def _complain(self, reason: str) -> None:
        """Say what is wrong, once."""
        if reason != self._trouble:
            self._trouble = reason
            self._report("trouble", f"{reason}; it is tried again, and the stream goes on")

    def _watch_lag(self) -> None:
        """Say how far it is behind the table, when that lasts."""
        newest = -1
        while not self._stopping.wait(_LAG_S):
            earlier = newest
            try:
                newest = open_table(self._table).version()
            except SetupError:
                _LOG.info("the table's version is not known", exc_info=True)
                continue
            if self._version < earlier:
                behind = f"{newest - self._version} versions behind the table"
                none = f"it {self._follower.holds} no version of the table yet"
                said = behind if self._version >= 0 else none
                self._report("behind", said, table_version=newest)


def _await(process: subprocess.Popen[str], timeout_s: float) -> int:
    """Return the exit code of a process, which is killed if it does not end in time."""
    try:
        return process.wait(timeout_s)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()


def _describe_end(code: int) -> str:
    return f"ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
