"""Progress of a stream: a report for each micro-batch, and the totals."""

from __future__ import annotations

import json
import logging
import uuid
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from pyspark.sql.streaming.listener import (
    QueryIdleEvent,
    QueryProgressEvent,
    QueryStartedEvent,
    QueryTerminatedEvent,
    StreamingQueryListener,
)

from embedstream.kafka.topics import TopicState
from embedstream.stream.pause import find_end
from embedstream.worker.counts import CommitReport, RowKind, select_failures
from embedstream.worker.tally import FailedMessage, Tally
from embedstream_core.errors import Code
from embedstream_core.pipeline.work_record import WorkStage

__all__ = ["MicroBatchReport", "ProgressListener", "Totals", "find_margin"]

_log = logging.getLogger(__name__)

_Offsets = Mapping[tuple[str, int], int]

Value = TypeVar("Value")


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
    appended, in seconds since 1970 and rounded, and `cache_hits` the embeddings that came from a
    cache.
    `read` is the offset of the next message to be read of each partition, by topic and number.
    `newest_failures` has the newest message of each error code, deletions left out.
    """

    batch_id: int
    messages: int
    tombstones: int
    lag: int | None
    margin: int | None = None
    committed_at: float = 0.0
    rows_by_kind: Mapping[RowKind, int] = field(default_factory=dict)
    stage_seconds: Mapping[WorkStage, float] = field(default_factory=dict)
    appended: Mapping[float, int] = field(default_factory=dict)
    cache_hits: int = 0
    read: Mapping[tuple[str, int], int] = field(default_factory=dict)
    newest_failures: Mapping[str, FailedMessage] = field(default_factory=dict)


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


class ProgressListener(StreamingQueryListener):
    """Pass each committed micro-batch that had messages to the observers, on Spark's thread.

    What an observer raises is logged once for each type of error, and changes nothing else.
    """

    def __init__(
        self,
        observers: Sequence[Callable[[MicroBatchReport], object]],
        take_tally: Callable[[str, int], Tally],
        *,
        get_topics: Callable[[], Mapping[str, TopicState] | None] = lambda: None,
        on_read: Callable[[Mapping[tuple[str, int], int]], object] = lambda read: None,
    ) -> None:
        """Register nothing.

        Args:
            observers: Called in this order.
            take_tally: Returns the tally of a micro-batch from the ids of the query's run and of
                the micro-batch.
            get_topics: Returns what Kafka holds, for the retention margin; None if not known.
            on_read: Called with the `read` of each micro-batch, also of one that had no messages,
                such as one that a restart repeats and Delta skips. Observed like the observers.
        """
        self._observers = observers
        self._take_tally = take_tally
        self._get_topics = get_topics
        self._on_read = on_read
        self.totals = Totals()
        self.ended = False
        self._running: set[uuid.UUID] = set()
        self._logged: set[tuple[object, type[Exception]]] = set()

    def onQueryStarted(self, event: QueryStartedEvent) -> None:  # noqa: N802
        """Note that a query runs."""
        self._running.add(event.runId)
        self.ended = False

    def onQueryIdle(self, event: QueryIdleEvent) -> None:  # noqa: N802
        """Do nothing."""

    def onQueryProgress(self, event: QueryProgressEvent) -> None:  # noqa: N802
        """Report a micro-batch, unless it had no messages."""
        progress: Any = event.progress
        tally = self._take_tally(str(progress.runId), progress.batchId)
        report = _build_report(progress, tally, self._get_topics())
        if report.read:
            self._notify(self._on_read, report.read)
        if not report.messages:
            return
        self.totals.add(report)
        for observer in self._observers:
            self._notify(observer, report)

    def onQueryTerminated(self, event: QueryTerminatedEvent) -> None:  # noqa: N802
        """Note that a query has ended."""
        # Spark reports the end of a query later than the start of the next.
        self._running.discard(event.runId)
        self.ended = not self._running

    def _notify(self, observer: Callable[[Value], object], value: Value) -> None:
        try:
            observer(value)
        except Exception as error:
            kind = observer, type(error)
            if kind not in self._logged:
                self._logged.add(kind)
                _log.exception("a micro-batch was not shown by %r; the stream goes on", observer)


def _build_report(
    progress: Any, tally: Tally, topics: Mapping[str, TopicState] | None
) -> MicroBatchReport:
    """Return the report of a micro-batch.

    Args:
        progress: What Spark reports of it.
        tally: What the workers report.
        topics: What Kafka holds; None if that is not known.
    """
    kinds = tally.kinds
    # Some tables hide what is observed: see Tallies.
    messages = progress.observedMetrics.get("messages") if progress.numInputRows else None
    tombstones = messages.tombstones if messages else 0
    source = progress.sources[0] if progress.sources else None
    behind = source.metrics.get("maxOffsetsBehindLatest") if source else None
    lag = None if behind is None else int(behind)
    read = _parse_offsets(source.endOffset) if source else {}
    newest = _parse_offsets(source.latestOffset) if source else {}
    return MicroBatchReport(
        batch_id=progress.batchId,
        messages=kinds.total() + tombstones,
        tombstones=tombstones,
        embeddings=kinds[None],
        failures=select_failures(kinds),
        deleted=kinds[Code.DELETED],
        duration_s=progress.durationMs["triggerExecution"] / 1000,
        lag=lag,
        margin=find_margin(read, newest, topics) if lag else None,
        committed_at=find_end(progress),
        rows_by_kind=tally.rows,
        stage_seconds=tally.seconds,
        appended=tally.appended,
        cache_hits=tally.cache_hits,
        read=read,
        newest_failures=tally.newest_failures,
    )


def find_margin(
    read: _Offsets, newest: _Offsets, topics: Mapping[str, TopicState] | None
) -> int | None:
    """Return how far the reader is ahead of Kafka's oldest messages.

    It is the least of the partitions with unread messages; None without any, and while Kafka's
    oldest messages are not known.
    """
    if topics is None:
        return None
    margins = [
        offset - topics[topic].earliest[number]
        for (topic, number), offset in read.items()
        if offset < newest.get((topic, number), 0)
        and topic in topics
        and number in topics[topic].earliest
    ]
    return min(margins, default=None)


def _parse_offsets(text: str | None) -> _Offsets:
    """Return the offsets of an end of a micro-batch, from the JSON of Kafka's source."""
    return {
        (topic, int(number)): offset
        for topic, partitions in (json.loads(text or "{}") or {}).items()
        for number, offset in partitions.items()
    }
