"""The work of a task: embed the items of a partition, within the configured bounds."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass

from pyspark import TaskContext
from pyspark.sql import SparkSession

from embedstream.config.sections import DataFrameConfig, EncoderConfig, StreamConfig
from embedstream.spark.sizing import count_task_cores
from embedstream.worker.broadcast import BroadcastModel, broadcast_model
from embedstream_core.engine.engine import Engine
from embedstream_core.errors import SystemicError
from embedstream_core.fetch.fetcher import open_fetcher
from embedstream_core.media.sandbox import SandboxedDecoder
from embedstream_core.models.card import PreparedModel
from embedstream_core.pipeline.embedding_cache import EmbeddingCache
from embedstream_core.pipeline.pipeline import Pipeline
from embedstream_core.pipeline.watchdog import Watchdog
from embedstream_core.records import Entry, Outcome
from embedstream_core.settings import (
    DecodeSettings,
    FetchPolicy,
    Fidelity,
    Isolation,
    PipelineLimits,
)

__all__ = ["Embedder", "build_embedder"]

# The pause after a systemic error; it doubles with each attempt.
_PAUSE_S = 1.0
_LONGEST_PAUSE_S = 60.0

_LOADING_TIMEOUT_S = 120.0


@dataclass(frozen=True)
class Embedder:
    """The function of a partition: Spark sends it to the workers, where it embeds items.

    `dedupe_entries` bounds the cached embeddings; None disables the cache.
    """

    model: BroadcastModel
    fetch_policy: FetchPolicy
    decode_limits: DecodeSettings
    fidelity: Fidelity
    pipeline_limits: PipelineLimits
    isolation: Isolation
    dedupe_entries: int | None

    def embed(self, batches: Iterable[Sequence[Entry]]) -> Iterator[list[Outcome]]:
        """Yield a list of outcomes for each Arrow batch: one per entry, in order.

        A retried task decodes each image in a child process, because an image may have ended the
        worker of the attempt before. Such an image then ends only its child.

        Raises:
            SystemicError: after a pause, because Spark retries a task at once. Spark ends a worker
                whose task failed, so the next attempt has a new process.
        """
        task = TaskContext.get()
        attempt = task.attemptNumber() if task else 0
        sandbox = SandboxedDecoder(
            self.model.card.preprocessing,
            self.decode_limits,
            fidelity=self.fidelity,
            isolation=self.isolation,
        )
        try:
            with (
                open_fetcher(self.fetch_policy) as fetcher,
                self._open_embedding_cache() as embedding_cache,
                closing(sandbox),
                Watchdog() as watchdog,
            ):
                pipeline = Pipeline(
                    self._start_engine(watchdog),
                    self.model.card.preprocessing,
                    fetch=fetcher.fetch,
                    decode_limits=self.decode_limits,
                    fidelity=self.fidelity,
                    limits=self.pipeline_limits,
                    embedding_cache=embedding_cache,
                    isolated=sandbox if attempt else None,
                    watchdog=watchdog,
                )
                yield from pipeline.run(batches)
        except SystemicError:
            time.sleep(min(_PAUSE_S * 2**attempt, _LONGEST_PAUSE_S))
            raise

    def load(self) -> None:
        """Start this worker's engine if it has none yet, so that no item waits for it."""
        with Watchdog() as watchdog:
            self._start_engine(watchdog)

    def _start_engine(self, watchdog: Watchdog) -> Engine:
        # The start includes a forward pass, which may hang like any other.
        timeout_s = _LOADING_TIMEOUT_S + self.pipeline_limits.forward_timeout_s
        with watchdog.watch("starting the encoder", timeout_s=timeout_s):
            return self.model.get_engine()

    def _open_embedding_cache(self) -> AbstractContextManager[EmbeddingCache | None]:
        if self.dedupe_entries is None:
            return nullcontext()
        path = self.model.get_embedding_cache_file(self.decode_limits, self.fidelity)
        return EmbeddingCache(path, entries=self.dedupe_entries)


def build_embedder(
    spark: SparkSession,
    model: PreparedModel,
    encoder: EncoderConfig,
    bounds: StreamConfig | DataFrameConfig,
) -> Embedder:
    """Send a model to the executors and combine it with the configured bounds.

    Raises:
        SetupError: a host, a network or an address of the references is not well formed.
    """
    decode, pipeline = bounds.decode, bounds.pipeline
    return Embedder(
        model=broadcast_model(spark, model, encoder),
        fetch_policy=bounds.references.build_policy(max_bytes=decode.max_image_bytes),
        decode_limits=decode.limits,
        fidelity=decode.fidelity,
        pipeline_limits=PipelineLimits(
            fetch_threads=pipeline.fetch_threads,
            decode_threads=pipeline.decode_threads or count_task_cores(spark),
            rows=pipeline.read_ahead_rows,
            bytes=pipeline.read_ahead_bytes,
            pixels=pipeline.decoding_pixels,
            decode_timeout_s=decode.timeout_s,
            forward_timeout_s=encoder.timeout_s,
        ),
        isolation=Isolation(decode.timeout_s, decode.isolated_memory_bytes),
        dedupe_entries=pipeline.dedupe_entries if pipeline.dedupe == "on" else None,
    )
