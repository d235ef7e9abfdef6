"""The work of a task: embed the items of a partition, within the configured bounds."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from pyspark import TaskContext
from pyspark.sql import SparkSession

from embedstream.config.sections import DataFrameConfig, EncoderConfig, StreamConfig
from embedstream.spark.sizing import count_task_cores
from embedstream.worker.broadcast import BroadcastModel, broadcast_model
from embedstream.worker.log_records import WorkerLog
from embedstream_core.engine.engine import Engine
from embedstream_core.errors import SystemicError
from embedstream_core.fetch.fetcher import open_fetcher
from embedstream_core.media.image.readers import require_decoders
from embedstream_core.models.card import PreparedModel
from embedstream_core.pipeline.embedding_cache import EmbeddingCache
from embedstream_core.pipeline.pipeline import Pipeline
from embedstream_core.pipeline.steps import Outcomes
from embedstream_core.pipeline.watchdog import Watchdog
from embedstream_core.pipeline.work_record import WorkRecord
from embedstream_core.records import Entry
from embedstream_core.settings import (
    DecodeSettings,
    FetchPolicy,
    Isolation,
    ModalityName,
    PipelineLimits,
)

__all__ = ["Embedder", "build_embedder"]

_log = logging.getLogger(__name__)

# The pause after a systemic error; it doubles with each attempt.
_PAUSE_S = 1.0
_LONGEST_PAUSE_S = 60.0

_LOADING_TIMEOUT_S = 120.0


@dataclass(frozen=True)
class Embedder:
    """The function of a partition: Spark sends it to the workers, where it embeds items.

    `models` are the encoders of the stream, each with rows of its own. `dedupe_entries` bounds the
    cached embeddings of each; None disables the caches. `log` brings the workers' records to the
    driver.
    """

    models: tuple[BroadcastModel, ...]
    fetch_policy: FetchPolicy
    decode_settings: DecodeSettings
    pipeline_limits: PipelineLimits
    isolation: Isolation
    dedupe_entries: int | None
    log: WorkerLog | None = None

    @property
    def model(self) -> BroadcastModel:
        """The only model of a batch API."""
        (model,) = self.models
        return model

    @property
    def modalities(self) -> frozenset[ModalityName]:
        """What the models accept together."""
        return frozenset(one for model in self.models for one in model.card.modalities)

    def embed(
        self, batches: Iterable[Sequence[Entry]], record: WorkRecord | None = None
    ) -> Iterator[list[Outcomes]]:
        """Yield a list for each Arrow batch, in order, with the outcomes of each entry.

        `record` gets what the pipeline measures.

        A retried task decodes each item in a child process, because an item may have ended the
        worker of the attempt before. Such an item then ends only its child.

        Raises:
            SystemicError: after a pause, because Spark retries a task at once. Spark ends a worker
                whose task failed, so the next attempt has a new process.
        """
        task = TaskContext.get()
        attempt = task.attemptNumber() if task else 0
        try:
            with ExitStack() as opened:
                if self.log is not None:
                    opened.enter_context(self.log.collect())
                if attempt:
                    text = "attempt %d of this task: each item is decoded in a child process"
                    _log.warning(text, attempt + 1)
                fetcher = opened.enter_context(open_fetcher(self.fetch_policy))
                watchdog = opened.enter_context(Watchdog())
                pipeline = Pipeline(
                    self._start_engines(watchdog),
                    fetch=fetcher.fetch,
                    decode_settings=self.decode_settings,
                    limits=self.pipeline_limits,
                    embedding_caches=self._open_embedding_caches(opened),
                    isolation=self.isolation if attempt else None,
                    watchdog=watchdog,
                    record=record or WorkRecord(),
                )
                yield from pipeline.run(batches)
        except SystemicError:
            time.sleep(min(_PAUSE_S * 2**attempt, _LONGEST_PAUSE_S))
            raise

    def load(self) -> None:
        """Start this worker's engines if it has none yet, so that no item waits for them."""
        with Watchdog() as watchdog:
            self._start_engines(watchdog)

    def _start_engines(self, watchdog: Watchdog) -> list[Engine]:
        # The start includes a forward pass, which may hang like any other.
        timeout_s = _LOADING_TIMEOUT_S + self.pipeline_limits.forward_timeout_s
        engines = []
        for model in self.models:
            with watchdog.watch("starting an encoder", timeout_s=timeout_s):
                engines.append(model.get_engine())
        return engines

    def _open_embedding_caches(self, opened: ExitStack) -> list[EmbeddingCache]:
        if self.dedupe_entries is None:
            return []
        paths = [one.get_embedding_cache_file(self.decode_settings) for one in self.models]
        return [
            opened.enter_context(EmbeddingCache(path, entries=self.dedupe_entries))
            for path in paths
        ]


def build_embedder(
    spark: SparkSession,
    models: Sequence[tuple[PreparedModel, EncoderConfig]],
    bounds: StreamConfig | DataFrameConfig,
) -> Embedder:
    """Send models to the executors and combine them with the configured bounds.

    Raises:
        SetupError: a host, a network or an address of the references is not well formed, or a
            format of images cannot be decoded here.
    """
    require_decoders(bounds.decode.formats)
    decode, pipeline = bounds.decode, bounds.pipeline
    modalities = {one for model, _ in models for one in model.card.modalities}
    max_bytes = max(decode.settings.get_max_bytes(one) for one in modalities)
    return Embedder(
        models=tuple(broadcast_model(spark, *one) for one in models),
        fetch_policy=bounds.references.build_policy(max_bytes=max_bytes),
        decode_settings=decode.settings,
        pipeline_limits=PipelineLimits(
            fetch_threads=pipeline.fetch_threads,
            decode_threads=pipeline.decode_threads or count_task_cores(spark),
            rows=pipeline.read_ahead_rows,
            bytes=pipeline.read_ahead_bytes,
            pixels=pipeline.decoding_pixels,
            decode_timeout_s=decode.timeout_s,
            forward_timeout_s=max(encoder.timeout_s for _, encoder in models),
        ),
        isolation=Isolation(decode.timeout_s, decode.isolated_memory_bytes),
        dedupe_entries=pipeline.dedupe_entries if pipeline.dedupe == "on" else None,
        log=WorkerLog.start(spark),
    )
