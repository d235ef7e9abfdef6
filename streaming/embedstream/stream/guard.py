"""The guard that stops a stream before a broken producer fills its table with failures."""

from __future__ import annotations

from collections import Counter, deque

from embedstream.config.sections.monitoring import GuardsConfig
from embedstream.stream.reports import MicroBatchReport

__all__ = ["FailureGuard"]

_SHOWN_CODES = 3


class FailureGuard:
    """Watches the share of failures among the last rows; an observer of committed micro-batches.

    Micro-batches are taken whole: the last rows are those of the newest micro-batches that have
    `window_rows` together. With fewer rows there is no verdict. Deletions do not count.
    """

    def __init__(self, config: GuardsConfig, *, replay: str) -> None:
        """Begin with an empty window; `replay` is the command that embeds the failures again."""
        self.verdict: str | None = None
        """Why the stream has to stop, in a sentence; None while it may go on."""
        self._config = config
        self._replay = replay
        self._window: deque[MicroBatchReport] = deque()

    def add(self, report: MicroBatchReport) -> None:
        """Take a micro-batch."""
        limit = self._config.max_failure_ratio
        # Micro-batches of deletions alone would never leave the window.
        if limit is None or not _count_rows(report):
            return
        self._window.append(report)
        total = sum(map(_count_rows, self._window))
        while total - _count_rows(self._window[0]) >= self._config.window_rows:
            total -= _count_rows(self._window.popleft())
        failed = sum((one.failures for one in self._window), Counter[str]())
        if total < self._config.window_rows:
            return
        if failed.total() > limit * total and self.verdict is None:
            self.verdict = self._describe(failed, total)

    def _describe(self, failed: Counter[str], total: int) -> str:
        codes = [f"{count} {code}" for code, count in failed.most_common(_SHOWN_CODES)]
        if others := sum(count for _, count in failed.most_common()[_SHOWN_CODES:]):
            codes.append(f"{others} of other codes")
        newest = ""
        messages = [one for report in self._window for one in report.newest_failures.values()]
        if messages:
            _, topic, partition, offset, reason = max(messages)
            # The reason may be any text; repr leaves a terminal as it is.
            newest = f"; the newest is the message {topic}-{partition}-{offset}: {reason!r}"
        return (
            f"{failed.total()} of the last {total} rows failed, more than "
            f"guards.max_failure_ratio {self._config.max_failure_ratio:g} allows "
            f"({', '.join(codes)}){newest}; correct what sends the messages and start again, and "
            f"embed what failed with `{self._replay}` once it can be embedded, or raise "
            "guards.max_failure_ratio"
        )


def _count_rows(report: MicroBatchReport) -> int:
    return report.embeddings + report.failures.total()
