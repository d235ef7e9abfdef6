"""The mapInPandas adapter: frames of messages in, the core pipeline, frames of outcomes out."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
from pyspark.sql import DataFrame
from pyspark.sql import functions as f
from pyspark.sql.types import (
    ArrayType,
    BinaryType,
    FloatType,
    IntegerType,
    LongType,
    MapType,
    StringType,
    StructField,
    StructType,
    TimestampType,
)

from embedstream.broadcast import BroadcastModel
from embedstream_core.decode import DecodeLimits, Fidelity
from embedstream_core.errors import Code, ItemError
from embedstream_core.fetch import FetchPolicy, open_fetcher
from embedstream_core.message import Message, MessageFormat, parse_message
from embedstream_core.pipeline import Pipeline, PipelineLimits
from embedstream_core.records import Embedding, Failure, Item, Outcome

__all__ = ["OUTCOME_SCHEMA", "Featurizer", "featurize"]

OUTCOME_SCHEMA = StructType(
    [
        StructField("topic", StringType()),
        StructField("partition", IntegerType()),
        StructField("offset", LongType()),
        StructField("timestamp", TimestampType()),
        StructField("key", BinaryType()),
        StructField("image_id", StringType()),
        StructField("uri", StringType()),
        StructField("embedding", ArrayType(FloatType())),
        StructField(
            "error",
            StructType(
                [
                    StructField("code", StringType()),
                    StructField("stage", StringType()),
                    StructField("message", StringType()),
                ]
            ),
        ),
        StructField("model_id", StringType()),
        StructField("width", IntegerType()),
        StructField("height", IntegerType()),
        StructField("content_sha256", StringType()),
        StructField("processed_at", TimestampType()),
        StructField("attributes", MapType(StringType(), StringType())),
    ]
)

_CARRIED_COLUMNS = ["topic", "partition", "offset", "timestamp", "key"]

Entry = Item | Failure


@dataclass(frozen=True)
class Featurizer:
    """What a task needs to know. Called by Spark on a worker with the frames of one partition."""

    model: BroadcastModel
    message_format: MessageFormat
    id_header: str
    fetch_policy: FetchPolicy
    decode_limits: DecodeLimits
    fidelity: Fidelity
    pipeline_limits: PipelineLimits

    def __call__(self, frames: Iterator[pd.DataFrame]) -> Iterator[pd.DataFrame]:
        """One outcome row per message, in order."""
        under_way: deque[tuple[pd.DataFrame, list[Entry]]] = deque()

        def batches() -> Iterator[list[Entry]]:
            for frame in frames:
                entries = [self._entry(*row) for row in _rows(frame)]
                under_way.append((frame[_CARRIED_COLUMNS], entries))
                yield entries

        with open_fetcher(self.fetch_policy) as fetcher:
            pipeline = Pipeline(
                self.model.engine(),
                self.model.card.preprocessing,
                fetch=fetcher.fetch,
                decode_limits=self.decode_limits,
                fidelity=self.fidelity,
                limits=self.pipeline_limits,
            )
            for outcomes in pipeline.run(batches()):
                frame, entries = under_way.popleft()
                yield outcome_frame(frame, entries, outcomes, self.model.card.model_id)

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
    outcomes = messages.mapInPandas(featurizer, OUTCOME_SCHEMA)
    failed = [f.count_if(f.col("error.code") == code).alias(code) for code in Code]
    return outcomes.observe("outcomes", f.count("embedding").alias("embeddings"), *failed)


def outcome_frame(
    frame: pd.DataFrame, entries: Sequence[Entry], outcomes: Sequence[Outcome], model_id: str
) -> pd.DataFrame:
    """The rows of one input frame, in the columns of `OUTCOME_SCHEMA`."""
    positions = _positions(frame)
    columns: dict[str, Any] = {
        **{name: frame[name] for name in _CARRIED_COLUMNS},
        "image_id": [
            entry.image_id if isinstance(entry, Item) else position
            for entry, position in zip(entries, positions, strict=True)
        ],
        "uri": [entry.uri if isinstance(entry, Item) else None for entry in entries],
        "embedding": [_of_embedding(outcome, "vector") for outcome in outcomes],
        "error": [_error(outcome) for outcome in outcomes],
        "model_id": model_id,
        "width": pd.array([_of_embedding(outcome, "width") for outcome in outcomes], "Int32"),
        "height": pd.array([_of_embedding(outcome, "height") for outcome in outcomes], "Int32"),
        "content_sha256": [outcome.content_sha256 for outcome in outcomes],
        "processed_at": pd.Timestamp.now("UTC"),
        "attributes": [
            dict(entry.attributes) if isinstance(entry, Item) else {} for entry in entries
        ],
    }
    return pd.DataFrame(columns, index=frame.index)


def _rows(frame: pd.DataFrame) -> Iterator[tuple[str, bytes | None, bytes, Any]]:
    return zip(_positions(frame), frame["key"], frame["value"], frame["headers"], strict=True)


def _positions(frame: pd.DataFrame) -> list[str]:
    triples = zip(frame["topic"], frame["partition"], frame["offset"], strict=True)
    return [f"{topic}-{partition}-{offset}" for topic, partition, offset in triples]


def _of_embedding(outcome: Outcome, name: str) -> Any:
    return getattr(outcome, name) if isinstance(outcome, Embedding) else None


def _error(outcome: Outcome) -> dict[str, str] | None:
    if isinstance(outcome, Embedding):
        return None
    return {"code": outcome.code, "stage": outcome.stage, "message": outcome.message}
