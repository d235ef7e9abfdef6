"""The index, brought in step with its table from a terminal or as a stream's child process."""

from __future__ import annotations

import logging
import os
import threading
import time
from typing import Literal

from embedstream.cli import console
from embedstream.cli.log import show_log
from embedstream.cli.signals import catch_stop_signals
from embedstream.config.sections import BulkFilesConfig, StreamConfig
from embedstream.index.indexer import follow_table, update_index
from embedstream.index.reports import (
    Applied,
    FullPassEnded,
    Report,
    Started,
    Trouble,
)
from embedstream.table.lookup import find_table

__all__ = ["run_index"]

_log = logging.getLogger(__name__)

_LINE_S = 1.0
# By this the child gives way to the stream: where both want the processor, it gets a tenth.
_NICENESS = 10


def run_index(
    config: StreamConfig | BulkFilesConfig,
    *,
    until: Literal["current", "stopped"],
    rebuild: bool = False,
    of_stream: bool = False,
) -> None:
    """Bring the index to the table's version, or follow the table until SIGINT or SIGTERM.

    With `of_stream` the reports are printed as JSON for the stream's driver, and the process ends
    when the driver has closed its standard input, which it also does by being killed.

    Raises:
        SetupError: the table or the index cannot be used, and `until` is `current`.
        IndexFailed: an error of a library ended the pass.
    """
    if of_stream:
        os.nice(_NICENESS)
        threading.Thread(target=_end_with_driver, daemon=True).start()
    printer = _JsonPrinter() if of_stream else _TextPrinter()
    run = update_index if until == "current" else follow_table
    # The driver reads the child's records, and gives them its own format.
    log = config.log.model_copy(update={"format": "json"}) if of_stream else config.log
    with show_log(log), catch_stop_signals() as stop:
        config = find_table(config)
        run(config.table.path, config.index, report=printer.take, stop=stop, rebuild=rebuild)
        printer.end()


def _end_with_driver() -> None:
    # Not sys.stdin: its lock would be held while the interpreter ends.
    while os.read(0, 1024):
        pass
    # A write that is cut off here is undone by the next writer, as after a crash.
    os._exit(0)


class _JsonPrinter:
    def take(self, report: Report) -> None:
        console.print_line(report.model_dump_json())

    def end(self) -> None:
        pass


class _TextPrinter:
    """Prints reports; of applied commits and of repeated trouble at most one line per second."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._printed = float("-inf")
        self._applied: Applied | None = None
        self._trouble = ""
        self._rows = 0
        self._total = Applied(
            version=-1, commits=0, added=0, replaced=0, deleted=0, tombstones=0, behind=0
        )

    def take(self, report: Report) -> None:
        """Print a report, or keep it for a second."""
        with self._lock:
            if isinstance(report, Applied):
                self._total = self._total.followed_by(report)
                waiting = self._applied
                self._applied = report if waiting is None else waiting.followed_by(report)
                wait_s = self._printed + _LINE_S - time.monotonic()
                if wait_s <= 0:
                    self._flush()
                elif waiting is None:
                    timer = threading.Timer(wait_s, self._flush_later)
                    timer.daemon = True
                    timer.start()
                return
            self._flush()
            if isinstance(report, FullPassEnded):
                self._rows += report.rows
                self._total = self._total.model_copy(update={"version": report.version})
            if isinstance(report, Trouble):
                if report.reason != self._trouble:
                    _log.warning("%s", report.to_text())
                self._trouble = report.reason
                return
            if not (isinstance(report, Started) and self._trouble):
                console.print_text(report.to_text())
                self._trouble = ""

    def end(self) -> None:
        """Print the summary."""
        with self._lock:
            self._flush()
            total = self._total
            if total.version < 0:
                console.print_text("nothing was to be done")
                return
            passed = f"{self._rows:,} rows by a full pass, " if self._rows else ""
            console.print_text(
                f"the index holds version {total.version}, {total.behind} behind the table: "
                f"{passed}{total.added:,} rows added, {total.replaced:,} replaced, "
                f"{total.deleted:,} deleted"
            )

    def _flush_later(self) -> None:
        with self._lock:
            self._flush()

    def _flush(self) -> None:
        if self._applied is not None:
            console.print_text(self._applied.to_text())
            self._applied, self._trouble = None, ""
            self._printed = time.monotonic()
