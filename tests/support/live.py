"""A stream that runs in the test's own Spark session while a fault is provoked."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pyspark.sql import SparkSession
from pyspark.sql.streaming.query import StreamingQuery

from drivers import wait_until
from embedstream.config.sections import StreamConfig
from embedstream.stream.job import start_stream, stop_stream
from oracle import Position, read_rows
from streams import prepared

__all__ = ["LiveStream", "live"]


@dataclass(frozen=True)
class LiveStream:
    """A query, and the table that it fills."""

    query: StreamingQuery
    table: Path

    def positions(self) -> set[Position]:
        """Of the rows so far. Fails where the query has ended."""
        assert self.query.isActive, self.query.exception()
        return set(read_rows(self.table))

    def until_rows(self, count: int) -> None:
        wait_until(lambda: len(self.positions()) >= count)

    def until_still(self, seconds: float) -> None:
        """Wait until no row has come for so long."""
        seen, since = self.positions(), time.monotonic()

        def still() -> bool:
            nonlocal seen, since
            if (now := self.positions()) != seen:
                seen, since = now, time.monotonic()
            return time.monotonic() - since > seconds

        wait_until(still)


@contextmanager
def live(spark: SparkSession, config: StreamConfig) -> Iterator[LiveStream]:
    """Start the stream; stop it on leaving, after the micro-batch in flight."""
    stream = start_stream(spark, config, prepared(config))
    try:
        yield LiveStream(stream.query, Path(config.table.path))
    finally:
        stop_stream(stream.query, timeout_s=30)
