"""Maintenance of a running stream: its workers stay ready, and its table has few files.

A thread of the driver does both from time to time, so that no micro-batch waits for them. It also
starts a thread of the JVM that computes the state of the table's log ahead of each micro-batch.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Literal

from pyspark.errors import PySparkException, UnsupportedOperationException
from pyspark.sql import SparkSession
from pyspark.sql.streaming.query import StreamingQuery

from embedstream.logs.events import Event, log_event
from embedstream.spark.errors import log_errors
from embedstream.spark.session import warm_workers
from embedstream.table.address import TableAddress
from embedstream.table.delta import compact
from embedstream.table.features import is_clustered_automatically
from embedstream.table.log_state import compute_state_ahead

__all__ = ["INTERVAL_S", "maintain_stream"]

_log = logging.getLogger(__name__)

# Spark ends Python workers when none of an executor's had a task for a minute.
INTERVAL_S = 30

# The SQLSTATE of a statement for which a privilege is missing.
_NOT_PERMITTED = "42501"


def maintain_stream(
    spark: SparkSession,
    query: StreamingQuery,
    table: TableAddress,
    *,
    load: Callable[[], object],
    compact_every: int,
    interval_s: int,
    ends_by_itself: bool = False,
) -> None:
    """Maintain a stream until its query ends; runs in a thread of its own.

    `load` loads the model in a worker that has none. `compact_every` is in micro-batches; 0 never
    compacts. A catalog that maintains the table itself is left to it. No state is computed ahead
    for a query that ends by itself.
    """
    # Warm-up tasks would keep executors busy that dynamic allocation should release.
    warms = spark.conf.get("spark.dynamicAllocation.enabled", "false") != "true"
    compacts, compacted_until = compact_every > 0, None
    if not ends_by_itself:
        # Spark would be stopped while the state after the last commit is being computed.
        with log_errors(
            _log, logging.INFO, "the log's state is computed by each micro-batch itself"
        ):
            compute_state_ahead(spark, query, table)
    # If the query failed, whoever awaits it reports why.
    with log_errors(_log, logging.DEBUG, "maintenance has ended with its query"):
        while not query.awaitTermination(interval_s):
            last = query.lastProgress
            if last is not None and compacts:
                turn = last.batchId // compact_every
                if compacted_until is not None and turn > compacted_until:
                    # Another compaction, or a replay, may have been quicker.
                    with log_errors(
                        _log, logging.WARNING, "compacting the table failed, trying later"
                    ):
                        compacts = _compact(spark, table)
                compacted_until = turn
            if warms and not query.status["isTriggerActive"]:
                # The micro-batch that needs the worker fails with the same reason.
                with log_errors(_log, logging.INFO, "a worker could not be kept ready"):
                    warm_workers(spark, load)


def _compact(spark: SparkSession, table: TableAddress) -> bool:
    """Compact the table; return False, and say why, if its catalog maintains it."""
    if is_clustered_automatically(spark, table):
        return _leave_to_catalog(table, "it chooses the table's clustering")
    started = time.monotonic()
    try:
        compacted = compact(spark, table)
    except PySparkException as error:
        is_unsupported = isinstance(error, UnsupportedOperationException)
        if not is_unsupported and error.getSqlState() != _NOT_PERMITTED:
            raise
        return _leave_to_catalog(table, " ".join(str(error).split()))
    took_s = time.monotonic() - started
    files = f"{compacted.files_removed} files became {compacted.files_added}"
    log_event(
        _log,
        Event.COMPACTION,
        f"the table was compacted in {took_s:.1f} s: {files}",
        table=str(table),
        duration_s=took_s,
        **asdict(compacted),
    )
    return True


def _leave_to_catalog(table: TableAddress, reason: str) -> Literal[False]:
    _log.warning("compacting '%s' is left to its catalog: %s", table, reason)
    return False
