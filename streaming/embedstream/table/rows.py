"""The rows of outcomes, built as a pandas frame or as an Arrow batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from pyspark.sql.pandas.types import to_arrow_schema
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

from embedstream_core.records import Embedding, Failure, Item, Outcome
from embedstream_core.redaction import redacted_attributes, redacted_text, redacted_uri

__all__ = [
    "CARRIED_COLUMNS",
    "COLUMN_TYPE",
    "OUTCOME_SCHEMA",
    "Origin",
    "error_struct",
    "outcome_batch",
    "outcome_column",
    "outcome_frame",
    "vector_column",
]

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

CARRIED_COLUMNS = ["topic", "partition", "offset", "timestamp", "key"]
"""What a row has from its message as it is."""

_ARROW_SCHEMA = to_arrow_schema(OUTCOME_SCHEMA, timezone="UTC")

COLUMN_TYPE = StructType([OUTCOME_SCHEMA["embedding"], OUTCOME_SCHEMA["error"]])
"""An outcome as one column: a vector, or an error."""


@dataclass(frozen=True, slots=True)
class Origin:
    """What a row tells of its item; unlike the item, it holds neither the content nor secrets.

    Tables are copied and shared, so a URI stands in its row without user name, password, signature
    or key, as `embedstream_core.redaction` has it, and so do attributes that are named as secrets.
    The message's own key is kept as it is.
    """

    image_id: str
    uri: str | None
    attributes: Mapping[str, str]

    @classmethod
    def of(cls, entry: Item | Failure, position: str) -> Origin:
        """A message that could not be read is known by its position."""
        if isinstance(entry, Item):
            uri = None if entry.uri is None else redacted_uri(entry.uri)
            attributes = redacted_attributes(entry.attributes)
            return cls(redacted_text(entry.image_id), uri, attributes)
        return cls(position, None, {})


def outcome_frame(
    carried: pd.DataFrame, origins: Sequence[Origin], outcomes: Sequence[Outcome], *, model_id: str
) -> pd.DataFrame:
    """The rows of one input frame, in the columns of `OUTCOME_SCHEMA`.

    `carried` has the `CARRIED_COLUMNS` of its messages.
    """
    told = _told(origins, outcomes)
    columns: dict[str, Any] = {
        **{name: carried[name] for name in CARRIED_COLUMNS},
        **told,
        # PySpark makes lists of them anyway, from arrays in three times the time.
        "embedding": [
            outcome.vector.tolist() if isinstance(outcome, Embedding) else None
            for outcome in outcomes
        ],
        "model_id": model_id,
        "width": pd.array(told["width"], "Int32"),
        "height": pd.array(told["height"], "Int32"),
        "processed_at": pd.Timestamp.now("UTC"),
    }
    return pd.DataFrame(columns, index=carried.index, columns=OUTCOME_SCHEMA.names)


def outcome_batch(
    carried: pa.RecordBatch,
    origins: Sequence[Origin],
    outcomes: Sequence[Outcome],
    *,
    model_id: str,
) -> pa.RecordBatch:
    """The rows of one input batch; `outcome_frame` in Arrow."""
    now = pa.scalar(pd.Timestamp.now("UTC"), _ARROW_SCHEMA.field("processed_at").type)
    columns: dict[str, Any] = {
        **{name: carried.column(name) for name in CARRIED_COLUMNS},
        **_told(origins, outcomes),
        "embedding": vector_column(outcomes),
        "model_id": pa.repeat(model_id, len(outcomes)),
        "processed_at": pa.repeat(now, len(outcomes)),
    }
    return pa.RecordBatch.from_pydict(columns, schema=_ARROW_SCHEMA)


def outcome_column(outcomes: Sequence[Outcome]) -> pa.StructArray:
    """Outcomes as one column of `COLUMN_TYPE`."""
    errors = pa.array(map(error_struct, outcomes), _ARROW_SCHEMA.field("error").type)
    return pa.StructArray.from_arrays([vector_column(outcomes), errors], COLUMN_TYPE.names)


def vector_column(outcomes: Sequence[Outcome]) -> pa.ListArray:
    """The vectors as one column, without a Python object for each number; null for failures."""
    vectors = [outcome.vector for outcome in outcomes if isinstance(outcome, Embedding)]
    sizes = [_size(outcome) for outcome in outcomes]
    return pa.ListArray.from_arrays(
        np.cumsum([0, *sizes], dtype=np.int32),
        np.concatenate([np.empty(0, np.float32), *vectors]),
        type=_ARROW_SCHEMA.field("embedding").type,
        mask=pa.array([isinstance(outcome, Failure) for outcome in outcomes], pa.bool_()),
    )


def _size(outcome: Outcome) -> int:
    return len(outcome.vector) if isinstance(outcome, Embedding) else 0


def _told(origins: Sequence[Origin], outcomes: Sequence[Outcome]) -> dict[str, list[Any]]:
    return {
        "image_id": [origin.image_id for origin in origins],
        "uri": [origin.uri for origin in origins],
        "error": [error_struct(outcome) for outcome in outcomes],
        "width": [_of_embedding(outcome, "width") for outcome in outcomes],
        "height": [_of_embedding(outcome, "height") for outcome in outcomes],
        "content_sha256": [outcome.content_sha256 for outcome in outcomes],
        "attributes": [dict(origin.attributes) for origin in origins],
    }


def _of_embedding(outcome: Outcome, name: str) -> Any:
    return getattr(outcome, name) if isinstance(outcome, Embedding) else None


def error_struct(outcome: Outcome) -> dict[str, str] | None:
    """What stands in the column `error`."""
    if isinstance(outcome, Embedding):
        return None
    return {"code": outcome.code, "stage": outcome.stage, "message": outcome.message}
