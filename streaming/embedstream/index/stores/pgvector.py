"""An index in PostgreSQL with the extension pgvector.

The rows of a `write` and the state are one transaction of the server. A session's advisory lock
keeps a second writer out; it ends with the connection.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt
import psycopg
import pyarrow as pa
from psycopg import sql

from embedstream.config.sections import IndexConfig
from embedstream.index.rows import KEY, build_key_schema
from embedstream.index.stores.contract import READ_ROWS, AnnIndex, StoreUnavailable, Write
from embedstream.index.stores.pgvector_ann import build_hnsw
from embedstream.index.stores.pgvector_reader import STATE_TABLE, TABLE_COMMENT, PgvectorReader
from embedstream.index.stores.postgres_connection import (
    convert_errors,
    create_schema,
    lock_schema,
)
from embedstream.index.stores.postgres_rows import copy_rows, list_names, name_sql_type, unnest_keys
from embedstream_core.errors import SetupError

__all__ = ["PgvectorWriter", "open_store"]

_MESSAGE_KEY = ("topic", "partition", "message_key", "offset")
# Rows of which a page holds two stay whole. PostgreSQL moves vectors elsewhere if four do not fit,
# which made exact search over 768 floats take twice the time.
_INLINE_BYTES = 4080
# The share of changed rows from which `maintain` is worth its time; PostgreSQL's own is 0.2.
_CHANGED_SHARE = 0.1


def open_store(
    config: IndexConfig, *, table: str, mode: Literal["read", "write"]
) -> PgvectorReader | PgvectorWriter:
    """Open the index in the schema of the configuration; see `kinds.open_store`."""
    store = PgvectorWriter(config) if mode == "write" else PgvectorReader(config)
    try:
        store.prepare()
    except BaseException:
        store.close()
        raise
    return store


class PgvectorWriter(PgvectorReader):
    """Writes an index. If the connection is lost, so is its lock: the caller opens it again."""

    _revision = 0

    def prepare(self) -> None:
        """Take the place of the writer, and create what is missing.

        Raises:
            SetupError: another process writes, the schema holds tables of something else, or the
                user of the database may not create what is missing.
        """

        def prepare(connection: psycopg.Connection) -> None:
            lock_schema(connection, self._schema, self._address)
            create_schema(connection, self._schema)
            with connection.transaction():
                if STATE_TABLE not in self._list_tables(connection):
                    self._create_table(
                        connection,
                        STATE_TABLE,
                        sql.SQL(
                            "id integer PRIMARY KEY CHECK (id = 1), state text NOT NULL,"
                            " revision bigint NOT NULL"
                        ),
                    )
            query = sql.SQL("SELECT revision FROM {}").format(self._name(STATE_TABLE))
            row = connection.execute(query).fetchone()
            self._revision = 0 if row is None else row[0]

        self._run(prepare)

    def write(self, writes: Sequence[Write], state: str) -> None:
        """Do all writes and replace the state in one transaction, or do nothing."""

        def run(connection: psycopg.Connection) -> None:
            with connection.transaction():
                self._replace_state(connection, state)
                for write in writes:
                    self._apply(connection, write)

        self._run(run)
        self._revision += 1

    def drop(self, collections: Sequence[str]) -> None:
        """Delete collections; one that does not exist is ignored."""
        names = sql.SQL(", ").join(map(self._name, collections))
        if collections:
            statement = sql.SQL("DROP TABLE IF EXISTS {}").format(names)
            self._run(lambda connection: connection.execute(statement))

    def read_vectors(self, collection: str) -> Iterator[tuple[pa.Table, npt.NDArray[np.float32]]]:
        """Yield the columns of `KEY` and the embeddings of all rows in parts."""
        columns = list_names([*KEY, "embedding"])
        query = sql.SQL("SELECT {} FROM {}").format(columns, self._name(collection))
        with (
            convert_errors(self._connection, self._address),
            self._connection.transaction(),
            self._connection.cursor("vectors", binary=True) as cursor,
        ):
            cursor.execute(query)
            while rows := cursor.fetchmany(READ_ROWS):
                *keys, vectors = zip(*rows, strict=True)
                part = pa.table(list(map(pa.array, keys, build_key_schema().types)), names=KEY)
                yield part, np.stack([one.to_numpy() for one in vectors])

    def list_collections(self) -> list[str]:
        """Return the names of all collections that exist."""
        return [one for one in self._run(self._list_tables) if one != STATE_TABLE]

    def build_ann(self, collection: str, *, rows: int, dimension: int) -> AnnIndex | None:
        """Build the approximate index, or replace it; return None above 4,000 floats."""
        return self._run(
            lambda connection: build_hnsw(
                connection, self._name(collection), rows=rows, dimension=dimension
            )
        )

    def maintain(self, collections: Sequence[str]) -> None:
        """Clear away deleted rows, and count the rows for the planner, where many have changed.

        The server does both by itself as well, but later, and not if its autovacuum is off.
        """

        def run(connection: psycopg.Connection) -> None:
            for collection in collections:
                if self._has_changed(connection, collection):
                    name = self._name(collection)
                    connection.execute(sql.SQL("VACUUM (ANALYZE) {}").format(name))

        self._run(run)

    def _has_changed(self, connection: psycopg.Connection, collection: str) -> bool:
        rows = connection.execute(
            "SELECT FROM pg_stat_user_tables WHERE schemaname = %s AND relname = %s"
            " AND greatest(n_dead_tup, n_mod_since_analyze) > %s * n_live_tup",
            (self._schema, collection, _CHANGED_SHARE),
        ).fetchall()
        return bool(rows)

    def _connect_again(self) -> psycopg.Connection:
        raise StoreUnavailable(
            f"the connection to the index at {self._address} was lost, and with it the lock of its "
            "writer; open the index again"
        )

    def _replace_state(self, connection: psycopg.Connection, state: str) -> None:
        # Behind a pooler of connections, the lock is not this session's alone.
        statement = sql.SQL(
            "INSERT INTO {} AS old VALUES (1, %s, 1) ON CONFLICT (id) DO UPDATE"
            " SET state = excluded.state, revision = old.revision + 1 WHERE old.revision = %s"
        ).format(self._name(STATE_TABLE))
        if connection.execute(statement, (state, self._revision)).rowcount != 1:
            raise SetupError(
                f"another process has written the index at {self._address}: only one may; give "
                "index.url the address of the server itself if this is one of a pooler"
            )

    def _apply(self, connection: psycopg.Connection, write: Write) -> None:
        table = self._name(write.collection)
        if write.collection not in self._list_tables(connection):
            if write.rows is None:
                return
            self._create_collection(connection, write.collection, write.rows.schema)
        for keys in (write.deleted, write.rows if write.mode == "upsert" else None):
            if keys is not None and keys.num_rows:
                statement = sql.SQL("DELETE FROM {} AS old USING {} WHERE {}").format(
                    table, unnest_keys(KEY), _match(KEY)
                )
                connection.execute(statement, [keys[name].to_pylist() for name in KEY])
        if write.deleted_keys is not None and write.deleted_keys.num_rows:
            statement = sql.SQL(
                "DELETE FROM {} AS old USING {} WHERE {} AND hashtextextended(old.message_key, 0) ="
                ' hashtextextended(given.message_key, 0) AND old."offset" < given."offset"'
            ).format(table, unnest_keys(_MESSAGE_KEY), _match(_MESSAGE_KEY[:-1]))
            columns = [write.deleted_keys[name].to_pylist() for name in _MESSAGE_KEY]
            connection.execute(statement, columns)
        if write.rows is not None:
            copy_rows(connection, table, write.rows)

    def _create_collection(
        self, connection: psycopg.Connection, collection: str, schema: pa.Schema
    ) -> None:
        columns = [
            sql.SQL("{} {}").format(sql.Identifier(field.name), sql.SQL(name_sql_type(field)))
            for field in schema
        ]
        key = sql.SQL("PRIMARY KEY ({})").format(list_names(KEY))
        self._create_table(connection, collection, sql.SQL(", ").join([*columns, key]))
        # A message's key may be longer than an entry of an index.
        connection.execute(
            sql.SQL(
                "CREATE INDEX ON {} (topic, partition, hashtextextended(message_key, 0))"
            ).format(self._name(collection))
        )

    def _create_table(
        self, connection: psycopg.Connection, table: str, columns: sql.Composable
    ) -> None:
        name = self._name(table)
        connection.execute(
            sql.SQL("CREATE TABLE {} ({}) WITH (toast_tuple_target = {})").format(
                name, columns, _INLINE_BYTES
            )
        )
        connection.execute(sql.SQL("COMMENT ON TABLE {} IS {}").format(name, TABLE_COMMENT))


def _match(columns: Sequence[str]) -> sql.Composed:
    return sql.SQL(" AND ").join(
        sql.SQL("old.{0} = given.{0}").format(sql.Identifier(name)) for name in columns
    )
