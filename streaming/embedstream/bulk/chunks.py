"""Work that is done in chunks of one commit each, so that it may be stopped and gone on with."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from pyspark.sql import DataFrame

__all__ = ["ChunkReport", "commit_chunk"]


@dataclass(frozen=True, slots=True)
class ChunkReport:
    """A chunk that was committed."""

    embeddings: int
    failures: Counter[str]
    duration_s: float

    @property
    def rows(self) -> int:
        return self.embeddings + self.failures.total()


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
