"""What a running stream needs beside its micro-batches: ready workers, and few files in its table.

Both are done now and then by a thread of the driver, so that no micro-batch waits for them.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

from pyspark.sql import SparkSession
from pyspark.sql.streaming.query import StreamingQuery

from embedstream.session import warm_workers
from embedstream.sink import compact

__all__ = ["keep_up"]

# Spark ends Python workers when none of an executor's had a task for a minute.
_INTERVAL_S = 30


def keep_up(
    spark: SparkSession,
    query: StreamingQuery,
    table: str,
    *,
    load: Callable[[], object],
    compact_every: int,
) -> None:
    """Look after a stream until its query ends; for a thread of its own.

    `load` gives a worker its model where it has none. `compact_every` is in micro-batches; 0 never
    compacts.
    """
    # Executors that come and go would never be idle, and so never be released.
    warms = spark.conf.get("spark.dynamicAllocation.enabled", "false") != "true"
    compacted_until = None
    # A query that failed tells so to whoever awaits it; a session may be stopped meanwhile.
    with suppress(Exception):
        while not query.awaitTermination(_INTERVAL_S):
            last = query.lastProgress
            if last is not None and compact_every:
                turn = last.batchId // compact_every
                if compacted_until is not None and turn > compacted_until:
                    # Another that compacts, or replays, may be quicker: then there is a next time.
                    with suppress(Exception):
                        compact(spark, table)
                compacted_until = turn
            if warms and not query.status["isTriggerActive"]:
                # What a worker cannot load is told by the micro-batch that needs it.
                with suppress(Exception):
                    warm_workers(spark, load)
