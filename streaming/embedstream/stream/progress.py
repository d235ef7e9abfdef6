"""Progress of a stream: what Spark and the workers tell of a micro-batch becomes a report."""

from __future__ import annotations

import json
import logging
import uuid
from collections.abc import Callable, Mapping, Sequence
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
from embedstream.stream.reports import MicroBatchReport, Totals
from embedstream.worker.counts import select_failures
from embedstream.worker.tally import Tally
from embedstream_core.errors import Code

__all__ = ["ProgressListener", "find_margin"]

_log = logging.getLogger(__name__)

_Offsets = Mapping[tuple[str, int], int]

Value = TypeVar("Value")


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
