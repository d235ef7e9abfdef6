"""Work in chunks of one commit each, so that it can be stopped and resumed."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from pyspark.sql import DataFrame

from embedstream.worker.counts import CommitReport, Kinds, select_failures

__all__ = ["Chunk", "commit_chunk"]

Part = TypeVar("Part")


@dataclass(frozen=True, slots=True)
class Chunk(Generic[Part]):
    """The work of one commit: these parts, which make so many rows."""

    parts: tuple[Part, ...]
    rows: int


def commit_chunk(outcomes: DataFrame, commit: Callable[[DataFrame], None]) -> CommitReport:
    """Compute the outcomes once, count them, and commit them if there are any."""
    started = time.monotonic()
    cached = outcomes.persist()
    try:
        counts = cached.groupBy("error.code").count().collect()
        if counts:
            commit(cached)
    finally:
        cached.unpersist()
    kinds: Kinds = Counter(dict(counts))
    return CommitReport(
        embeddings=kinds[None],
        failures=select_failures(kinds),
        duration_s=time.monotonic() - started,
    )
