"""Rows of outcomes, built as Arrow batches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import chain
from operator import attrgetter
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pyspark.sql.pandas.types import to_arrow_type
from pyspark.sql.types import (
    ArrayType,
    BinaryType,
    BooleanType,
    DoubleType,
    FloatType,
    IntegerType,
    LongType,
    MapType,
    StringType,
    StructType,
    TimestampType,
)

from embedstream_core.records import Deletion, Embedding, Entry, Failure, Outcome
from embedstream_core.redaction import redact_attributes, redact_text, redact_uri

__all__ = [
    "CARRIED_COLUMNS",
    "COLUMN_TYPE",
    "MEDIA_TYPE",
    "OUTCOME_ARROW_SCHEMA",
    "OUTCOME_SCHEMA",
    "Origin",
    "build_error_struct",
    "build_outcome_batch",
    "build_outcome_column",
    "build_vector_column",
]

MEDIA_TYPE = (
    StructType()
    .add("type", StringType())
    .add("width", IntegerType())
    .add("height", IntegerType())
    .add("duration_s", DoubleType())
    .add("characters", IntegerType())
    .add("truncated", BooleanType())
)
"""The column `media`: what is known of a row's content, in the fields of `Media`."""

_ERROR = StructType().add("code", StringType()).add("stage", StringType())
OUTCOME_SCHEMA = (
    StructType()
    .add("topic", StringType())
    .add("partition", IntegerType())
    .add("offset", LongType())
    .add("timestamp", TimestampType())
    .add("key", BinaryType())
    .add("image_id", StringType())
    .add("uri", StringType())
    .add("embedding", ArrayType(FloatType()))
    .add("error", _ERROR.add("message", StringType()))
    .add("model_id", StringType())
    .add("media", MEDIA_TYPE)
    .add("content_sha256", StringType())
    .add("processed_at", TimestampType())
    .add("attributes", MapType(StringType(), StringType()))
)

CARRIED_COLUMNS = ["topic", "partition", "offset", "timestamp", "key"]
"""The columns that a row takes over from its message unchanged."""

COLUMN_TYPE = StructType([OUTCOME_SCHEMA["embedding"], OUTCOME_SCHEMA["error"]])
"""An outcome as one column: a vector, or an error."""

# PySpark 4.1 and 4.2 take the time zone of timestamps by arguments of different names.
OUTCOME_ARROW_SCHEMA = pa.schema(
    pa.field(
        column.name,
        pa.timestamp("us", tz="UTC")
        if isinstance(column.dataType, TimestampType)
        else to_arrow_type(column.dataType),
        column.nullable,
    )
    for column in OUTCOME_SCHEMA
)
"""The same table's rows as Arrow batches."""
_GET_MEDIA_VALUES = attrgetter(*MEDIA_TYPE.names)


@dataclass(frozen=True, slots=True)
class Origin:
    """The columns of a row that describe its item, without the item's content and secrets.

    Tables are copied and shared, so the URI has no user name, password, signature or key, and
    attributes that are named as secrets are redacted, both by `embedstream_core.redaction`. The
    message's own key is kept as it is.
    """

    image_id: str
    uri: str | None
    attributes: Mapping[str, str]

    @classmethod
    def of(cls, entry: Entry, position: str) -> Origin:
        """Return an entry's origin; a message that could not be read is identified by its position.

        Args:
            entry: The parsed message, or the reason why it could not be parsed.
            position: The message's topic, partition and offset in one text.
        """
        if isinstance(entry, Failure):
            return cls(position, None, {})
        given = None if isinstance(entry, Deletion) else entry.uri
        uri = None if given is None else redact_uri(given)
        return cls(redact_text(entry.image_id), uri, redact_attributes(entry.attributes))


def build_outcome_batch(
    carried: pa.RecordBatch, origins: Sequence[Origin], outcomes: Sequence[Sequence[Outcome]]
) -> pa.RecordBatch:
    """Return the rows of one input Arrow batch, in the columns of `OUTCOME_ARROW_SCHEMA`.

    Args:
        carried: The `CARRIED_COLUMNS` of the messages.
        origins: One for each message.
        outcomes: Those of each message; each outcome becomes a row, and a message without one has
            no row.
    """
    if (messages := _find_messages(outcomes)) is not None:
        carried = carried.take(pa.array(messages))
        origins = [origins[message] for message in messages]
    flat = list(chain.from_iterable(outcomes))
    now = pa.scalar(datetime.now(UTC), OUTCOME_ARROW_SCHEMA.field("processed_at").type)
    columns: dict[str, Any] = {
        **{name: carried.column(name) for name in CARRIED_COLUMNS},
        "image_id": [origin.image_id for origin in origins],
        "uri": [origin.uri for origin in origins],
        "embedding": build_vector_column(flat),
        "error": [build_error_struct(outcome) for outcome in flat],
        "model_id": [outcome.model_id for outcome in flat],
        # Of tuples; dictionaries take three times as long.
        "media": pa.array(map(_get_media_values, flat), OUTCOME_ARROW_SCHEMA.field("media").type),
        "content_sha256": [outcome.content_sha256 for outcome in flat],
        "processed_at": pa.repeat(now, len(flat)),
        "attributes": [dict(origin.attributes) for origin in origins],
    }
    return pa.RecordBatch.from_pydict(columns, schema=OUTCOME_ARROW_SCHEMA)


def build_outcome_column(outcomes: Sequence[Outcome]) -> pa.StructArray:
    """Return the outcomes as one column of `COLUMN_TYPE`."""
    errors = pa.array(map(build_error_struct, outcomes), OUTCOME_ARROW_SCHEMA.field("error").type)
    return pa.StructArray.from_arrays([build_vector_column(outcomes), errors], COLUMN_TYPE.names)


def build_vector_column(outcomes: Sequence[Outcome]) -> pa.ListArray:
    """Return the vectors as one column, null for failures.

    The numbers are copied as arrays, without a Python object for each.

    Raises:
        pyarrow.ArrowInvalid: they have more numbers in total than an Arrow list column holds, 2^31.
    """
    none = np.empty(0, np.float32)
    vectors = [one.vector if isinstance(one, Embedding) else none for one in outcomes]
    # Offsets of 64 bits, so that pyarrow refuses what 32 bits do not hold.
    offsets = pa.array(np.cumsum([0, *map(len, vectors)], dtype=np.int64), pa.int32())
    return pa.ListArray.from_arrays(
        offsets,
        np.concatenate([none, *vectors]),
        type=OUTCOME_ARROW_SCHEMA.field("embedding").type,
        mask=pa.array([isinstance(outcome, Failure) for outcome in outcomes], pa.bool_()),
    )


def build_error_struct(outcome: Outcome) -> dict[str, str] | None:
    """Return the value of the column `error`."""
    if isinstance(outcome, Embedding):
        return None
    return {"code": outcome.code, "stage": outcome.stage, "message": outcome.message}


def _find_messages(outcomes: Sequence[Sequence[Outcome]]) -> npt.NDArray[np.int64] | None:
    """Return the message of each outcome by its number; None if each has exactly one."""
    counts = list(map(len, outcomes))
    if counts == [1] * len(counts):
        return None
    return np.repeat(np.arange(len(counts)), counts)


def _get_media_values(outcome: Outcome) -> tuple[Any, ...] | None:
    """Return the fields of `MEDIA_TYPE`, in order."""
    return None if outcome.media is None else _GET_MEDIA_VALUES(outcome.media)
