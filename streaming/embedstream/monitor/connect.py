"""Open the monitor of a stream, and connect it to the parts of the stream."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, TypeVar

from pyspark.sql import SparkSession

from embedstream.config.sections import StreamConfig
from embedstream.logs.outages import OutageLog
from embedstream.monitor.live import LiveStream, Probes
from embedstream.monitor.status import IndexStatus, ModelStatus, PublishStatus
from embedstream.table.delta_log import read_version
from embedstream_core.errors import EmbedstreamError, explain

if TYPE_CHECKING:
    from embedstream.follow.process import FollowerProcess
    from embedstream.recovery.claim import HeldClaim
    from embedstream.recovery.resume import Resumption
    from embedstream.stream.swap import SwapDesk

__all__ = ["connect_stream", "open_monitor", "watch_table"]

_log = logging.getLogger(__name__)

_Status = TypeVar("_Status", IndexStatus, PublishStatus)

# Delta looks for entries after the version that it knows, as it does for each micro-batch.
_TABLE_S = 5.0


@contextmanager
def open_monitor(
    config: StreamConfig, *, config_words: str, say: Callable[[str], object]
) -> Iterator[LiveStream]:
    """Yield the status of a stream that is about to start, and serve it at `monitor.listen`.

    `config_words` name the configuration in the commands that the page shows. `say` prints the
    address. On leaving, the state says how the stream ended, and the server ends.

    Raises:
        SetupError: on entering, the address cannot be listened at, or the extra is missing.
    """
    live = LiveStream(config)
    if config.monitor.listen is None:
        yield live
        return
    from embedstream.monitor.http.site import open_site

    with open_site(live, config, config_words=config_words, read_counts=live.read_counts) as url:
        say(f"monitor: {url}")
        try:
            yield live
        except EmbedstreamError as error:
            live.note_state("failed", str(error))
            raise
        except BaseException as error:
            live.note_state("failed", explain(error))
            raise
        live.note_state("stopped")


@contextmanager
def connect_stream(
    live: LiveStream,
    spark: SparkSession,
    resumption: Resumption,
    read: Mapping[tuple[str, int], int],
    *,
    desk: SwapDesk,
    claim: HeldClaim,
    index: FollowerProcess | None,
    publish: FollowerProcess | None,
    stop: threading.Event,
) -> Iterator[None]:
    """Let a status ask the parts of a stream, which is about to be started, while it runs.

    `read` is the offset of the next message of each partition; empty before the first start.
    """
    live.set_read(read or dict(_list_first_offsets(resumption)))
    live.follow(
        Probes(
            read_models=lambda: _describe_models(desk),
            count_loads=lambda: desk.loads,
            read_index=lambda: _describe(index, IndexStatus),
            read_publish=lambda: _describe(publish, PublishStatus),
            find_loss=lambda: claim.loss,
            is_stopping=stop.is_set,
            is_listening=lambda: _has_listener(spark),
        )
    )
    config = resumption.config
    with watch_table(spark, live, config.table.path) if config.monitor.listen else nullcontext():
        yield


@contextmanager
def watch_table(spark: SparkSession, live: LiveStream, path: str) -> Iterator[None]:
    """Pass the newest version of the table to `live` every few seconds while it is watched."""
    ended = threading.Event()
    threading.Thread(
        target=_read_versions, args=(spark, live, path, ended), name="table", daemon=True
    ).start()
    try:
        yield
    finally:
        ended.set()


def _list_first_offsets(resumption: Resumption) -> Iterator[tuple[tuple[str, int], int]]:
    """Yield where a first start reads each partition, as far as its configuration says that."""
    kafka = resumption.config.kafka
    if kafka.starting_timestamp is not None:
        return
    for topic, state in resumption.topics.items():
        for number, end in state.end.items():
            earliest = state.earliest[number]
            match kafka.starting_offsets:
                case "earliest":
                    yield (topic, number), earliest
                case "latest":
                    yield (topic, number), end
                case starts if number in starts.get(topic, {}):
                    offset = starts[topic][number]
                    yield (topic, number), {-2: earliest, -1: end}.get(offset, offset)


def _describe_models(desk: SwapDesk) -> tuple[ModelStatus, ...]:
    return tuple(
        ModelStatus(
            model_id=model.card.model_id,
            name=model.card.encoder,
            modalities=model.card.modalities,
            dimension=model.card.dimension,
            precision=model.card.precision,
            loads=model.loads,
        )
        for model in desk.service.function.embedder.models
    )


def _describe(process: FollowerProcess | None, kind: type[_Status]) -> _Status | None:
    if process is None:
        return None
    return kind(address=process.address, version=process.version, trouble=process.trouble)


def _has_listener(spark: SparkSession) -> bool:
    """Return whether the thread that receives the calls of Spark's listeners is alive."""
    gateway: Any = spark.sparkContext._gateway
    server = gateway.get_callback_server()
    # Without a listener there is no such thread.
    return server is None or (server.thread is not None and server.thread.is_alive())


def _read_versions(
    spark: SparkSession, live: LiveStream, path: str, ended: threading.Event
) -> None:
    outage = OutageLog(_log, "the table's version cannot be read")

    def look() -> None:
        # A session that ends raises errors of many types.
        try:
            found = read_version(spark, path)
        except Exception as error:
            if not ended.is_set():
                outage.begin(error)
            return
        outage.end()
        live.note_table_version(found.number, found.committed_ms / 1000)

    look()
    while not ended.wait(_TABLE_S):
        if live.is_watched:
            look()
