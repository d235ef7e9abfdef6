"""Rows of a collection on their way into PostgreSQL and out of it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import psycopg
import pyarrow as pa
import pyarrow.compute as pc
from psycopg import sql

from embedstream.index.rows import KEY
from embedstream.index.stores.postgres_connection import EPOCH_MICROSECONDS

__all__ = [
    "ARROW_TYPES",
    "copy_rows",
    "list_names",
    "name_sql_type",
    "read_table",
    "unnest_keys",
]

ARROW_TYPES = {
    "text": pa.string(),
    "int4": pa.int32(),
    "int8": pa.int64(),
    "float8": pa.float64(),
    "timestamptz": pa.timestamp("us", "UTC"),
}
"""The types of a collection's columns, without the embedding, by PostgreSQL's names for them."""

_SQL_TYPES = {kind: name for name, kind in ARROW_TYPES.items()}
_KEY_TYPES = {"topic": "text", "partition": "int4", "offset": "int8", "message_key": "text"}
_INDEXED = ("topic", "message_key")
# Rows that are Python objects at the same time.
_COPY_ROWS = 4096
# PostgreSQL's first day, 24 November 4714 BC, in microseconds from the year 2000.
_EARLIEST = -211_813_488_000_000_000


def name_sql_type(field: pa.Field) -> str:
    """Return PostgreSQL's type of a column of `build_row_schema`."""
    if pa.types.is_fixed_size_list(field.type):
        return f"vector({field.type.list_size})"
    # The order of a language may change with the server's system, which would break an index.
    return 'text COLLATE "C"' if field.name in _INDEXED else _SQL_TYPES[field.type]


def list_names(columns: Iterable[str]) -> sql.Composed:
    """Return the names of columns, quoted, with commas between."""
    return sql.SQL(", ").join(map(sql.Identifier, columns))


def unnest_keys(columns: Sequence[str]) -> sql.Composed:
    """Return a table `given` of the query's parameters: one list for each of these columns."""
    arrays = ", ".join(f"%s::{_KEY_TYPES[name]}[]" for name in columns)
    return sql.SQL("unnest({}) AS given ({})").format(sql.SQL(arrays), list_names(columns))


def copy_rows(connection: psycopg.Connection, table: sql.Identifier, rows: pa.Table) -> None:
    """Add rows to a collection by COPY in its binary format."""
    statement = sql.SQL("COPY {} ({}) FROM STDIN (FORMAT binary)").format(
        table, list_names(rows.column_names)
    )
    with connection.cursor() as cursor, cursor.copy(statement) as copy:
        copy.set_types([_name_copy_type(field.type) for field in rows.schema])
        for batch in rows.to_batches(max_chunksize=_COPY_ROWS):
            columns = map(_list_values, batch.schema.names, batch.columns)
            for row in zip(*columns, strict=True):
                copy.write_row(row)


def read_table(
    cursor: psycopg.Cursor[Any] | psycopg.ServerCursor[Any],
    types: Sequence[pa.DataType],
    *,
    rows: int | None = None,
) -> pa.Table:
    """Return what a query has found, or the next rows of it; `types` are those of its columns."""
    names = [one.name for one in cursor.description or ()]
    found = cursor.fetchall() if rows is None else cursor.fetchmany(rows)
    columns = zip(*found, strict=True) if found else [()] * len(names)
    return pa.table([pa.array(*one) for one in zip(columns, types, strict=True)], names)


def _name_copy_type(kind: pa.DataType) -> str:
    if pa.types.is_fixed_size_list(kind):
        return "vector"
    # A timestamp is sent as the number that the server keeps.
    return "int8" if pa.types.is_timestamp(kind) else _SQL_TYPES[kind]


def _list_values(name: str, values: pa.Array) -> Sequence[Any]:
    kind = values.type
    if pa.types.is_fixed_size_list(kind):
        return list(values.flatten().to_numpy().reshape(len(values), kind.list_size))
    if pa.types.is_timestamp(kind):
        values = pc.subtract(values.cast(pa.int64()), EPOCH_MICROSECONDS)
        values = pc.max_element_wise(values, _EARLIEST, skip_nulls=False)
    elif pa.types.is_string(kind) and name not in KEY:
        # PostgreSQL's texts have no NUL, and one in a name must not stop the index.
        values = pc.replace_substring(values, "\0", "\ufffd")
    listed: list[Any] = values.to_pylist()
    return listed
