"""What a running stream needs beside its micro-batches: ready workers, and few files in its table.

Both are done now and then by a thread of the driver, so that no micro-batch waits for them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from pyspark.sql import SparkSession
from pyspark.sql.streaming.query import StreamingQuery

from embedstream.spark.session import warm_workers
from embedstream.table.delta import compact

__all__ = ["keep_up"]

_log = logging.getLogger(__name__)

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
    # Where the query failed, whoever awaits it reports why.
    with _logged(logging.INFO, "maintenance has ended with its query"):
        while not query.awaitTermination(_INTERVAL_S):
            last = query.lastProgress
            if last is not None and compact_every:
                turn = last.batchId // compact_every
                if compacted_until is not None and turn > compacted_until:
                    # Another compaction, or a replay, may have been quicker.
                    with _logged(logging.WARNING, "compacting the table failed; it is tried again"):
                        compact(spark, table)
                compacted_until = turn
            if warms and not query.status["isTriggerActive"]:
                # The micro-batch that needs the worker fails with the same reason.
                with _logged(logging.INFO, "a worker could not be kept ready"):
                    warm_workers(spark, load)


@contextmanager
def _logged(level: int, message: str) -> Iterator[None]:
    """Log what is raised, with its traceback, and go on."""
    try:
        yield
    except Exception:
        _log.log(level, message, exc_info=True)
