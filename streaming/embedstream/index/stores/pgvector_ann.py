"""Build the approximate index of a collection in PostgreSQL."""

from __future__ import annotations

import logging
from typing import Literal

import psycopg
from psycopg import errors, sql

from embedstream.index.stores.contract import AnnIndex
from embedstream.index.stores.pgvector_search import ANN_FLOATS, VECTOR_ANN_FLOATS

__all__ = ["build_hnsw"]

_log = logging.getLogger(__name__)

# pgvector's defaults.
_M = 16
_EF_CONSTRUCTION = 64
_EFFORTS = (20, 40, 80, 160, 320, 640)
# A row in the memory of a build, beside its vector: its lists of neighbours and its header.
_ROW_BYTES = 1500
# A graph that outgrows maintenance_work_mem, 64 MB by default, is built many times slower: it may
# take half of the server's memory for files. A higher setting of the role stays.
_SET_RESOURCES = """
SELECT
    set_config('maintenance_work_mem', greatest(
        pg_size_bytes(current_setting('maintenance_work_mem')),
        least(%s, pg_size_bytes(current_setting('effective_cache_size')) / 2)
    ) / 1024 || 'kB', true),
    set_config('max_parallel_maintenance_workers', greatest(
        current_setting('max_parallel_maintenance_workers')::int,
        current_setting('max_parallel_workers')::int / 2
    )::text, true)
"""


def build_hnsw(
    connection: psycopg.Connection, table: sql.Identifier, *, rows: int, dimension: int
) -> AnnIndex | None:
    """Build an HNSW index, and then drop the ones before; return None above 4,000 floats.

    Searches go on, and use an index before this one until it is there.
    """
    if dimension > ANN_FLOATS:
        return None
    old = _list_indexes(connection, table)
    try:
        _create(connection, table, rows=rows, dimension=dimension, workers="most")
    # Such as a container's small /dev/shm, which the workers of a build share.
    except (errors.InsufficientResources, errors.DiskFull, errors.OutOfMemory) as error:
        _log.warning(
            "the index of %s is built without workers of the server: %s",
            table.as_string(connection),
            error.diag.message_primary,
        )
        _create(connection, table, rows=rows, dimension=dimension, workers="none")
    for one in old:
        connection.execute(sql.SQL("DROP INDEX CONCURRENTLY {}").format(one))
    return AnnIndex("HNSW", {"m": _M, "ef_construction": _EF_CONSTRUCTION}, _EFFORTS)


def _list_indexes(connection: psycopg.Connection, table: sql.Identifier) -> list[sql.Identifier]:
    rows = connection.execute(
        "SELECT nspname, relname FROM pg_index JOIN pg_class cls ON cls.oid = indexrelid"
        " JOIN pg_namespace ns ON ns.oid = relnamespace JOIN pg_am am ON am.oid = relam"
        " WHERE indrelid = to_regclass(%s) AND amname = 'hnsw'",
        (table.as_string(connection),),
    ).fetchall()
    return [sql.Identifier(*row) for row in rows]


def _create(
    connection: psycopg.Connection,
    table: sql.Identifier,
    *,
    rows: int,
    dimension: int,
    workers: Literal["most", "none"],
) -> None:
    is_half = dimension > VECTOR_ANN_FLOATS
    column = f"(embedding::halfvec({dimension})) halfvec" if is_half else "embedding vector"
    statement = sql.SQL(
        "CREATE INDEX ON {} USING hnsw ({}_cosine_ops) WITH (m = {}, ef_construction = {})"
    ).format(table, sql.SQL(column), _M, _EF_CONSTRUCTION)
    needed = rows * (dimension * (2 if is_half else 4) + _ROW_BYTES)
    with connection.transaction():
        if workers == "most":
            connection.execute(_SET_RESOURCES, (needed,))
        else:
            connection.execute("SET LOCAL max_parallel_maintenance_workers = 0")
        connection.execute(statement)
