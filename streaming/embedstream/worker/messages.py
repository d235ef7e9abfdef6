"""The adapter to Spark: batches of messages in, the core pipeline, batches of outcomes out."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import pandas as pd
import pyarrow as pa
from pyspark.sql import DataFrame

from embedstream.config.sections import Transport
from embedstream.table.rows import (
    CARRIED_COLUMNS,
    OUTCOME_SCHEMA,
    Origin,
    outcome_batch,
    outcome_frame,
)
from embedstream.worker.counts import OutcomeCounts
from embedstream.worker.task import Embedder
from embedstream_core.boundary import attempt
from embedstream_core.errors import Stage
from embedstream_core.messages.parse import Message, parse_message
from embedstream_core.records import Entry
from embedstream_core.settings import MessageFormat

__all__ = ["OUTCOME_SCHEMA", "Featurizer", "featurize_messages"]

_ITEM_COLUMNS = ["topic", "partition", "offset", "key", "value", "headers"]

Batch: TypeAlias = "pd.DataFrame | pa.RecordBatch"


@dataclass(frozen=True)
class Featurizer:
    """Called by Spark on a worker with the messages of one partition, in batches."""

    embedder: Embedder
    message_format: MessageFormat
    id_header: str
    transport: Transport
    counts: OutcomeCounts | None = None

    def __call__(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """One outcome row per message, in order.

        Raises:
            SystemicError: no single message is to blame.
        """
        under_way: deque[tuple[Batch, list[Origin]]] = deque()
        build = outcome_batch if self.transport == "arrow" else outcome_frame

        def entries_of_batches() -> Iterator[list[Entry]]:
            for batch in batches:
                entries, origins = self._read(_columns(batch))
                under_way.append((_carried(batch), origins))
                yield entries

        model_id = self.embedder.model.card.model_id
        for outcomes in self.embedder.outcomes(entries_of_batches()):
            carried, origins = under_way.popleft()
            if self.counts is not None:
                self.counts.add(outcomes)
            yield build(carried, origins, outcomes, model_id=model_id)

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
        return attempt(
            lambda: parse_message(
                message, message_format=self.message_format, id_header=self.id_header
            ),
            Stage.MESSAGE,
        )


def featurize_messages(messages: DataFrame, featurizer: Featurizer) -> DataFrame:
    """Outcomes of messages: a row of `OUTCOME_SCHEMA` for each."""
    arrow = featurizer.transport == "arrow"
    transported = messages.mapInArrow if arrow else messages.mapInPandas
    return transported(featurizer, OUTCOME_SCHEMA)


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
