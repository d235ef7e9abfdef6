"""The adapter to Spark: Arrow batches of messages in, Arrow batches of outcomes out."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pyspark.sql import DataFrame

from embedstream.table.rows import (
    CARRIED_COLUMNS,
    OUTCOME_SCHEMA,
    Origin,
    build_outcome_batch,
)
from embedstream.worker.tally import Tallies, Tally
from embedstream.worker.task import Embedder
from embedstream_core.boundary import attempt
from embedstream_core.errors import Stage
from embedstream_core.messages.parse import Message, MessageReader
from embedstream_core.pipeline.work_record import WorkRecord
from embedstream_core.records import Entry

__all__ = ["OUTCOME_SCHEMA", "Featurizer", "featurize_messages"]

_POSITION_COLUMNS = ["topic", "partition", "offset"]
_ITEM_COLUMNS = [*_POSITION_COLUMNS, "key", "value", "headers"]


@dataclass(frozen=True)
class Featurizer:
    """The function that Spark calls on a worker with the messages of a partition."""

    embedder: Embedder
    reader: MessageReader
    tallies: Tallies | None = None

    def __call__(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Yield the outcome rows of each message, in order.

        Raises:
            SystemicError: the failure is not the fault of a single message.
        """
        in_flight: deque[tuple[pa.RecordBatch, list[Origin]]] = deque()

        def read_batches() -> Iterator[list[Entry]]:
            for batch in batches:
                carried, entries, origins = self._read(batch)
                in_flight.append((carried, origins))
                yield entries

        record, tally = WorkRecord(), Tally()
        for outcomes in self.embedder.embed(read_batches(), record):
            carried, origins = in_flight.popleft()
            # Spark takes the rows while the generator waits at the yield.
            with record.measure("write"):
                yield build_outcome_batch(carried, origins, outcomes)
            if self.tallies is not None:
                tally.add_rows(*_list_positions(carried), outcomes)
        if self.tallies is not None:
            tally.add_work(record)
            self.tallies.add(tally)

    def _read(self, batch: pa.RecordBatch) -> tuple[pa.RecordBatch, list[Entry], list[Origin]]:
        """Return the columns that stay as they are, the parsed messages, and their origins."""
        # Bytes are copied once, out of Arrow: Pillow would copy a view of them too, and a view
        # would keep its whole batch in memory, images included. That holds for `carried` too.
        carried = batch.select(CARRIED_COLUMNS).take(np.arange(batch.num_rows))
        columns = [batch.column(name).to_pylist() for name in _ITEM_COLUMNS]
        entries, origins = [], []
        accepts = self.embedder.modalities
        for topic, partition, offset, key, value, headers in zip(*columns, strict=True):
            position = f"{topic}-{partition}-{offset}"
            pairs = [(one["key"], one["value"]) for one in (() if headers is None else headers)]
            parse = partial(
                self.reader.read,
                Message(value=value, position=position, key=key, headers=pairs),
                accepts=accepts,
            )
            entry = attempt(parse, Stage.MESSAGE, position=position)
            entries.append(entry)
            origins.append(Origin.of(entry, position))
        return carried, entries, origins


def _list_positions(
    carried: pa.RecordBatch,
) -> tuple[list[tuple[str, int, int]], npt.NDArray[np.float64]]:
    """Return the position of each message, and when it was appended, in seconds since 1970."""
    columns = [carried.column(name).to_pylist() for name in _POSITION_COLUMNS]
    times = carried.column("timestamp").to_numpy(zero_copy_only=False)
    appended = np.where(np.isnat(times), np.nan, times.astype(np.int64) / 1e6)
    return list(zip(*columns, strict=True)), appended


def featurize_messages(messages: DataFrame, featurizer: Featurizer) -> DataFrame:
    """Return the outcomes of messages as rows of `OUTCOME_SCHEMA`."""
    return messages.mapInArrow(featurizer, OUTCOME_SCHEMA)
