"""Progress of a stream: a report for each micro-batch, and the totals."""

from __future__ import annotations

import json
import logging
import math
import time
import uuid
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pyspark.sql.streaming.listener import (
    QueryIdleEvent,
    QueryProgressEvent,
    QueryStartedEvent,
    QueryTerminatedEvent,
    StreamingQueryListener,
)

from embedstream.kafka.topics import TopicState
from embedstream.worker.counts import CommitReport, Kinds, RowKind, select_failures
from embedstream_core.errors import Code, SetupError

__all__ = ["MicroBatchReport", "ProgressListener", "RetentionMargin", "Totals"]

_log = logging.getLogger(__name__)

_REFRESH_S = 30.0

_Offsets = dict[tuple[str, int], int]


@dataclass(frozen=True, slots=True, kw_only=True)
class MicroBatchReport(CommitReport):
    """A committed micro-batch.

    `tombstones` are the null values without a row; they are counted only on tables without
    generated, identity or default columns. `deleted` are those with a row.
    `lag` is the number of messages still to be read in the partition that is furthest behind.
    `margin` is the number of read messages that retention can delete before it reaches an unread
    one, in the partition where that is least.
    `committed_at` is in seconds since 1970. `rows_by_kind` has the rows, `stage_seconds` the
    seconds of all threads in each stage, `appended` the messages by the time at which they were
    appended, in seconds since 1970 and rounded, and `cache_hits` the embeddings that were not made
    anew.
    `read` is the offset of the next message to be read of each partition, by topic and number.
    """

    batch_id: int
    messages: int
    tombstones: int
    lag: int | None
    margin: int | None = None
    committed_at: float = 0.0
    rows_by_kind: Mapping[RowKind, int] = field(default_factory=dict)
    stage_seconds: Mapping[str, float] = field(default_factory=dict)
    appended: Mapping[float, int] = field(default_factory=dict)
    cache_hits: int = 0
    read: Mapping[tuple[str, int], int] = field(default_factory=dict)


@dataclass(slots=True)
class Totals:
    """The sums over all micro-batches since the start. `busy_s` excludes idle time."""

    batches: int = 0
    tombstones: int = 0
    embeddings: int = 0
    failures: Counter[str] = field(default_factory=Counter)
    deleted: int = 0
    busy_s: float = 0.0

    @property
    def rows(self) -> int:
        """The number of rows in the table."""
        return self.embeddings + self.failures.total() + self.deleted

    @property
    def rows_per_s(self) -> float:
        """The rows per busy second; 0 before the first micro-batch."""
        return self.rows / self.busy_s if self.busy_s else 0.0

    def add(self, report: MicroBatchReport) -> None:
        """Add a micro-batch."""
        self.batches += 1
        self.tombstones += report.tombstones
        self.embeddings += report.embeddings
        self.failures += report.failures
        self.deleted += report.deleted
        self.busy_s += report.duration_s


@dataclass(slots=True)
class RetentionMargin:
    """How far the reader is ahead of Kafka's oldest messages, which are read every half minute."""

    read_topics: Callable[[], Mapping[str, TopicState]]
    clock: Callable[[], float] = time.monotonic
    _read_at: float = field(default=-math.inf, init=False)
    _oldest: _Offsets = field(default_factory=dict, init=False)

    def measure(self, source: Any) -> int | None:
        """Return the least margin of the partitions with unread messages.

        None before Kafka has answered.
        """
        if self.clock() - self._read_at >= _REFRESH_S:
            self._read_at = self.clock()
            try:
                self._oldest = _flatten(
                    {name: one.earliest for name, one in self.read_topics().items()}
                )
            except SetupError as error:
                # The query reports an outage.
                _log.info("the retention margin is not updated: %s", error)
        newest = _flatten(json.loads(source.latestOffset))
        read = _flatten(json.loads(source.endOffset))
        margins = [
            offset - self._oldest[at]
            for at, offset in read.items()
            if offset < newest.get(at, 0) and at in self._oldest
        ]
        return min(margins, default=None)


def _flatten(offsets: Mapping[str, Mapping[Any, int]]) -> _Offsets:
    return {
        (topic, int(number)): offset
        for topic, partitions in offsets.items()
        for number, offset in partitions.items()
    }


class ProgressListener(StreamingQueryListener):
    """Pass each committed micro-batch that had messages to `on_batch`, on Spark's thread.

    `take_counts` returns the outcomes of a micro-batch from the ids of the query's run and of the
    micro-batch.
    """

    def __init__(
        self,
        on_batch: Callable[[MicroBatchReport], None],
        take_counts: Callable[[str, int], Kinds],
        margin: RetentionMargin | None = None,
    ) -> None:
        self._on_batch = on_batch
        self._take_counts = take_counts
        self._margin = margin
        self.totals = Totals()
        self.ended = False
        self._running: set[uuid.UUID] = set()

    def onQueryStarted(self, event: QueryStartedEvent) -> None:  # noqa: N802
        """Note that a query runs."""
        self._running.add(event.runId)
        self.ended = False

    def onQueryIdle(self, event: QueryIdleEvent) -> None:  # noqa: N802
        """Do nothing."""

    def onQueryProgress(self, event: QueryProgressEvent) -> None:  # noqa: N802
        """Report a micro-batch, unless it had no messages."""
        progress: Any = event.progress
        counts = self._take_counts(str(progress.runId), progress.batchId)
        # Some tables hide what is observed: see OutcomeCounts.
        messages = progress.observedMetrics.get("messages") if progress.numInputRows else None
        tombstones = messages.tombstones if messages else 0
        if counts.total() + tombstones == 0:
            return
        source = progress.sources[0] if progress.sources else None
        behind = source.metrics.get("maxOffsetsBehindLatest") if source else None
        lag = None if behind is None else int(behind)
        report = MicroBatchReport(
            batch_id=progress.batchId,
            messages=counts.total() + tombstones,
            tombstones=tombstones,
            embeddings=counts[None],
            failures=select_failures(counts),
            deleted=counts[Code.DELETED],
            duration_s=progress.durationMs["triggerExecution"] / 1000,
            lag=lag,
            margin=self._margin.measure(source) if self._margin and lag else None,
        )
        self.totals.add(report)
        self._on_batch(report)

    def onQueryTerminated(self, event: QueryTerminatedEvent) -> None:  # noqa: N802
        """Note that a query has ended."""
        # Spark reports the end of a query later than the start of the next.
        self._running.discard(event.runId)
        self.ended = not self._running
