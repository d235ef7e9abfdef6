"""Outcomes with tombstones among them, and what Kafka's rule says that is left of them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any, Literal

from pyspark.sql import SparkSession

from embedstream.table.rows import OUTCOME_SCHEMA

__all__ = [
    "START",
    "Kind",
    "Outcomes",
    "append_outcomes",
    "find_hidden",
    "find_visible",
    "make_outcome",
]

Outcomes = list[dict[str, Any]]
Kind = Literal["embedding", "failure", "unowned", "tombstone"]

START = datetime(2026, 1, 1, tzinfo=UTC)

_ERRORS = {
    "failure": ("image_corrupt", "decode", "cut short"),
    "unowned": ("media_unsupported", "decode", "a video"),
    "tombstone": ("deleted", "message", "no value"),
}


def make_outcome(
    offset: int,
    kind: Kind = "embedding",
    *,
    partition: int = 0,
    key: bytes | None = b"key",
    image_id: str = "a",
    model_id: str = "one",
    minutes: int = 0,
) -> dict[str, Any]:
    """A row; `unowned` is a failure without a model, and `minutes` are after `START`."""
    return {
        "topic": "images",
        "partition": partition,
        "offset": offset,
        "timestamp": START + timedelta(minutes=minutes),
        "key": key,
        "image_id": image_id,
        "embedding": [0.5, float(offset)] if kind == "embedding" else None,
        "error": _ERRORS.get(kind),
        "model_id": model_id if kind in ("embedding", "failure") else None,
        "processed_at": datetime.now(UTC),
        "attributes": {},
    }


def append_outcomes(spark: SparkSession, outcomes: Outcomes, path: str) -> None:
    """Append rows to a table, as one file."""
    rows = [tuple(one.get(name) for name in OUTCOME_SCHEMA.names) for one in outcomes]
    frame = spark.createDataFrame(rows, OUTCOME_SCHEMA).coalesce(1)
    frame.write.format("delta").mode("append").save(path)


def find_hidden(outcomes: Outcomes) -> Outcomes:
    """The rows whose key has a tombstone of a greater offset in the same partition."""
    until: dict[tuple[int, bytes], int] = {}
    for one in outcomes:
        if one["error"] == _ERRORS["tombstone"] and one["key"] is not None:
            at = one["partition"], one["key"]
            until[at] = max(one["offset"], until.get(at, -1))
    return [
        one for one in outcomes if one["offset"] < until.get((one["partition"], one["key"]), -1)
    ]


def find_visible(outcomes: Outcomes) -> Outcomes:
    """The rows that are neither hidden nor tombstones."""
    hidden = [id(one) for one in find_hidden(outcomes)]
    return [
        one for one in outcomes if id(one) not in hidden and one["error"] != _ERRORS["tombstone"]
    ]
