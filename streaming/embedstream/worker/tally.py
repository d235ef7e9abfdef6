"""What the workers report of a micro-batch to the driver: its rows, its messages, its work."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
from pyspark import Accumulator, AccumulatorParam, TaskContext
from pyspark.sql import SparkSession

from embedstream.worker.counts import Kinds, RowKind
from embedstream_core.errors import Code
from embedstream_core.pipeline.work_record import WorkRecord, WorkStage
from embedstream_core.records import Failure

if TYPE_CHECKING:
    from embedstream_core.pipeline.steps import Outcomes

__all__ = ["FailedMessage", "Tallies", "Tally", "round_times"]

# The queries of a driver run one after the other, so at most two micro-batches report at a time.
_MAX_MICRO_BATCHES = 8

# Of a failure's message; the table has all of it.
_MAX_REASON_CHARACTERS = 300

# The local properties that Spark sets for a micro-batch: the query's run and the micro-batch's id.
_PROPERTIES = ("spark.jobGroup.id", "streaming.sql.batchId")

_FINEST_S = 1 / 8
_STEPS_AN_AGE = 16


class FailedMessage(NamedTuple):
    """A message that failed; the newest one is the greatest. `appended` is in seconds since 1970.

    `reason` is a user's text, and may be hostile.
    """

    appended: float
    topic: str
    partition: int
    offset: int
    reason: str


@dataclass(slots=True)
class Tally:
    """The work of a micro-batch, or of a part of it.

    `appended` has the messages by the time at which they were appended to Kafka, see `round_times`;
    those without a time are left out. `newest_failures` has the newest message of each error code.
    """

    rows: Counter[RowKind] = field(default_factory=Counter)
    appended: Counter[float] = field(default_factory=Counter)
    seconds: dict[WorkStage, float] = field(default_factory=dict)
    cache_hits: int = 0
    newest_failures: dict[str, FailedMessage] = field(default_factory=dict)

    @property
    def kinds(self) -> Kinds:
        """The rows by error code alone."""
        kinds: Kinds = Counter()
        for kind, count in self.rows.items():
            kinds[kind.code] += count
        return kinds

    def add_rows(
        self,
        positions: Sequence[tuple[str, int, int]],
        appended: npt.NDArray[np.float64],
        outcomes: Sequence[Outcomes],
    ) -> None:
        """Count the rows of messages.

        Args:
            positions: The topic, partition and offset of each message.
            appended: When each was appended, in seconds since 1970; NaN if that is not known.
            outcomes: Those of each message.
        """
        # Plain tuples are counted twice as fast as named ones.
        kinds = Counter(
            (topic, one.model_id, one.code if isinstance(one, Failure) else None)
            for (topic, _, _), its in zip(positions, outcomes, strict=True)
            for one in its
        )
        for (topic, model_id, code), count in kinds.items():
            self.rows[RowKind(topic, model_id, None if code is None else str(code))] += count
        for position, at, its in zip(positions, appended, outcomes, strict=True):
            for one in its:
                if isinstance(one, Failure) and one.code != Code.DELETED:
                    since = 0.0 if np.isnan(at) else float(at)
                    reason = one.message[:_MAX_REASON_CHARACTERS]
                    self._add_failure(str(one.code), FailedMessage(since, *position, reason))
        times = round_times(appended[~np.isnan(appended)], now=time.time())
        self.appended.update(dict(zip(*_count_values(times), strict=True)))

    def add_work(self, record: WorkRecord) -> None:
        """Add what the pipeline and its caller measured."""
        self._add_seconds(record.seconds)
        self.cache_hits += record.cache_hits

    def merge(self, other: Tally) -> None:
        """Add another part of the micro-batch."""
        self.rows.update(other.rows)
        self.appended.update(other.appended)
        self._add_seconds(other.seconds)
        self.cache_hits += other.cache_hits
        for code, failed in other.newest_failures.items():
            self._add_failure(code, failed)

    def _add_seconds(self, seconds: Mapping[WorkStage, float]) -> None:
        for stage, its in seconds.items():
            self.seconds[stage] = self.seconds.get(stage, 0.0) + its

    def _add_failure(self, code: str, failed: FailedMessage) -> None:
        self.newest_failures[code] = max(failed, self.newest_failures.get(code, failed))


def round_times(times: npt.NDArray[np.float64], *, now: float) -> npt.NDArray[np.float64]:
    """Round times, in seconds since 1970, so that few different ones are left.

    The error is at most 1/16 s for a time in the last 2 s, and 1/32 of the age for older ones (and
    for those in the future). All tasks of a micro-batch round to the same grid: an age of a day
    leaves at most some 300 different times, and any age at most some 1,600.
    """
    # An age from 2 to 4 s is rounded to a multiple of 1/8 s, from 4 to 8 s of 1/4 s, and so on:
    # each finer multiple is one of the coarser ones or lies in between.
    age = np.maximum(np.abs(now - times), _FINEST_S * _STEPS_AN_AGE)
    step = 2.0 ** np.floor(np.log2(age)) / _STEPS_AN_AGE
    rounded: npt.NDArray[np.float64] = np.round(times / step) * step
    return rounded


def _count_values(times: npt.NDArray[np.float64]) -> tuple[list[float], list[int]]:
    values, counts = np.unique(times, return_counts=True)
    return values.tolist(), counts.tolist()


_ByMicroBatch: TypeAlias = dict[tuple[str | None, str | None], Tally]

# Spark adds on one thread of the driver, and `take` is called on another.
_lock = threading.Lock()


class _Merge(AccumulatorParam[_ByMicroBatch]):
    def zero(self, value: _ByMicroBatch) -> _ByMicroBatch:
        return {}

    def addInPlace(  # noqa: N802 - Spark's name
        self, value1: _ByMicroBatch, value2: _ByMicroBatch
    ) -> _ByMicroBatch:
        with _lock:
            for key, tally in value2.items():
                value1.setdefault(key, Tally()).merge(tally)
            # A micro-batch that failed is never taken.
            while len(value1) > _MAX_MICRO_BATCHES:
                del value1[next(iter(value1))]
        return value1


@dataclass(frozen=True)
class Tallies:
    """Takes the tally of each task on its worker; the driver gets those of the tasks that succeed.

    A Spark observation would do the same, but for a table with generated, identity or default
    columns Delta runs a plan of its own, and Spark reports no observed metrics. The driver keeps
    the tallies of the last 8 micro-batches that were not taken.
    """

    _tallies: Accumulator[_ByMicroBatch]

    @classmethod
    def start(cls, spark: SparkSession) -> Tallies:
        """Create an empty one."""
        return cls(spark.sparkContext.accumulator({}, _Merge()))

    def add(self, tally: Tally) -> None:
        """Add to the tally of this task's micro-batch."""
        task = TaskContext.get()
        run_id, batch_id = (task.getLocalProperty(name) if task else None for name in _PROPERTIES)
        self._tallies.add({(run_id, batch_id): tally})

    def take(self, run_id: str, batch_id: int) -> Tally:
        """Remove and return the tally of a finished micro-batch."""
        with _lock:
            return self._tallies.value.pop((run_id, str(batch_id)), None) or Tally()
