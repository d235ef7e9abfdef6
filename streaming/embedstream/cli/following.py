"""What follows the table, run from a terminal or as a stream's child process."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable
from typing import Any, Protocol

from embedstream.cli import console
from embedstream.cli.log import show_log
from embedstream.cli.signals import catch_stop_signals
from embedstream.config.monitoring import LogConfig
from embedstream.follow.reports import FollowReport, Trouble

__all__ = ["JsonPrinter", "ReportPrinter", "TextPrinter", "run_follower"]

_log = logging.getLogger(__name__)

_LINE_S = 1.0
# By this the child gives way to the stream: where both want the processor, it gets a tenth.
_NICENESS = 10


class ReportPrinter(Protocol):
    """Prints the reports of a follower."""

    def take(self, report: Any) -> None:
        """Print a report."""

    def end(self) -> None:
        """Print what is to be said at the end."""


def run_follower(
    run: Callable[[Callable[[Any], None], threading.Event], object],
    printer: ReportPrinter,
    *,
    log: LogConfig,
    of_stream: bool,
) -> None:
    """Call `run` with what prints its reports, and an event that SIGINT or SIGTERM sets.

    With `of_stream` the process ends when the stream's driver has closed its standard input, which
    it also does by being killed.
    """
    if of_stream:
        os.nice(_NICENESS)
        threading.Thread(target=_end_with_driver, daemon=True).start()
        # The driver reads the child's records, and gives them its own format.
        log = log.model_copy(update={"format": "json"})
    with show_log(log), catch_stop_signals() as stop:
        run(printer.take, stop)
        printer.end()


def _end_with_driver() -> None:
    # Not sys.stdin: its lock would be held while the interpreter ends.
    while os.read(0, 1024):
        pass
    # A write that is cut off here is undone or repeated by the next writer, as after a crash.
    os._exit(0)


class JsonPrinter:
    """Prints reports as JSON, for the stream's driver."""

    def take(self, report: FollowReport) -> None:
        """Print a report."""
        console.print_line(report.model_dump_json())

    def end(self) -> None:
        """Print nothing: the driver says how it ended."""


class TextPrinter:
    """Prints reports; of steps and of repeated trouble at most one line per second.

    Reports of steps have a method `followed_by`, which returns two of them as one.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._printed = float("-inf")
        self._waiting: Any = None
        self._trouble = ""
        self.total: Any = None
        """The reports of all steps as one; None before the first."""

    def take(self, report: Any) -> None:
        """Print a report, or keep it for a second."""
        with self._lock:
            if hasattr(report, "followed_by"):
                self.total = report if self.total is None else self.total.followed_by(report)
                waiting = self._waiting
                self._waiting = report if waiting is None else waiting.followed_by(report)
                wait_s = self._printed + _LINE_S - time.monotonic()
                if wait_s <= 0:
                    self._flush()
                elif waiting is None:
                    timer = threading.Timer(wait_s, self._flush_later)
                    timer.daemon = True
                    timer.start()
                return
            self._flush()
            self.note(report)
            if isinstance(report, Trouble):
                if report.reason != self._trouble:
                    _log.warning("%s", report.to_text())
                self._trouble = report.reason
            elif report.is_progress or not self._trouble:
                console.print_text(report.to_text())
                self._trouble = ""

    def note(self, report: Any) -> None:
        """Take what the summary needs from a report that is not one of a step."""

    def summarize(self) -> str:
        """Return the last line."""
        raise NotImplementedError

    def end(self) -> None:
        """Print the summary."""
        with self._lock:
            self._flush()
            console.print_text(self.summarize())

    def _flush_later(self) -> None:
        with self._lock:
            self._flush()

    def _flush(self) -> None:
        if self._waiting is not None:
            console.print_text(self._waiting.to_text())
            self._waiting, self._trouble = None, ""
            self._printed = time.monotonic()
