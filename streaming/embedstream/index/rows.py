"""The rows of a collection: what the index keeps of an outcome."""

from __future__ import annotations

import re
from collections.abc import Sequence

import pyarrow as pa

from embedstream.follow.data_files import KEYS, Columns
from embedstream_core.errors import SetupError

__all__ = [
    "KEY",
    "build_key_schema",
    "build_row_schema",
    "build_rows",
    "check_attributes",
    "choose_columns",
    "name_attribute_column",
]

KEY = ("topic", "partition", "offset")
"""The columns that identify a row within its collection, which holds the rows of one model."""

_KEY_FIELDS = [
    pa.field("topic", pa.string()),
    pa.field("partition", pa.int32()),
    pa.field("offset", pa.int64()),
]
_FIELDS = [
    *_KEY_FIELDS,
    # The message's own key in hexadecimal digits, by which a tombstone finds its rows.
    pa.field("message_key", pa.string()),
    pa.field("image_id", pa.string()),
    pa.field("uri", pa.string()),
    pa.field("media_type", pa.string()),
    pa.field("duration_s", pa.float64()),
    pa.field("timestamp", pa.timestamp("us", "UTC")),
]


def build_row_schema(dimension: int, attributes: Sequence[str]) -> pa.Schema:
    """Return the schema of a collection's rows; `embedding` is float32 of shape (dimension,)."""
    return pa.schema(
        [
            *_FIELDS,
            *(pa.field(name_attribute_column(name), pa.string()) for name in attributes),
            pa.field("embedding", pa.list_(pa.float32(), dimension)),
        ]
    )


def choose_columns(attributes: Sequence[str]) -> Columns:
    """Return the columns of outcomes on their way to the index."""
    by_column = {name_attribute_column(one): one for one in attributes}
    contents = [one for one in _FIELDS if one.name not in (*KEY, "message_key")]
    schema = [
        *KEYS.schema,
        *contents,
        *(pa.field(name, pa.string()) for name in by_column),
        pa.field("embedding", pa.list_(pa.float32())),
    ]
    return Columns(pa.schema(schema), by_column)


def build_rows(outcomes: pa.Table, *, dimension: int, attributes: Sequence[str]) -> pa.Table:
    """Return outcomes as rows of a collection; each has an embedding of shape (dimension,)."""
    schema = build_row_schema(dimension, attributes)
    kind = schema.field("embedding").type
    vectors = [
        pa.FixedSizeListArray.from_arrays(_fill_nulls(chunk.flatten()), type=kind)
        for chunk in outcomes.column("embedding").chunks
    ]
    keys = [key and key.hex() for key in outcomes.column("key").to_pylist()]
    columns = {
        "message_key": pa.array(keys, pa.string()),
        "embedding": pa.chunked_array(vectors, kind),
    }
    return pa.table(
        [columns[name] if name in columns else outcomes.column(name) for name in schema.names],
        schema=schema,
    )


def _fill_nulls(floats: pa.Array) -> pa.Array:
    return floats.fill_null(float("nan")) if floats.null_count else floats


def build_key_schema() -> pa.Schema:
    """Return the schema of the columns in `KEY`."""
    return pa.schema(_KEY_FIELDS)


def check_attributes(attributes: Sequence[str]) -> None:
    """Check that each attribute has a column of its own.

    Raises:
        SetupError: two of `index.attributes` have the same column.
    """
    seen: dict[str, str] = {}
    for name in attributes:
        column = name_attribute_column(name)
        if column in seen:
            raise SetupError(
                f"index.attributes names '{seen[column]}' and '{name}', which have the same column "
                f"{column}; leave one of them out"
            )
        seen[column] = name


def name_attribute_column(attribute: str) -> str:
    """Return the column of an attribute: `attribute_`, and its name with `_` for odd characters."""
    return f"attribute_{re.sub(r'[^a-z0-9]+', '_', attribute.lower())[:40]}"
