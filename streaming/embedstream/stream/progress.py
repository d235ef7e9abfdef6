"""What a stream reports: one line a micro-batch, and the totals."""

from __future__ import annotations

import json
import math
import time
import uuid
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
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
from embedstream.worker.counts import Kinds
from embedstream_core.errors import SetupError

__all__ = ["BatchReport", "Margin", "ProgressListener", "Totals"]

_ASKED_EVERY_S = 30.0

_Offsets = dict[tuple[str, int], int]


@dataclass(frozen=True, slots=True)
class BatchReport:
    """One micro-batch that was committed.

    Tombstones are counted only on tables without generated, identity or default columns.
    `lag` is of the partition that is furthest behind, `margin` of the one where the oldest message
    that Kafka keeps is nearest to the reader: so many will retention delete before unread ones.
    """

    batch_id: int
    messages: int
    tombstones: int
    embeddings: int
    failures: Counter[str]
    duration_s: float
    lag: int | None
    margin: int | None = None

    @property
    def rows(self) -> int:
        return self.embeddings + self.failures.total()


@dataclass(slots=True)
class Totals:
    """The sums over all micro-batches since the start. `busy_s` leaves idle time out."""

    batches: int = 0
    tombstones: int = 0
    embeddings: int = 0
    failures: Counter[str] = field(default_factory=Counter)
    busy_s: float = 0.0

    @property
    def rows(self) -> int:
        return self.embeddings + self.failures.total()

    @property
    def rows_per_s(self) -> float:
        return self.rows / self.busy_s if self.busy_s else 0.0

    def add(self, report: BatchReport) -> None:
        self.batches += 1
        self.tombstones += report.tombstones
        self.embeddings += report.embeddings
        self.failures += report.failures
        self.busy_s += report.duration_s


@dataclass(slots=True)
class Margin:
    """How far the reader is after Kafka's oldest messages; it is asked every half minute."""

    ask: Callable[[], Mapping[str, TopicState]]
    clock: Callable[[], float] = time.monotonic
    _asked_at: float = field(default=-math.inf, init=False)
    _oldest: _Offsets = field(default_factory=dict, init=False)

    def of(self, source: Any) -> int | None:
        """Of the partitions with unread messages, the least; None where Kafka does not answer."""
        read, newest = _offsets(source.endOffset), _offsets(source.latestOffset)
        unread = {at: offset for at, offset in read.items() if offset < newest.get(at, 0)}
        if self.clock() - self._asked_at >= _ASKED_EVERY_S:
            self._ask()
        margins = [unread[at] - self._oldest[at] for at in unread.keys() & self._oldest.keys()]
        return min(margins, default=None)

    def _ask(self) -> None:
        self._asked_at = self.clock()
        # An outage is for the query to report.
        with suppress(SetupError):
            self._oldest = {
                (topic, number): offset
                for topic, state in self.ask().items()
                for number, offset in state.earliest.items()
            }


def _offsets(told: str) -> _Offsets:
    return {
        (topic, int(number)): offset
        for topic, partitions in json.loads(told).items()
        for number, offset in partitions.items()
    }


class ProgressListener(StreamingQueryListener):
    """Hands each committed micro-batch that held messages to `on_batch`, on Spark's thread.

    `take_counts` gives the outcomes of a micro-batch, by the query's run id and the batch's id.
    """

    def __init__(
        self,
        on_batch: Callable[[BatchReport], None],
        take_counts: Callable[[str, int], Kinds],
        margin: Margin | None = None,
    ) -> None:
        self._on_batch = on_batch
        self._take_counts = take_counts
        self._margin = margin
        self.totals = Totals()
        self.last_batch_id = -1
        self.ended = False
        self._running: set[uuid.UUID] = set()

    def onQueryStarted(self, event: QueryStartedEvent) -> None:  # noqa: N802
        self._running.add(event.runId)
        self.ended = False

    def onQueryIdle(self, event: QueryIdleEvent) -> None:  # noqa: N802
        pass

    def onQueryProgress(self, event: QueryProgressEvent) -> None:  # noqa: N802
        progress = event.progress
        report = _report(
            progress, self._take_counts(str(progress.runId), progress.batchId), self._margin
        )
        if report.messages == 0:
            return
        self.last_batch_id = report.batch_id
        self.totals.add(report)
        self._on_batch(report)

    def onQueryTerminated(self, event: QueryTerminatedEvent) -> None:  # noqa: N802
        # Spark tells of the end of a query later than of the start of the next.
        self._running.discard(event.runId)
        self.ended = not self._running


def _report(progress: Any, counts: Kinds, margin: Margin | None) -> BatchReport:
    # Some tables hide what is observed: see OutcomeCounts.
    messages = progress.observedMetrics.get("messages") if progress.numInputRows else None
    tombstones = messages.tombstones if messages else 0
    failures = Counter({code: count for code, count in counts.items() if code is not None})
    lag = _lag(progress)
    return BatchReport(
        batch_id=progress.batchId,
        messages=counts.total() + tombstones,
        tombstones=tombstones,
        embeddings=counts[None],
        failures=failures,
        duration_s=progress.durationMs["triggerExecution"] / 1000,
        lag=lag,
        margin=margin.of(progress.sources[0]) if margin and lag else None,
    )


def _lag(progress: Any) -> int | None:
    """The messages still to be read in the partition that is furthest behind."""
    metrics = progress.sources[0].metrics if progress.sources else {}
    behind = metrics.get("maxOffsetsBehindLatest")
    return None if behind is None else int(behind)
