"""What a stream reports: one line a micro-batch, and the totals."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from pyspark.sql.streaming.listener import (
    QueryIdleEvent,
    QueryProgressEvent,
    QueryStartedEvent,
    QueryTerminatedEvent,
    StreamingQueryListener,
)

__all__ = ["BatchReport", "ProgressListener", "Totals"]


@dataclass(frozen=True, slots=True)
class BatchReport:
    """One micro-batch that was committed; `lag` is of the partition that is furthest behind."""

    batch_id: int
    messages: int
    tombstones: int
    embeddings: int
    failures: Counter[str]
    duration_s: float
    lag: int | None

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


class ProgressListener(StreamingQueryListener):
    """Hands each committed micro-batch that held messages to `on_batch`, on Spark's thread."""

    def __init__(self, on_batch: Callable[[BatchReport], None]) -> None:
        self._on_batch = on_batch
        self.totals = Totals()
        self.last_batch_id = -1
        self.ended = False

    def onQueryStarted(self, event: QueryStartedEvent) -> None:  # noqa: N802
        pass

    def onQueryIdle(self, event: QueryIdleEvent) -> None:  # noqa: N802
        pass

    def onQueryProgress(self, event: QueryProgressEvent) -> None:  # noqa: N802
        observed = event.progress.observedMetrics
        if event.progress.numInputRows == 0 or "outcomes" not in observed:
            return
        report = _report(event.progress, observed)
        self.last_batch_id = report.batch_id
        self.totals.add(report)
        self._on_batch(report)

    def onQueryTerminated(self, event: QueryTerminatedEvent) -> None:  # noqa: N802
        self.ended = True


def _report(progress: Any, observed: Any) -> BatchReport:
    outcomes = observed["outcomes"].asDict()
    messages = observed["messages"].asDict()
    embeddings = outcomes.pop("embeddings")
    return BatchReport(
        batch_id=progress.batchId,
        messages=messages["read"],
        tombstones=messages["tombstones"],
        embeddings=embeddings,
        failures=Counter({code: count for code, count in outcomes.items() if count}),
        duration_s=progress.durationMs["triggerExecution"] / 1000,
        lag=_lag(progress),
    )


def _lag(progress: Any) -> int | None:
    """The messages still to be read in the partition that is furthest behind."""
    metrics = progress.sources[0].metrics if progress.sources else {}
    behind = metrics.get("maxOffsetsBehindLatest")
    return None if behind is None else int(behind)
