"""Read an index in PostgreSQL."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import psycopg
import pyarrow as pa
from psycopg import sql

from embedstream.config.sections import IndexConfig
from embedstream.index.rows import KEY, build_key_schema
from embedstream.index.stores.contract import StoreUnavailable, Vector
from embedstream.index.stores.pgvector_search import describe_columns, search
from embedstream.index.stores.postgres_connection import (
    connect,
    convert_errors,
    describe_place,
    prepare_session,
)
from embedstream.index.stores.postgres_rows import list_names, read_table, unnest_keys
from embedstream_core.errors import SetupError

__all__ = ["STATE_TABLE", "TABLE_COMMENT", "PgvectorReader"]

Result = TypeVar("Result")

STATE_TABLE = "embedstream_state"
TABLE_COMMENT = "embedstream index"
"""The comment on each table of an index, whose schema holds no other tables."""

# Rows that `list_keys` holds as Python objects at the same time.
_KEY_ROWS = 50_000


class PgvectorReader:
    """Reads an index. A connection that was lost is opened again, once for each call."""

    def __init__(self, config: IndexConfig) -> None:
        self._config = config
        self._schema = config.db_schema
        self._connection = connect(config)
        self._address = describe_place(self._connection, self._schema)

    @property
    def dialect(self) -> str:
        """Sqlglot's name of the dialect of `where`."""
        return "postgres"

    @property
    def address(self) -> str:
        """Where the index is, without secrets, for messages."""
        return self._address

    def prepare(self) -> None:
        """Check the schema.

        Raises:
            SetupError: it holds tables of something else.
        """
        self._read(self._list_tables)

    def read_state(self) -> str | None:
        """Return the state that was last written; None if there is no index yet."""

        def read(connection: psycopg.Connection) -> str | None:
            if STATE_TABLE not in self._list_tables(connection):
                return None
            query = sql.SQL("SELECT state FROM {}").format(self._name(STATE_TABLE))
            row = connection.execute(query).fetchone()
            return None if row is None else row[0]

        return self._read(read)

    def count_rows(self, collection: str) -> int:
        """Return the number of rows of a collection."""
        query = sql.SQL("SELECT count(*) FROM {}").format(self._name(collection))
        (row,) = self._read(lambda connection: connection.execute(query).fetchall())
        return int(row[0])

    def search(
        self,
        collection: str,
        vector: Vector,
        k: int,
        *,
        where: str | None = None,
        effort: int | None = None,
    ) -> pa.Table:
        """Return the k rows with the greatest cosine similarity; see the contract."""
        table = self._name(collection)
        return self._read(
            lambda connection: search(connection, table, vector, k, where=where, effort=effort)
        )

    def get_vector(
        self, collection: str, *, topic: str, partition: int, offset: int
    ) -> Vector | None:
        """Return the embedding of a row; None if there is no such row."""
        query = sql.SQL(
            'SELECT embedding FROM {} WHERE topic = %s AND partition = %s AND "offset" = %s'
        ).format(self._name(collection))
        key = (topic, partition, offset)
        rows = self._read(lambda connection: connection.execute(query, key, binary=True).fetchall())
        return rows[0][0].to_numpy() if rows else None

    def sample(self, collection: str, count: int) -> npt.NDArray[np.float32]:
        """Return embeddings of rows spread evenly over the keys, of shape (count, dimension)."""
        # All keys come from the primary key's index; only the rows of the sample are read.
        list_keys = sql.SQL(
            """
            SELECT topic, partition, "offset" FROM (
                SELECT topic, partition, "offset", count(*) OVER () AS total,
                    row_number() OVER (ORDER BY topic, partition, "offset") - 1 AS position
                FROM {}
            ) AS numbered
            WHERE position = 0
                OR position * %(count)s / total <> (position - 1) * %(count)s / total
            """
        ).format(self._name(collection))
        read_vectors = sql.SQL("SELECT embedding FROM {} JOIN {} USING ({})").format(
            self._name(collection), unnest_keys(KEY), list_names(KEY)
        )

        def read(connection: psycopg.Connection) -> npt.NDArray[np.float32]:
            dimension = describe_columns(connection, self._name(collection))["embedding"].modifier
            keys = connection.execute(list_keys, {"count": count}).fetchall()
            columns = [list(one) for one in zip(*keys, strict=True)] or [[] for _ in KEY]
            rows = connection.execute(read_vectors, columns, binary=True).fetchall()
            vectors = [row[0].to_numpy() for row in rows]
            return np.stack(vectors) if vectors else np.empty((0, dimension), np.float32)

        return self._read(read)

    def list_keys(self, collection: str) -> pa.Table:
        """Return the columns of `KEY` of all rows."""
        schema = build_key_schema()
        query = sql.SQL("SELECT {} FROM {}").format(list_names(KEY), self._name(collection))

        def read(connection: psycopg.Connection) -> pa.Table:
            # A cursor on the server hands out the rows in parts.
            with connection.transaction(), connection.cursor("keys", binary=True) as cursor:
                cursor.execute(query)
                parts = [schema.empty_table()]
                while (part := read_table(cursor, schema.types, rows=_KEY_ROWS)).num_rows:
                    parts.append(part)
                return pa.concat_tables(parts)

        return self._read(read)

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def _name(self, table: str) -> sql.Identifier:
        return sql.Identifier(self._schema, table)

    def _read(self, run: Callable[[psycopg.Connection], Result]) -> Result:
        try:
            return self._run(run)
        except StoreUnavailable:
            if not self._connection.closed:
                raise
        self._connection = self._connect_again()
        return self._run(run)

    def _run(self, run: Callable[[psycopg.Connection], Result]) -> Result:
        with convert_errors(self._connection, self._address):
            # An index that was made after the connection may have brought the extension.
            prepare_session(self._connection, self._schema)
            return run(self._connection)

    def _connect_again(self) -> psycopg.Connection:
        return connect(self._config)

    def _list_tables(self, connection: psycopg.Connection) -> list[str]:
        """Return the names of the index's tables, the one of the state included."""
        rows = connection.execute(
            "SELECT relname, obj_description(cls.oid, 'pg_class') FROM pg_class cls"
            " JOIN pg_namespace ns ON ns.oid = relnamespace"
            " WHERE nspname = %s AND relkind IN ('r', 'p', 'f', 'm')",
            (self._schema,),
        ).fetchall()
        for name, comment in rows:
            if comment != TABLE_COMMENT:
                raise SetupError(
                    f"the place of the index, {self._address}, holds the table '{name}' of "
                    "something else; set index.db_schema to a schema that is the index's alone"
                )
        return [name for name, _ in rows]
