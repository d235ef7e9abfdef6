"""A table's outcomes, published from a terminal or by a stream's child process."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, Literal

from embedstream.cli.following import JsonPrinter, TextPrinter, run_follower
from embedstream.config.sections import StreamConfig
from embedstream.publish.reports import FullPassEnded, PublishReport, Sent, Skipped
from embedstream.publish.runs import publish_continuously, publish_once
from embedstream.table.lookup import find_table

__all__ = ["run_publish"]


def run_publish(
    config: StreamConfig,
    *,
    until: Literal["current", "stopped"],
    again: bool = False,
    of_stream: bool = False,
) -> None:
    """Publish up to the table's version, or follow the table until SIGINT or SIGTERM.

    With `of_stream` the reports are printed as JSON for the stream's driver, and the process ends
    with the driver.

    Raises:
        SetupError: the table or the topic cannot be used, and `until` is `current`.
        PublishFailed: Kafka did not take the outcomes, and `until` is `current`.
    """
    run = publish_once if until == "current" else publish_continuously

    def follow(report: Callable[[PublishReport], None], stop: threading.Event) -> None:
        table = find_table(config).table.path
        run(table, config.kafka, config.publish, report=report, stop=stop, again=again)

    run_follower(
        follow,
        JsonPrinter() if of_stream else _PublishPrinter(),
        log=config.log,
        of_stream=of_stream,
    )


class _PublishPrinter(TextPrinter):
    def __init__(self) -> None:
        super().__init__()
        self._passed = -1
        self._messages = self._skipped = 0

    def note(self, report: Any) -> None:
        if isinstance(report, FullPassEnded):
            self._messages += report.messages
            self._passed = report.version
        elif isinstance(report, Skipped):
            self._skipped += report.messages

    def summarize(self) -> str:
        total = self.total or Sent(version=-1, messages=0, removed=0, behind=0)
        version = max(self._passed, total.version)
        if version < 0:
            return "nothing was to be published"
        skipped = f", {self._skipped:,} left out as too large" if self._skipped else ""
        return (
            f"published up to version {version}, {total.behind} behind the table: "
            f"{self._messages + total.messages:,} messages, {total.removed:,} removed{skipped}"
        )
