"""Opens what watches a stream, and connects it to the stream's parts."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from pyspark.sql import SparkSession

from embedstream.config.sections import StreamConfig
from embedstream.kafka.outage import Outage
from embedstream.monitor.live import LiveStream, Probes
from embedstream.monitor.status import IndexStatus, ModelStatus
from embedstream.recovery.checkpoint import Checkpoint
from embedstream.recovery.lost_messages import read_due_offsets
from embedstream.spark.folder import Folder
from embedstream.table.delta_log import read_version
from embedstream_core.errors import EmbedstreamError, explain

if TYPE_CHECKING:
    from embedstream.index.process import IndexProcess
    from embedstream.recovery.claim import HeldClaim
    from embedstream.recovery.resume import Resumption
    from embedstream.stream.swap import SwapDesk

__all__ = ["connect_stream", "open_monitor"]

_log = logging.getLogger(__name__)

# Each look asks Delta for entries after the version that it knows, as each micro-batch does.
_TABLE_S = 5.0


@contextmanager
def open_monitor(
    config: StreamConfig, *, config_path: str, say: Callable[[str], object]
) -> Iterator[LiveStream]:
    """Yield the status of a stream that is about to start, and serve it at `monitor.listen`.

    `config_path` is the configuration's file, for the commands that the page shows. `say` prints
    the address. On leaving, the state says how the stream ended, and the server ends.

    Raises:
        SetupError: on entering, the address cannot be listened at, or the extra is missing.
    """
    live = LiveStream(config)
    if config.monitor.listen is None:
        yield live
        return
    from embedstream.monitor.site import open_site

    with open_site(live, config, config_path=config_path, read_counts=live.read_counts) as url:
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
    *,
    desk: SwapDesk,
    claim: HeldClaim,
    index: IndexProcess | None,
    stop: threading.Event,
) -> Iterator[None]:
    """Let a status ask the parts of a stream, which is about to be started, while it runs."""
    config = resumption.config
    live.set_read(_find_start(spark, resumption))
    live.set_offsets(resumption.topics)
    live.follow(
        Probes(
            read_models=lambda: _describe_models(desk),
            count_loads=lambda: desk.loads,
            read_index=lambda: _describe_index(config, index),
            find_loss=lambda: claim.loss,
            is_stopping=stop.is_set,
            is_listening=lambda: _has_listener(spark),
        )
    )
    ended = threading.Event()
    if config.monitor.listen is not None:
        threading.Thread(
            target=_watch_table, args=(spark, live, config.table.path, ended), daemon=True
        ).start()
    try:
        yield
    finally:
        ended.set()


def _find_start(spark: SparkSession, resumption: Resumption) -> Mapping[str, Mapping[int, int]]:
    """Return where a stream reads on, as far as that is known before its first micro-batch."""
    config, topics = resumption.config, resumption.topics
    checkpoint = Checkpoint(Folder(spark, config.checkpoint))
    if due := read_due_offsets(checkpoint, resumption.writers, topics):
        return due
    kafka = config.kafka
    if kafka.starting_timestamp is not None:
        return {}
    starts = kafka.starting_offsets
    if isinstance(starts, str):
        return {
            name: state.earliest if starts == "earliest" else state.end
            for name, state in topics.items()
        }
    relative = {name: {-2: state.earliest, -1: state.end} for name, state in topics.items()}
    return {
        name: {
            number: relative[name][offset][number] if offset < 0 else offset
            for number, offset in partitions.items()
        }
        for name, partitions in starts.items()
        if name in topics
    }


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


def _describe_index(config: StreamConfig, index: IndexProcess | None) -> IndexStatus | None:
    if index is None:
        return None
    return IndexStatus(address=index.address, version=index.version, trouble=index.trouble)


def _has_listener(spark: SparkSession) -> bool:
    """Return whether the thread lives that takes the calls of Spark's listeners."""
    gateway: Any = spark.sparkContext._gateway
    server = gateway.get_callback_server()
    # Without a listener there is no such thread.
    return server is None or (server.thread is not None and server.thread.is_alive())


def _watch_table(spark: SparkSession, live: LiveStream, path: str, ended: threading.Event) -> None:
    outage = Outage(_log, "the table's version cannot be read")
    while True:
        # A session that ends raises errors of many types.
        try:
            found = read_version(spark, path)
            live.note_table_version(found.number, found.committed_ms / 1000)
            outage.end()
        except Exception as error:
            if ended.is_set():
                return
            outage.begin(error)
        if ended.wait(_TABLE_S):
            return
