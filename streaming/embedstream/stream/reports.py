"""The report of a micro-batch, and the sums over all; imports no Spark."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from embedstream.worker.counts import CommitReport, RowKind
from embedstream_core.pipeline.work_record import WorkStage

if TYPE_CHECKING:
    from embedstream.worker.tally import FailedMessage

__all__ = ["MicroBatchReport", "Totals"]


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
