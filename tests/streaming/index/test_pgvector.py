"""What is PostgreSQL's own in an index: rights, passwords, lost connections, its indexes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo
from pydantic import SecretStr

from embedstream.config.sections import IndexConfig
from embedstream.index.stores.contract import StoreUnavailable, Write
from embedstream.index.stores.kinds import open_store
from embedstream_core.errors import SetupError
from index_stores import build_keys, build_rows, build_vectors, configure_index

PASSWORD = "s3cr3t-w0rd"


@pytest.fixture
def config(request: pytest.FixtureRequest, tmp_path: Path) -> IndexConfig:
    return configure_index("pgvector", request, tmp_path)


@pytest.fixture
def admin(postgres: str) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(postgres, autocommit=True) as connection:
        yield connection


@pytest.fixture
def database(
    admin: psycopg.Connection[Any], postgres: str, config: IndexConfig
) -> Iterator[tuple[str, psycopg.Connection[Any]]]:
    """Yield the address of a database without the extension, and its superuser's connection."""
    name = f"database_{config.db_schema}"
    admin.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
    address = make_conninfo(postgres, dbname=name)
    with psycopg.connect(address, autocommit=True) as connection:
        yield address, connection


@pytest.fixture
def role(admin: psycopg.Connection[Any], config: IndexConfig) -> str:
    """Return the name of a user without rights, who has to give a password."""
    name = f"role_{config.db_schema}"
    admin.execute(f"CREATE ROLE {name} LOGIN PASSWORD '{PASSWORD}'")
    ((file,),) = admin.execute("SHOW hba_file").fetchall()
    rules = Path(file).read_text()
    Path(file).write_text(f"local all {name} scram-sha-256\n{rules}")
    admin.execute("SELECT pg_reload_conf()")
    return name


@pytest.fixture
def open_index(config: IndexConfig) -> Iterator[Callable[..., Any]]:
    with ExitStack() as stack:

        def open_one(mode: Any, url: str | None = None) -> Any:
            given = config.model_copy(update={"url": SecretStr(url)}) if url else config
            store: Any = open_store(given, table="table", mode=mode)
            return stack.enter_context(closing(store))

        yield open_one


def end_connections(admin: psycopg.Connection[Any]) -> None:
    """End all connections but this one, as a restart of the server does."""
    admin.execute(
        "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
        " WHERE pid <> pg_backend_pid() AND backend_type = 'client backend'"
    )


class TestConnections:
    def test_a_wrong_password_is_refused_and_not_printed(
        self, open_index: Callable[..., Any], postgres: str, role: str
    ) -> None:
        # The server reads its rules again after a moment.
        deadline = time.monotonic() + 10
        while True:
            with pytest.raises(SetupError) as caught:
                open_index("write", make_conninfo(postgres, user=role, password=f"x{PASSWORD}"))
            if "password" in str(caught.value) or time.monotonic() > deadline:
                break
        assert isinstance(caught.value, StoreUnavailable)
        assert role in str(caught.value)
        assert PASSWORD not in "".join(map(str, [caught.value, caught.value.__cause__]))

    @pytest.mark.parametrize("mode", ["read", "write"])
    @pytest.mark.parametrize(
        "url", ["postgresql://me@127.0.0.1:1/base", "postgresql://me@/base?host=/nonexistent"]
    )
    def test_a_server_that_is_not_there_may_come_later(
        self, open_index: Callable[..., Any], url: str, mode: str
    ) -> None:
        with pytest.raises(StoreUnavailable, match=r"127\.0\.0\.1|/nonexistent"):
            open_index(mode, url)

    @pytest.mark.parametrize(
        "rest",
        [f"{PASSWORD}@x@host/base", f"{PASSWORD}/@host/base", "%zz@host/base", "@host:port/base"],
    )
    @pytest.mark.parametrize("scheme", ["postgresql", "postgre"])
    def test_an_address_that_is_none_is_refused_and_not_printed(
        self,
        config: IndexConfig,
        monkeypatch: pytest.MonkeyPatch,
        scheme: str,
        rest: str,
    ) -> None:
        monkeypatch.setenv("INDEX_URL", f"{scheme}://me:{PASSWORD}{rest}")
        given = IndexConfig(kind="pgvector", url="env:INDEX_URL")

        with pytest.raises(SetupError, match="percent-encoding") as caught:
            open_store(given, table="table", mode="read")

        assert PASSWORD not in str(caught.value)
        assert PASSWORD not in str(caught.value.__cause__)

    def test_the_address_has_no_password(
        self, open_index: Callable[..., Any], postgres: str
    ) -> None:
        reader = open_index("read", make_conninfo(postgres, password=PASSWORD))

        assert "/postgres?host=/" in reader.address
        assert PASSWORD not in reader.address

    def test_a_reader_connects_again(
        self, open_index: Callable[..., Any], admin: psycopg.Connection[Any]
    ) -> None:
        open_index("write").write([Write("one", 8, build_rows([0]))], "a")
        reader = open_index("read")
        assert reader.count_rows("one") == 1

        for read in (reader.read_state, lambda: reader.list_keys("one")):
            end_connections(admin)
            read()

        assert reader.search("one", np.ones(8, np.float32), 1).num_rows == 1

    def test_a_writer_that_lost_its_lock_has_to_be_opened_again(
        self, open_index: Callable[..., Any], admin: psycopg.Connection[Any]
    ) -> None:
        writer = open_index("write")
        writer.write([Write("one", 8, build_rows([0]))], "a")
        end_connections(admin)

        for _ in range(2):
            with pytest.raises(StoreUnavailable):
                writer.write([Write("one", 8, build_rows([1]))], "b")
            with pytest.raises(StoreUnavailable):
                writer.read_state()

        again = open_index("write")
        assert (again.read_state(), again.count_rows("one")) == ("a", 1)

    def test_a_write_of_another_process_is_noticed(
        self,
        open_index: Callable[..., Any],
        admin: psycopg.Connection[Any],
        config: IndexConfig,
    ) -> None:
        writer = open_index("write")
        writer.write([Write("one", 8, build_rows([0]))], "a")
        # A pooler may give one session to two processes, who both have its lock then.
        admin.execute(f"UPDATE {config.db_schema}.embedstream_state SET revision = revision + 1")

        with pytest.raises(SetupError, match="another process has written"):
            writer.write([Write("one", 8, build_rows([1]))], "b")

        assert (writer.read_state(), writer.count_rows("one")) == ("a", 1)


class TestSetUp:
    def test_what_a_user_may_not_create_is_named(
        self,
        open_index: Callable[..., Any],
        database: tuple[str, psycopg.Connection[Any]],
        role: str,
        config: IndexConfig,
    ) -> None:
        address, owner = database
        mine = make_conninfo(address, user=role, password=PASSWORD)
        with pytest.raises(SetupError, match=f'AUTHORIZATION "{role}"'):
            open_index("write", mine)
        owner.execute(f"CREATE SCHEMA {config.db_schema} AUTHORIZATION {role}")
        with pytest.raises(SetupError, match="run CREATE EXTENSION vector"):
            open_index("write", mine)
        assert open_index("read", mine).read_state() is None

        owner.execute("CREATE EXTENSION vector")
        open_index("write", mine).write([], "a")

    def test_pgvector_that_is_too_old_is_refused(
        self, open_index: Callable[..., Any], database: tuple[str, psycopg.Connection[Any]]
    ) -> None:
        address, owner = database
        owner.execute("CREATE EXTENSION vector")
        owner.execute("UPDATE pg_extension SET extversion = '0.7.4' WHERE extname = 'vector'")

        for mode in ("read", "write"):
            with pytest.raises(SetupError, match=r"0\.7\.4.*ALTER EXTENSION vector UPDATE"):
                open_index(mode, address)

    def test_the_extension_may_be_in_any_schema(
        self, open_index: Callable[..., Any], database: tuple[str, psycopg.Connection[Any]]
    ) -> None:
        address, owner = database
        reader = open_index("read", address)
        assert reader.read_state() is None
        owner.execute('CREATE SCHEMA "Odd ""name"""')
        owner.execute('CREATE EXTENSION vector SCHEMA "Odd ""name"""')
        writer = open_index("write", address)
        vectors = build_vectors(range(9), 2048)
        writer.write([Write("one", 2048, build_rows(range(9), dimension=2048))], "a")
        writer.build_ann("one", rows=9, dimension=2048)

        # The reader was opened before the extension was there.
        for effort in (None, 40):
            found = reader.search("one", vectors[4], 1, effort=effort)
            assert found["offset"].to_pylist() == [4]

    @pytest.mark.parametrize("mode", ["read", "write"])
    def test_a_schema_with_other_tables_is_refused(
        self,
        open_index: Callable[..., Any],
        admin: psycopg.Connection[Any],
        config: IndexConfig,
        mode: str,
    ) -> None:
        admin.execute(f"CREATE SCHEMA {config.db_schema}")
        admin.execute(f"CREATE TABLE {config.db_schema}.customers (id int)")

        with pytest.raises(SetupError, match=r"customers.*index\.db_schema"):
            open_index(mode)

    def test_a_user_who_may_only_read_can_search(
        self,
        open_index: Callable[..., Any],
        admin: psycopg.Connection[Any],
        postgres: str,
        role: str,
        config: IndexConfig,
    ) -> None:
        open_index("write").write([Write("one", 8, build_rows(range(3)))], "a")
        admin.execute(f"GRANT USAGE ON SCHEMA {config.db_schema} TO {role}")
        admin.execute(f"GRANT SELECT ON ALL TABLES IN SCHEMA {config.db_schema} TO {role}")

        reader = open_index("read", make_conninfo(postgres, user=role, password=PASSWORD))

        assert reader.read_state() == "a"
        assert reader.search("one", build_vectors([2], 8)[0], 1)["offset"].to_pylist() == [2]


class TestIndexes:
    @pytest.mark.parametrize("dimension", [8, 2048])
    def test_an_effort_uses_the_index_and_none_does_not(
        self, open_index: Callable[..., Any], dimension: int
    ) -> None:
        # No index for cosines has vectors of zeros, and one is nearer here than all others.
        query = np.ones(dimension, np.float32)
        vectors = np.concatenate([0 * query[None], -np.abs(build_vectors(range(50), dimension))])
        rows = build_rows(range(51), dimension=dimension, vectors=vectors)
        writer = open_index("write")
        writer.write([Write("one", dimension, rows)], "a")
        assert writer.build_ann("one", rows=51, dimension=dimension) is not None

        def find(k: int, **options: Any) -> Any:
            return writer.search("one", query, k, **options)["offset"].to_pylist()

        assert find(1) == [0]
        assert find(1, effort=40) != [0]
        # The index has too few for these.
        assert find(51, effort=40)[0] == 0
        assert find(2, effort=40, where='"offset" IN (0, 7)') == [0, 7]

    @pytest.mark.parametrize("effort", [None, 40])
    def test_a_condition_cannot_leave_its_transaction(
        self, open_index: Callable[..., Any], effort: int | None
    ) -> None:
        writer = open_index("write")
        writer.write([Write("one", 8, build_rows(range(30)))], "a")
        writer.build_ann("one", rows=30, dimension=8)
        table = f"{open_index('read').address.split()[-1][1:-1]}.one"

        for where in (
            f"true); COMMIT; DELETE FROM {table}; SELECT (true",
            f"true); DELETE FROM {table}; --",
        ):
            with pytest.raises(SetupError):
                writer.search("one", np.ones(8, np.float32), 3, where=where, effort=effort)

        assert writer.count_rows("one") == 30

    def test_there_is_none_above_4000_floats(self, open_index: Callable[..., Any]) -> None:
        writer = open_index("write")
        writer.write([Write("one", 4100, build_rows(range(3), dimension=4100))], "a")

        assert writer.build_ann("one", rows=3, dimension=4100) is None

        found = writer.search("one", build_vectors([1], 4100)[0], 1, effort=40)
        assert found["offset"].to_pylist() == [1]

    def test_a_new_one_replaces_the_one_before(
        self,
        open_index: Callable[..., Any],
        admin: psycopg.Connection[Any],
        config: IndexConfig,
    ) -> None:
        writer = open_index("write")
        writer.write([Write("one", 8, build_rows(range(30)))], "a")

        for _ in range(2):
            writer.build_ann("one", rows=30, dimension=8)

        rows = admin.execute(
            "SELECT indexdef FROM pg_indexes WHERE schemaname = %s AND indexdef LIKE '%%hnsw%%'",
            (config.db_schema,),
        ).fetchall()
        assert len(rows) == 1

    def test_deleted_rows_are_cleared_away(
        self,
        open_index: Callable[..., Any],
        admin: psycopg.Connection[Any],
        config: IndexConfig,
    ) -> None:
        writer = open_index("write")
        writer.write([Write("one", 8, build_rows(range(1000)))], "a")
        writer.write([Write("one", 8, deleted=build_keys(range(500)))], "b")

        def count_vacuums() -> int:
            # A session hands on its counts about once in a second, at the end of a transaction.
            writer.write([], "c")
            writer.maintain(["one"])
            ((count,),) = admin.execute(
                "SELECT vacuum_count FROM pg_stat_user_tables WHERE schemaname = %s"
                " AND relname = 'one'",
                (config.db_schema,),
            ).fetchall()
            return int(count)

        deadline = time.monotonic() + 30
        while count_vacuums() == 0:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        assert writer.count_rows("one") == 500
