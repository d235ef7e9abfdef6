"""Work in chunks of one commit each, so that it can be stopped and resumed."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from pyspark.sql import DataFrame

__all__ = ["Chunk", "ChunkReport", "commit_chunk"]

Part = TypeVar("Part")


@dataclass(frozen=True, slots=True)
class Chunk(Generic[Part]):
    """The work of one commit: these parts, which make so many rows."""

    parts: tuple[Part, ...]
    rows: int


@dataclass(frozen=True, slots=True)
class ChunkReport:
    """A chunk that was committed."""

    embeddings: int
    failures: Counter[str]
    duration_s: float

    @property
    def rows(self) -> int:
        """The number of outcomes of both kinds."""
        return self.embeddings + self.failures.total()


def commit_chunk(outcomes: DataFrame, commit: Callable[[DataFrame], None]) -> ChunkReport:
    """Compute the outcomes once, count them, and commit them if there are any."""
    started = time.monotonic()
    cached = outcomes.persist()
    try:
        counts = cached.groupBy("error.code").count().collect()
        if counts:
            commit(cached)
    finally:
        cached.unpersist()
    failures = Counter({code: count for code, count in counts if code is not None})
    embeddings = sum(count for code, count in counts if code is None)
    return ChunkReport(embeddings, failures, time.monotonic() - started)
