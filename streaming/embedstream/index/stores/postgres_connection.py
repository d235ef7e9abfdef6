"""Connections to PostgreSQL: how they are opened, and what its errors mean to an index."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
from pgvector.psycopg import register_vector
from psycopg import errors, sql
from psycopg.abc import Buffer
from psycopg.adapt import Loader
from psycopg.conninfo import conninfo_to_dict
from psycopg.pq import Format

from embedstream.config.sections import IndexConfig
from embedstream.index.stores.contract import StoreUnavailable
from embedstream_core.errors import SetupError

__all__ = [
    "EPOCH_MICROSECONDS",
    "connect",
    "convert_errors",
    "create_schema",
    "describe_place",
    "lock_schema",
    "prepare_session",
]

_log = logging.getLogger(__name__)

EPOCH_MICROSECONDS = 946_684_800_000_000
"""From 1970 to 2000, where PostgreSQL's count of microseconds begins."""

# The version whose scans go on until enough rows satisfy a condition (hnsw.iterative_scan).
_OLDEST_PGVECTOR = (0, 8)
_DEFAULTS = {"connect_timeout": "10", "application_name": "embedstream index"}
# The server sees within the first that a process that was killed is gone, even while it works for
# it; a writer that starts again waits for the second.
_LOOK_FOR_CLIENT = "250ms"
_WAIT_FOR_LOCK = "1s"


def connect(config: IndexConfig) -> psycopg.Connection:
    """Connect to the server; the connection commits each statement that is in no transaction.

    Raises:
        SetupError: index.url is no address of PostgreSQL.
        StoreUnavailable: the server cannot be reached, or refuses the connection.
    """
    parameters = _parse_address(config)
    try:
        connection = psycopg.connect(
            **{**_DEFAULTS, **parameters},
            autocommit=True,
            # A prepared statement gets a plan for any values: it would not see that a limit is
            # small, or that a condition is rare.
            prepare_threshold=None,
        )
    except psycopg.Error as error:
        reason = " ".join(str(error).split())
        raise StoreUnavailable(f"cannot connect to PostgreSQL at index.url: {reason}") from None
    connection.adapters.register_loader("timestamptz", _MicrosecondsLoader)
    return connection


def describe_place(connection: psycopg.Connection, schema: str) -> str:
    """Return where the index is, for messages."""
    info = connection.info
    is_socket = info.host.startswith("/")
    server = "" if is_socket else f"{info.host}:{info.port}"
    folder = f"?host={info.host}&port={info.port}" if is_socket else ""
    return f"postgresql://{server}/{info.dbname}{folder}, schema '{schema}'"


@contextmanager
def convert_errors(connection: psycopg.Connection, address: str) -> Iterator[None]:
    """Convert errors of the server: what may pass by itself, and what will not.

    Raises:
        StoreUnavailable: the connection is lost, or the server lacks memory, disk space or time.
        SetupError: the server refuses what was asked of it.
    """
    try:
        yield
    except errors.UndefinedTable as error:
        raise SetupError(
            f"the index at {address}: {error.diag.message_primary}; it may have been built "
            "again in the meantime, so repeat the command"
        ) from error
    except psycopg.Error as error:
        reason = " ".join((error.diag.message_primary or str(error)).split())
        if connection.closed:
            raise StoreUnavailable(
                f"the connection to the index at {address} was lost: {reason}"
            ) from error
        # PostgreSQL's class 54 is about limits, such as a row that is too long.
        is_limit = (error.sqlstate or "").startswith("54")
        if isinstance(error, psycopg.OperationalError) and not is_limit:
            raise StoreUnavailable(f"the index at {address} fails for now: {reason}") from error
        raise SetupError(f"the index at {address} refuses it: {reason}") from error


def prepare_session(connection: psycopg.Connection, schema: str) -> None:
    """Make the types of pgvector known to a connection, if the database has them by now.

    Raises:
        SetupError: the database's pgvector is too old.
    """
    if connection.adapters.types.get("vector") is not None:
        return
    found = connection.execute(
        "SELECT extversion, nspname FROM pg_extension JOIN pg_namespace ns ON ns.oid = extnamespace"
        " WHERE extname = 'vector'"
    ).fetchone()
    if found is None:
        return
    version, place = found
    if tuple(map(int, version.split(".")[:2])) < _OLDEST_PGVECTOR:
        raise SetupError(
            f"the database has pgvector {version}, and the index needs 0.8 or newer: install it on "
            "the server, and run ALTER EXTENSION vector UPDATE as a superuser"
        )
    path = sql.SQL(", ").join(map(sql.Identifier, dict.fromkeys((schema, place))))
    connection.execute(sql.SQL("SET search_path = {}").format(path))
    # The planner takes the cost of distances for a reason to compile, which takes longer.
    connection.execute("SET jit = off")
    register_vector(connection)


def lock_schema(connection: psycopg.Connection, schema: str, address: str) -> None:
    """Keep other writers out of the schema until the connection ends.

    Raises:
        SetupError: there is another one.
    """
    try:
        connection.execute(f"SET client_connection_check_interval = '{_LOOK_FOR_CLIENT}'")
    # Not every system of a server has it.
    except (errors.InvalidParameterValue, errors.UndefinedObject) as error:
        _log.debug("the server notices the end of a client late: %s", error)
    # A client's machine that is gone is noticed after a minute, and not after two hours.
    connection.execute("SET tcp_keepalives_idle = 30; SET tcp_keepalives_interval = 10")
    connection.execute(f"SET lock_timeout = '{_WAIT_FOR_LOCK}'")
    try:
        # Locks of this kind are of one database.
        connection.execute(
            "SELECT pg_advisory_lock(hashtextextended('embedstream index ' || %s, 0))", (schema,)
        )
    except errors.LockNotAvailable:
        raise SetupError(
            f"another process writes the index at {address}; only one may, so stop it first"
        ) from None
    connection.execute("RESET lock_timeout")


def create_schema(connection: psycopg.Connection, schema: str) -> None:
    """Create the schema and the extension, if they are missing.

    Raises:
        SetupError: the user of the database may not, or the server lacks the extension.
    """
    rows = connection.execute("SELECT FROM pg_namespace WHERE nspname = %s", (schema,)).fetchall()
    if not rows:
        create = sql.SQL("CREATE SCHEMA {} AUTHORIZATION {}").format(
            sql.Identifier(schema), sql.Identifier(connection.info.user)
        )
        _create(connection, create, what=f"the schema '{schema}'")
    if connection.adapters.types.get("vector") is None:
        _create(connection, sql.SQL("CREATE EXTENSION vector"), what="the extension vector")
        prepare_session(connection, schema)


def _create(
    connection: psycopg.Connection, statement: sql.SQL | sql.Composed, *, what: str
) -> None:
    try:
        connection.execute(statement)
    except errors.InsufficientPrivilege:
        info = connection.info
        raise SetupError(
            f"the user '{info.user}' may not create {what}: run {statement.as_string(connection)} "
            f"in the database '{info.dbname}' as a superuser"
        ) from None
    except (errors.FeatureNotSupported, errors.UndefinedFile):
        raise SetupError(
            f"{what} is not installed on the server: install the package of pgvector 0.8 or newer "
            "there; most providers of PostgreSQL have it"
        ) from None


class _MicrosecondsLoader(Loader):
    """Load a timestamp as microseconds since 1970: Python's own end with the year 9999."""

    format = Format.BINARY

    def load(self, data: Buffer) -> int:
        return int.from_bytes(data, "big", signed=True) + EPOCH_MICROSECONDS


def _parse_address(config: IndexConfig) -> dict[str, Any]:
    assert config.url is not None
    try:
        parameters = conninfo_to_dict(config.url.get_secret_value())
    except psycopg.ProgrammingError:
        # Its message has the address with the password in it.
        parameters = {"host": "@"}
    # A character of the password that is not encoded ends the user or the host too early.
    parts = [str(parameters.get(part, "")) for part in ("host", "port", "dbname")]
    if "@" in "".join(parts) or (not parts[1].replace(",", "0").isdigit() and parts[1]):
        raise SetupError(
            "index.url is no address of PostgreSQL: write postgresql://user@host:port/database; a "
            "password has its odd characters in percent-encoding, such as %40 for @"
        )
    return parameters
