"""What a stream has counted since its start, with a bounded number of label values."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from embedstream.monitor.metrics import (
    APPEND_TO_COMMIT,
    CACHE_HITS,
    MICRO_BATCH_DURATION,
    MICRO_BATCHES,
    NULL_VALUES,
    OTHER,
    ROWS,
    STAGE_SECONDS,
    Metric,
)
from embedstream.monitor.status import STAGES
from embedstream.stream.reports import MicroBatchReport, Totals
from embedstream.worker.counts import RowKind
from embedstream_core.errors import Code
from embedstream_core.pipeline.work_record import WorkStage

__all__ = ["MAX_PARTITIONS", "Histogram", "LabelLimit", "Samples", "StreamCounts"]

_MAX_TOPICS = 50
_MAX_MODELS = 20
MAX_PARTITIONS = 500
"""The most partitions with series of their own."""


@dataclass(slots=True)
class Histogram:
    """Observations by the upper bounds of buckets, the last of which has no bound."""

    bounds: Sequence[float]
    sum: float = 0.0
    _counts: list[int] = field(init=False)

    def __post_init__(self) -> None:
        self._counts = [0] * (len(self.bounds) + 1)

    def add(self, value: float, count: int = 1) -> None:
        """Add a value, as often as `count` says."""
        self._counts[bisect_left(self.bounds, value)] += count
        self.sum += count * value

    def copy(self) -> Histogram:
        """Return a histogram that does not change with this one."""
        copy = Histogram(self.bounds, self.sum)
        copy._counts = list(self._counts)
        return copy

    @property
    def buckets(self) -> list[tuple[str, float]]:
        """The bounds as texts, each with the number of observations up to it."""
        names = [*map(str, map(float, self.bounds)), "+Inf"]
        total, found = 0, []
        for name, count in zip(names, self._counts, strict=True):
            total += count
            found.append((name, float(total)))
        return found


Samples = Mapping[Metric, Mapping[tuple[str, ...], "float | Histogram"]]
"""Values of metrics, by the values of their labels."""


@dataclass(slots=True)
class LabelLimit:
    """Lets the first values of a label through, and replaces all further ones by `other`."""

    limit: int
    _known: set[str] = field(default_factory=set)

    def admit(self, value: str) -> str:
        """Return the value to be shown."""
        if value in self._known:
            return value
        if len(self._known) >= self.limit:
            return OTHER
        self._known.add(value)
        return value


@dataclass(slots=True)
class StreamCounts:
    """The sums over all micro-batches since the start. Takes no lock."""

    totals: Totals = field(default_factory=Totals)
    cache_hits: int = 0
    _rows: Counter[tuple[str, ...]] = field(default_factory=Counter)
    _stages: dict[WorkStage, float] = field(default_factory=lambda: dict.fromkeys(STAGES, 0.0))
    _durations: Histogram = field(default_factory=lambda: Histogram(MICRO_BATCH_DURATION.buckets))
    _latencies: Histogram = field(default_factory=lambda: Histogram(APPEND_TO_COMMIT.buckets))
    _topics: LabelLimit = field(default_factory=lambda: LabelLimit(_MAX_TOPICS))
    _models: LabelLimit = field(default_factory=lambda: LabelLimit(_MAX_MODELS))

    def add(self, report: MicroBatchReport, latencies: Mapping[float, int]) -> None:
        """Add a micro-batch, and how many of its messages took how many seconds to their commit."""
        self.totals.add(report)
        self.cache_hits += report.cache_hits
        for kind, rows in report.rows_by_kind.items():
            self._rows[self._label(kind)] += rows
        for stage, seconds in report.stage_seconds.items():
            self._stages[stage] += seconds
        self._durations.add(report.duration_s)
        for seconds, count in latencies.items():
            self._latencies.add(seconds, count)

    def build_samples(self) -> Samples:
        """Return the values of the counters and histograms."""
        return {
            ROWS: {labels: float(rows) for labels, rows in self._rows.items()},
            NULL_VALUES: {(): float(self.totals.tombstones)},
            MICRO_BATCHES: {(): float(self.totals.batches)},
            MICRO_BATCH_DURATION: {(): self._durations.copy()},
            APPEND_TO_COMMIT: {(): self._latencies.copy()},
            STAGE_SECONDS: {(stage,): seconds for stage, seconds in self._stages.items()},
            CACHE_HITS: {(): float(self.cache_hits)},
        }

    def _label(self, kind: RowKind) -> tuple[str, ...]:
        match kind.code:
            case None:
                outcome = "embedding"
            case Code.DELETED:
                outcome = "deletion"
            case _:
                outcome = "failure"
        code, model_id = kind.code or "", kind.model_id or ""
        model = self._models.admit(model_id) if model_id else ""
        return (self._topics.admit(kind.topic), outcome, code, model)
