"""An index in PostgreSQL with the extension pgvector.

The rows of a `write` and the state are one transaction of the server. A session's advisory lock
keeps a second writer out; it ends with the connection.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, TypeVar

import numpy as np
import numpy.typing as npt
import psycopg
import pyarrow as pa
from psycopg import sql

from embedstream.config.sections import IndexConfig
from embedstream.index.rows import KEY, build_key_schema
from embedstream.index.stores.contract import AnnIndex, StoreUnavailable, Vector, Write
from embedstream.index.stores.pgvector_ann import build_hnsw
from embedstream.index.stores.pgvector_search import describe_columns, search
from embedstream.index.stores.postgres_connection import (
    connect,
    convert_errors,
    create_schema,
    describe_place,
    lock_schema,
    prepare_session,
)
from embedstream.index.stores.postgres_rows import copy_rows, name_sql_type, read_table
from embedstream_core.errors import SetupError

__all__ = ["PgvectorStore", "PgvectorWriter", "open_store"]

Result = TypeVar("Result")

_STATE_TABLE = "embedstream_state"
# The comment on each table of an index; the schema may hold no other tables.
_OURS = "embedstream index"
_KEY_TYPES = {"topic": "text", "partition": "int4", "offset": "int8", "message_key": "text"}
_MESSAGE_KEY = ("topic", "partition", "message_key", "offset")
# Rows that `list_keys` holds as Python objects at the same time.
_KEY_ROWS = 50_000
# The share of changed rows from which `maintain` is worth its time; PostgreSQL's own is 0.2.
_CHANGED_SHARE = 0.1


def open_store(
    config: IndexConfig, *, table: str, mode: Literal["read", "write"]
) -> PgvectorStore | PgvectorWriter:
    """Open the index in the schema of the configuration; see `kinds.open_store`."""
    store = PgvectorWriter(config) if mode == "write" else PgvectorStore(config)
    try:
        store.prepare()
    except BaseException:
        store.close()
        raise
    return store


class PgvectorStore:
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
            if _STATE_TABLE not in self._list_tables(connection):
                return None
            query = sql.SQL("SELECT state FROM {}").format(self._name(_STATE_TABLE))
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
            self._name(collection), _given(KEY), _list_names(KEY)
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
        query = sql.SQL("SELECT {} FROM {}").format(_list_names(KEY), self._name(collection))

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
            if comment != _OURS:
                raise SetupError(
                    f"{self._address} holds the table '{name}' of something else; set "
                    "index.db_schema to a schema that is the index's alone"
                )
        return [name for name, _ in rows]


class PgvectorWriter(PgvectorStore):
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
                if _STATE_TABLE not in self._list_tables(connection):
                    self._create_table(
                        connection,
                        _STATE_TABLE,
                        sql.SQL(
                            "id integer PRIMARY KEY CHECK (id = 1), state text NOT NULL,"
                            " revision bigint NOT NULL"
                        ),
                    )
            query = sql.SQL("SELECT revision FROM {}").format(self._name(_STATE_TABLE))
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

    def list_collections(self) -> list[str]:
        """Return the names of all collections that exist."""
        return [one for one in self._run(self._list_tables) if one != _STATE_TABLE]

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
            f"the connection to {self._address} was lost, and with it the lock of its writer; "
            "open the index again"
        )

    def _replace_state(self, connection: psycopg.Connection, state: str) -> None:
        # Behind a pooler of connections, the lock is not this session's alone.
        statement = sql.SQL(
            "INSERT INTO {} AS old VALUES (1, %s, 1) ON CONFLICT (id) DO UPDATE"
            " SET state = excluded.state, revision = old.revision + 1 WHERE old.revision = %s"
        ).format(self._name(_STATE_TABLE))
        if connection.execute(statement, (state, self._revision)).rowcount != 1:
            raise SetupError(
                f"another process has written to {self._address}: only one may; give index.url the "
                "address of the server itself if this is one of a pooler"
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
                    table, _given(KEY), _match(KEY)
                )
                connection.execute(statement, [keys[name].to_pylist() for name in KEY])
        if write.deleted_keys is not None and write.deleted_keys.num_rows:
            statement = sql.SQL(
                "DELETE FROM {} AS old USING {} WHERE {} AND hashtextextended(old.message_key, 0) ="
                ' hashtextextended(given.message_key, 0) AND old."offset" < given."offset"'
            ).format(table, _given(_MESSAGE_KEY), _match(_MESSAGE_KEY[:-1]))
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
        key = sql.SQL("PRIMARY KEY ({})").format(_list_names(KEY))
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
        connection.execute(sql.SQL("CREATE TABLE {} ({})").format(name, columns))
        connection.execute(sql.SQL("COMMENT ON TABLE {} IS {}").format(name, _OURS))


def _list_names(names: Sequence[str]) -> sql.Composed:
    return sql.SQL(", ").join(map(sql.Identifier, names))


def _given(columns: Sequence[str]) -> sql.Composed:
    """Return a table of the parameters, one array for each column."""
    arrays = ", ".join(f"%s::{_KEY_TYPES[name]}[]" for name in columns)
    return sql.SQL("unnest({}) AS given ({})").format(sql.SQL(arrays), _list_names(columns))


def _match(columns: Sequence[str]) -> sql.Composed:
    return sql.SQL(" AND ").join(
        sql.SQL("old.{0} = given.{0}").format(sql.Identifier(name)) for name in columns
    )
