"""The index, brought in step with its table from a terminal or as a stream's child process."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, Literal

from embedstream.cli.following import JsonPrinter, TextPrinter, run_follower
from embedstream.config.sections import BulkFilesConfig, StreamConfig
from embedstream.index.indexer import follow_table, update_index
from embedstream.index.reports import Applied, FullPassEnded, Report
from embedstream.table.lookup import find_table

__all__ = ["run_index"]


def run_index(
    config: StreamConfig | BulkFilesConfig,
    *,
    until: Literal["current", "stopped"],
    rebuild: bool = False,
    of_stream: bool = False,
) -> None:
    """Bring the index to the table's version, or follow the table until SIGINT or SIGTERM.

    With `of_stream` the reports are printed as JSON for the stream's driver, and the process ends
    with the driver.

    Raises:
        SetupError: the table or the index cannot be used, and `until` is `current`.
        IndexFailed: an error of a library ended the pass.
    """
    run = update_index if until == "current" else follow_table

    def follow(report: Callable[[Report], None], stop: threading.Event) -> None:
        found = find_table(config)
        run(found.table.path, found.index, report=report, stop=stop, rebuild=rebuild)

    run_follower(
        follow,
        JsonPrinter() if of_stream else _IndexPrinter(),
        log=config.log,
        of_stream=of_stream,
    )


class _IndexPrinter(TextPrinter):
    def __init__(self) -> None:
        super().__init__()
        self._rows = 0
        self._passed = -1

    def note(self, report: Any) -> None:
        if isinstance(report, FullPassEnded):
            self._rows += report.rows
            self._passed = report.version

    def summarize(self) -> str:
        counts = dict.fromkeys(("commits", "added", "replaced", "deleted", "tombstones"), 0)
        total = self.total or Applied(version=-1, behind=0, **counts)
        version = max(self._passed, total.version)
        if version < 0:
            return "nothing was to be done"
        passed = f"{self._rows:,} rows by a full pass, " if self._rows else ""
        return (
            f"the index holds version {version}, {total.behind} behind the table: "
            f"{passed}{total.added:,} rows added, {total.replaced:,} replaced, "
            f"{total.deleted:,} deleted"
        )
