"""Search a collection in PostgreSQL."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import psycopg
import pyarrow as pa
from psycopg import sql

from embedstream.index.stores.contract import Vector
from embedstream.index.stores.postgres_rows import ARROW_TYPES, list_names, read_table
from embedstream_core.errors import SetupError

__all__ = ["ANN_FLOATS", "VECTOR_ANN_FLOATS", "Column", "describe_columns", "search"]

VECTOR_ANN_FLOATS = 2000
"""The greatest dimension of an HNSW index over `vector`, by pgvector's documentation."""

ANN_FLOATS = 4000
"""The greatest dimension of one over `halfvec`."""

# The greatest value of hnsw.ef_search.
_GREATEST_EFFORT = 1000
# Half precision swaps rows whose similarities differ by less than 0.001, and a scan that goes on
# for a condition returns rows out of order: that many times k rows are compared again in full.
_CANDIDATES = 4


# The planner takes vectors outside of the table's pages for free to read (pgvector's README).
_SET_EFFORT = (
    "SET LOCAL enable_seqscan = off; SET LOCAL hnsw.iterative_scan = relaxed_order;"
    " SET LOCAL hnsw.ef_search = {}"
)


class Column(NamedTuple):
    """A column of a table: the name of its type, and the dimension of a vector."""

    type: str
    modifier: int


def describe_columns(connection: psycopg.Connection, table: sql.Identifier) -> dict[str, Column]:
    """Return the columns of a collection by their names, in their order.

    Raises:
        SetupError: there is no such collection.
    """
    rows = connection.execute(
        "SELECT attname, typname, atttypmod"
        " FROM pg_attribute JOIN pg_type ON pg_type.oid = atttypid"
        " WHERE attrelid = to_regclass(%s) AND attnum > 0 AND NOT attisdropped ORDER BY attnum",
        (table.as_string(connection),),
    ).fetchall()
    if not rows:
        raise SetupError(
            f"the index has no collection {table.as_string(connection)}: it may have been built "
            "again in the meantime; repeat the command"
        )
    return {name: Column(kind, modifier) for name, kind, modifier in rows}


def search(
    connection: psycopg.Connection,
    table: sql.Identifier,
    vector: Vector,
    k: int,
    *,
    where: str | None,
    effort: int | None,
) -> pa.Table:
    """Return the k nearest rows; see `Store.search`."""
    columns = describe_columns(connection, table)
    dimension = columns["embedding"].modifier
    # A percent sign marks a parameter, and a comment at the end of the condition ends with a line.
    condition = "" if where is None else f"WHERE ({where.replace('%', '%%')}\n)"
    rows = sql.SQL("SELECT * FROM {} {}").format(table, sql.SQL(condition))
    is_exact_order = dimension <= VECTOR_ANN_FLOATS and where is None
    candidates = k if is_exact_order else _CANDIDATES * k
    found = None
    with connection.transaction():
        connection.execute("SET TRANSACTION READ ONLY")
        if (
            effort is not None
            and dimension <= ANN_FLOATS
            and (where is None or _is_frequent(connection, table, rows, candidates))
        ):
            connection.execute(_SET_EFFORT.format(min(max(effort, candidates), _GREATEST_EFFORT)))
            nearest = sql.SQL("{} ORDER BY {} LIMIT {}").format(
                rows, _measure_distance(dimension), candidates
            )
            found = _rank(connection, nearest, columns, vector=vector, k=k)
        if found is None or found.num_rows < k:
            # The scan of the index ends early, and it has no vectors of zeros.
            connection.execute("SET LOCAL enable_seqscan = on")
            found = _rank(connection, rows, columns, vector=vector, k=k)
    similarities = 1 - found["distance"].to_numpy()
    return found.drop_columns("distance").append_column(
        "similarity", pa.array(similarities.astype(np.float32))
    )


def _is_frequent(
    connection: psycopg.Connection, table: sql.Identifier, rows: sql.Composable, candidates: int
) -> bool:
    """Return whether a condition holds for so many rows that the index is worth its scan.

    For a share s of n rows, the scan compares about candidates / s vectors before it has enough,
    and an exact search s * n. The planner estimates the share.
    """
    query = sql.SQL("EXPLAIN (FORMAT json) {}").format(rows)
    # Sent in this form, the text can be one statement only.
    ((plan,),) = connection.execute(query, {}, binary=True).fetchall()
    ((total,),) = connection.execute(
        "SELECT reltuples FROM pg_class WHERE oid = to_regclass(%s)",
        (table.as_string(connection),),
    ).fetchall()
    return bool(plan[0]["Plan"]["Plan Rows"] ** 2 > candidates * total)


def _measure_distance(dimension: int) -> sql.Composable:
    """Return the distance in the form over which the index of a collection is built."""
    if dimension <= VECTOR_ANN_FLOATS:
        return sql.SQL("embedding <=> %(vector)s")
    return sql.SQL("embedding::halfvec({0}) <=> %(vector)s::halfvec({0})").format(dimension)


def _rank(
    connection: psycopg.Connection,
    rows: sql.Composable,
    columns: Mapping[str, Column],
    *,
    vector: Vector,
    k: int,
) -> pa.Table:
    """Return the k nearest of `rows`, all of which are compared, with their distances."""
    kept = {name: one for name, one in columns.items() if name != "embedding"}
    # The distance of a vector of zeros is NaN. In this form, no index is used.
    query = sql.SQL(
        "SELECT {}, coalesce(nullif(embedding <=> %(vector)s, 'NaN'), 1) AS distance FROM ({})"
        " AS candidates ORDER BY distance LIMIT {}"
    ).format(list_names(kept), rows, k)
    cursor = connection.execute(query, {"vector": vector}, binary=True)
    return read_table(cursor, [*(ARROW_TYPES[one.type] for one in kept.values()), pa.float64()])
