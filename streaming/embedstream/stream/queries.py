"""The queries of a running stream, one after the other: until it is stopped, or is drained."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from functools import partial

from pyspark.errors import StreamingQueryException
from pyspark.sql import SparkSession

from embedstream.config.sections import StreamConfig
from embedstream.logs.events import Event, log_event
from embedstream.recovery.claim import HeldClaim
from embedstream.stream.job import Stream, stop_stream
from embedstream.stream.swap import SwapDesk
from embedstream.table.address import TableAddress
from embedstream.table.conflicts import find_conflict
from embedstream.table.delta import check_table
from embedstream.table.features import check_fillable

__all__ = ["run_queries"]

_LOG = logging.getLogger(__name__)

_POLL_S = 0.2


def run_queries(
    spark: SparkSession,
    config: StreamConfig,
    desk: SwapDesk,
    stop: threading.Event,
    claim: HeldClaim,
    *,
    is_refused: Callable[[], bool] = lambda: False,
    beat: Callable[[], object] = lambda: None,
) -> None:
    """Run the stream to its end; call `beat` several times a second while it runs.

    When the table is altered while a micro-batch is written, Delta refuses the whole micro-batch:
    the stream is started again and repeats it. When other models are ready, they take over. Once
    `is_refused`, the micro-batch in flight is interrupted.
    """

    def is_over() -> bool:
        claim.verify()
        beat()
        return is_refused()

    stream = desk.start()
    while True:
        try:
            while stream.query.isActive and not stop.wait(_POLL_S) and not is_over():
                desk.watch(stream.query)
                if desk.prepared is not None:
                    stream = desk.switch(stream)
            _end(stream, stop, interrupt=is_refused(), timeout_s=config.trigger.stop_timeout_s)
            desk.watch(stream.query)
            return
        except StreamingQueryException as error:
            if find_conflict(error) != "altered":
                if not desk.can_go_back:
                    raise
                stream = desk.go_back(error)
                continue
        check_table(spark, TableAddress.of(config.table))
        check_fillable(spark, config.table, door="messages")
        then = "the next start repeats the micro-batch"
        if not stop.is_set():
            then = "the micro-batch in flight is repeated"
        text = f"the table was altered: {then}"
        log_event(_LOG, Event.RESTART, text, reason="table_altered", stopping=stop.is_set())
        if stop.is_set():
            return
        stream = desk.start()


def _end(stream: Stream, stop: threading.Event, *, interrupt: bool, timeout_s: float) -> None:
    """Stop the query if that was asked for; raise the error if it ended by one."""
    if interrupt:
        stop_stream(stream.query, timeout_s=0)
        return
    if not stop.is_set():
        stream.query.awaitTermination()
        return
    log = partial(log_event, _LOG, Event.STOPPING, timeout_s=timeout_s)
    log("stopping: the micro-batch in flight is being finished", interrupted=False)
    if stop_stream(stream.query, timeout_s=timeout_s) == "interrupted":
        log(f"it took longer than {timeout_s:g} s; the next start repeats it", interrupted=True)
