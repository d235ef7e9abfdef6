"""How many outcomes of each kind a micro-batch had, counted where they are made."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from pyspark import Accumulator, AccumulatorParam, TaskContext
from pyspark.sql import SparkSession

from embedstream_core.records import Failure, Outcome

__all__ = ["Kinds", "OutcomeCounts"]

Kinds = Counter[str | None]
"""Outcomes by code; of embeddings by None."""

_Tally = Counter[tuple[str | None, str | None, str | None]]

# What Spark's streaming sets for the tasks of a micro-batch: the query's run, and the batch's id.
_RUN = "spark.jobGroup.id"
_BATCH = "streaming.sql.batchId"


class _Tallies(AccumulatorParam[_Tally]):
    def zero(self, value: _Tally) -> _Tally:
        return Counter()

    def addInPlace(self, value1: _Tally, value2: _Tally) -> _Tally:  # noqa: N802 - Spark's name
        value1.update(value2)
        return value1


@dataclass(frozen=True)
class OutcomeCounts:
    """Travels to the workers, and brings the counts of each task that succeeded to the driver.

    A Spark observation would do the same, but Delta executes a plan of its own for a table with
    generated, identity or default columns, and nothing is observed of the one that Spark reports.
    """

    _tallies: Accumulator[_Tally]

    @classmethod
    def start(cls, spark: SparkSession) -> OutcomeCounts:
        """Begin with nothing counted."""
        return cls(spark.sparkContext.accumulator(Counter(), _Tallies()))

    def add(self, outcomes: Sequence[Outcome]) -> None:
        """Count outcomes of the micro-batch that this task is a part of."""
        task = TaskContext.get()
        run, batch = (task.getLocalProperty(name) if task else None for name in (_RUN, _BATCH))
        codes = (one.code if isinstance(one, Failure) else None for one in outcomes)
        self._tallies.add(Counter((run, batch, code) for code in codes))

    def take(self, run_id: str, batch_id: int) -> Kinds:
        """Remove and return the counts of a micro-batch that has ended."""
        tallies = self._tallies.value
        found = [at for at in tallies.copy() if at[:2] == (run_id, str(batch_id))]
        return Counter({code: tallies.pop((run, batch, code)) for run, batch, code in found})
