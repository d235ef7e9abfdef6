"""Work that is done in chunks of one commit each, so that it may be stopped and gone on with.

The stream's chunks are its micro-batches; this is what else is done in them.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from pyspark.sql import DataFrame, SparkSession

__all__ = ["ChunkReport", "commit_chunk", "rows_a_commit"]

# They should take a minute or so: a fault repeats no more than that, and the commit is a small part
# of it.
_ROWS_A_CORE = 1024
_ROWS_A_GPU = 65_536


@dataclass(frozen=True, slots=True)
class ChunkReport:
    """A chunk that was committed."""

    embeddings: int
    failures: Counter[str]
    duration_s: float

    @property
    def rows(self) -> int:
        return self.embeddings + self.failures.total()


def rows_a_commit(spark: SparkSession) -> int:
    """How many rows to embed between two commits, by how many tasks run at once."""
    context = spark.sparkContext
    gpus = context.getConf().get("spark.task.resource.gpu.amount", "0")
    return context.defaultParallelism * (_ROWS_A_CORE if gpus == "0" else _ROWS_A_GPU)


def commit_chunk(outcomes: DataFrame, commit: Callable[[DataFrame], None]) -> ChunkReport:
    """Make outcomes once, count them, and commit them where there are any."""
    started = time.monotonic()
    made = outcomes.persist()
    try:
        counted = made.groupBy("error.code").count().collect()
        if counted:
            commit(made)
    finally:
        made.unpersist()
    failures = Counter({code: count for code, count in counted if code is not None})
    embeddings = sum(count for code, count in counted if code is None)
    return ChunkReport(embeddings, failures, time.monotonic() - started)
