"""The counts of a micro-batch's outcomes by kind, collected on the workers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from pyspark import Accumulator, AccumulatorParam, TaskContext
from pyspark.sql import SparkSession

from embedstream_core.errors import Code
from embedstream_core.records import Failure, Outcome

__all__ = ["CommitReport", "Kinds", "OutcomeCounts", "RowKind", "select_failures"]

Kinds = Counter[str | None]
"""Outcomes by error code; embeddings under None, and deletions, no failures, under `deleted`."""


class RowKind(NamedTuple):
    """What rows are counted by; `code` is None for embeddings."""

    topic: str
    model_id: str | None
    code: str | None


def select_failures(kinds: Kinds) -> Counter[str]:
    """Return the failures alone, by error code."""
    return Counter({one: n for one, n in kinds.items() if one not in (None, Code.DELETED)})


@dataclass(frozen=True, slots=True, kw_only=True)
class CommitReport:
    """The outcomes of a commit to the table, and the seconds that it took."""

    embeddings: int
    failures: Counter[str]
    duration_s: float
    deleted: int = 0

    @property
    def rows(self) -> int:
        """The number of outcomes of all kinds."""
        return self.embeddings + self.failures.total() + self.deleted


_Tally = Counter[tuple[str | None, str | None, str | None]]

# The local properties that Spark sets for a micro-batch: the query's run and the micro-batch's id.
_PROPERTIES = ("spark.jobGroup.id", "streaming.sql.batchId")


class _Tallies(AccumulatorParam[_Tally]):
    def zero(self, value: _Tally) -> _Tally:
        return Counter()

    def addInPlace(self, value1: _Tally, value2: _Tally) -> _Tally:  # noqa: N802 - Spark's name
        value1.update(value2)
        return value1


@dataclass(frozen=True)
class OutcomeCounts:
    """Counts on the workers; the driver receives the counts of each task that succeeds.

    A Spark observation would do the same, but for a table with generated, identity or default
    columns Delta runs a plan of its own, and Spark reports no observed metrics.
    """

    _tallies: Accumulator[_Tally]

    @classmethod
    def start(cls, spark: SparkSession) -> OutcomeCounts:
        """Create empty counts."""
        return cls(spark.sparkContext.accumulator(Counter(), _Tallies()))

    def add(self, outcomes: Sequence[Outcome]) -> None:
        """Count outcomes of this task's micro-batch."""
        task = TaskContext.get()
        run_id, batch_id = (task.getLocalProperty(name) if task else None for name in _PROPERTIES)
        codes = (one.code if isinstance(one, Failure) else None for one in outcomes)
        self._tallies.add(Counter((run_id, batch_id, code) for code in codes))

    def take(self, run_id: str, batch_id: int) -> Kinds:
        """Remove and return the counts of a finished micro-batch."""
        tallies = self._tallies.value
        found = [key for key in tallies.copy() if key[:2] == (run_id, str(batch_id))]
        return Counter({key[2]: tallies.pop(key) for key in found})
