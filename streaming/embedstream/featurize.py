"""The adapter to Spark: batches of messages in, the core pipeline, batches of outcomes out."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import pandas as pd
import pyarrow as pa
from pyspark import TaskContext
from pyspark.sql import DataFrame
from pyspark.sql import functions as f

from embedstream.broadcast import BroadcastModel
from embedstream.outcomes import (
    CARRIED_COLUMNS,
    OUTCOME_SCHEMA,
    Origin,
    outcome_batch,
    outcome_frame,
)
from embedstream_core.decode import DecodeLimits, Fidelity
from embedstream_core.engine import Engine
from embedstream_core.errors import Code, ItemError, SystemicError
from embedstream_core.fetch import FetchPolicy, open_fetcher
from embedstream_core.isolated import IsolatedDecoder, Isolation
from embedstream_core.known import Known, open_known
from embedstream_core.message import Message, MessageFormat, parse_message
from embedstream_core.pipeline import Pipeline, PipelineLimits
from embedstream_core.records import Failure, Item
from embedstream_core.watchdog import Watchdog

__all__ = ["OUTCOME_SCHEMA", "Featurizer", "Transport", "featurize"]

Transport = Literal["pandas", "arrow"]

# A task that failed by no item's fault ends after a pause; it doubles with each attempt.
_PAUSE_S = 1.0
_LONGEST_PAUSE_S = 60.0

_LOADING_TIMEOUT_S = 120.0

_ITEM_COLUMNS = ["topic", "partition", "offset", "key", "value", "headers"]

Entry = Item | Failure
Batch: TypeAlias = "pd.DataFrame | pa.RecordBatch"


@dataclass(frozen=True)
class Featurizer:
    """What a task needs to know. Called by Spark on a worker with the batches of one partition.

    `dedupe_entries` bounds the embeddings that are known at once; None makes each anew.
    """

    model: BroadcastModel
    message_format: MessageFormat
    id_header: str
    fetch_policy: FetchPolicy
    decode_limits: DecodeLimits
    fidelity: Fidelity
    pipeline_limits: PipelineLimits
    isolation: Isolation
    transport: Transport
    dedupe_entries: int | None

    def __call__(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """One outcome row per message, in order.

        Raises:
            SystemicError: after a pause, for Spark tries a task again at once. The next attempt has
                a process of its own: Spark ends a worker whose task failed.
        """
        try:
            yield from self._outcomes(batches)
        except SystemicError:
            time.sleep(min(_PAUSE_S * 2 ** _attempt(), _LONGEST_PAUSE_S))
            raise

    def _outcomes(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        under_way: deque[tuple[Batch, list[Origin]]] = deque()
        build = outcome_batch if self.transport == "arrow" else outcome_frame

        def entries_of_batches() -> Iterator[list[Entry]]:
            for batch in batches:
                entries, origins = self._read(_columns(batch))
                under_way.append((_carried(batch), origins))
                yield entries

        with (
            open_fetcher(self.fetch_policy) as fetcher,
            self._open_known() as known,
            self._open_isolated() as isolated,
            Watchdog() as watchdog,
        ):
            pipeline = Pipeline(
                self._engine(watchdog),
                self.model.card.preprocessing,
                fetch=fetcher.fetch,
                decode_limits=self.decode_limits,
                fidelity=self.fidelity,
                limits=self.pipeline_limits,
                known=known,
                isolated=isolated,
                watchdog=watchdog,
            )
            for outcomes in pipeline.run(entries_of_batches()):
                carried, origins = under_way.popleft()
                yield build(carried, origins, outcomes, model_id=self.model.card.model_id)

    def _engine(self, watchdog: Watchdog) -> Engine:
        """This worker's engine: the first forward pass, as it starts, may hang like any other."""
        timeout_s = _LOADING_TIMEOUT_S + self.pipeline_limits.forward_timeout_s
        with watchdog.watch("starting the encoder", timeout_s=timeout_s):
            return self.model.engine()

    @contextmanager
    def _open_isolated(self) -> Iterator[IsolatedDecoder | None]:
        """A decoder in a process of its own where this task has failed before.

        One of its images may have ended the worker: now it ends no more than its own decoding.
        """
        if _attempt() == 0:
            yield None
            return
        decoder = IsolatedDecoder(
            self.model.card.preprocessing,
            self.decode_limits,
            fidelity=self.fidelity,
            isolation=self.isolation,
        )
        try:
            yield decoder
        finally:
            decoder.close()

    def _open_known(self) -> AbstractContextManager[Known | None]:
        if self.dedupe_entries is None:
            return nullcontext()
        path = self.model.known_file(self.decode_limits, self.fidelity)
        return open_known(path, entries=self.dedupe_entries)

    def _read(self, columns: dict[str, list[Any]]) -> tuple[list[Entry], list[Origin]]:
        positions = _positions(columns)
        rows = zip(positions, columns["key"], columns["value"], columns["headers"], strict=True)
        entries = [self._entry(*row) for row in rows]
        return entries, [*map(Origin.of, entries, positions)]

    def _entry(
        self, position: str, key: bytes | None, value: bytes, headers: Sequence[Any] | None
    ) -> Entry:
        pairs = [
            (header["key"], header["value"]) for header in (() if headers is None else headers)
        ]
        message = Message(value=value, position=position, key=key, headers=pairs)
        try:
            return parse_message(
                message, message_format=self.message_format, id_header=self.id_header
            )
        except ItemError as error:
            return Failure(error.code, error.stage, error.message)


def featurize(messages: DataFrame, featurizer: Featurizer) -> DataFrame:
    """Outcomes of messages: a row of `OUTCOME_SCHEMA` for each.

    Failures are counted by code in the observation `outcomes`.
    """
    arrow = featurizer.transport == "arrow"
    transported = messages.mapInArrow if arrow else messages.mapInPandas
    outcomes = transported(featurizer, OUTCOME_SCHEMA)
    failed = [f.count_if(f.col("error.code") == code).alias(code) for code in Code]
    return outcomes.observe("outcomes", f.count("embedding").alias("embeddings"), *failed)


def _attempt() -> int:
    task = TaskContext.get()
    return task.attemptNumber() if task else 0


def _columns(batch: Batch) -> dict[str, list[Any]]:
    """The columns that make an item, as lists of Python's own types.

    An image's bytes are copied once, out of Arrow: Pillow would copy a view of them too, and a view
    would keep its whole batch in memory.
    """
    if isinstance(batch, pd.DataFrame):
        return {name: batch[name].tolist() for name in _ITEM_COLUMNS}
    return {name: batch.column(name).to_pylist() for name in _ITEM_COLUMNS}


def _carried(batch: Batch) -> Batch:
    if isinstance(batch, pd.DataFrame):
        return batch[CARRIED_COLUMNS]
    # All columns of a batch lie in one piece of memory, the images too: take copies out of it.
    return batch.select(CARRIED_COLUMNS).take(pa.array(range(batch.num_rows), pa.int64()))


def _positions(columns: dict[str, list[Any]]) -> list[str]:
    triples = zip(columns["topic"], columns["partition"], columns["offset"], strict=True)
    return [f"{topic}-{partition}-{offset}" for topic, partition, offset in triples]
