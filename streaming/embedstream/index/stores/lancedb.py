"""An index in LanceDB: a folder or a bucket, without a server.

LanceDB has no transaction over several tables. The state is the only row of a Lance table of its
own, together with the Lance version of every collection, and replacing that row is what commits. A
writer that opens the index restores the collections that are at another version, which undoes
whatever a crash left half done; a reader opens each collection at the version that the row names.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from typing import Any, Literal, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from embedstream.config.sections import IndexConfig
from embedstream.index.rows import KEY
from embedstream.index.stores.contract import AnnIndex, Vector, Write
from embedstream.index.stores.lance_location import LanceLocation, locate_index, lock_folder
from embedstream.index.stores.lance_queries import (
    DIALECT,
    EMBEDDING,
    REFINE_FACTOR,
    list_delete_conditions,
    match_offsets,
    search_rows,
    stack_vectors,
)
from embedstream_core.errors import SetupError, explain
from embedstream_core.extras import require_extra

__all__ = ["LanceStore", "LanceWriter", "open_store"]

Result = TypeVar("Result")

_LOG = logging.getLogger(__name__)

_STATE_TABLE = "embedstream_state"
_STATE_SCHEMA = pa.schema([("state", pa.string()), ("versions", pa.string())])

# LanceDB has no error types of its own. A table or a version that is missing and a condition that
# is wrong are a ValueError; files that are gone and stores that refuse are one of the others.
_LANCE_ERRORS = (ValueError, RuntimeError, OSError)

# The partitions that a search may probe, so that each step is twice the work.
_PROBES = (5, 10, 20, 40, 80, 160, 320, 640)

# How long a reader may go on with files that `maintain` has replaced.
_GRACE = timedelta(minutes=1)
_NEVER = timedelta(days=36_500)


def open_store(
    config: IndexConfig, *, table: str, mode: Literal["read", "write"]
) -> LanceStore | LanceWriter:
    """Open the index of a table; see `kinds.open_store`."""
    location = locate_index(config.path, table=table)
    return LanceWriter(location) if mode == "write" else LanceStore(location)


class LanceStore:
    """The collections of an index, for reading."""

    def __init__(self, location: LanceLocation) -> None:
        with require_extra("lancedb", feature="an index in LanceDB"):
            import lancedb
        self._connect = lancedb.connect
        self._location = location
        self._connection: Any = None
        self._state_table: Any = None
        self._state_version = 0
        self._state: str | None = None
        self._versions: dict[str, int] = {}
        self._opened: dict[str, Any] = {}

    @property
    def dialect(self) -> str:
        """Sqlglot's name of the dialect of `where`."""
        return DIALECT

    @property
    def address(self) -> str:
        """Where the index is."""
        return self._location.uri

    def read_state(self) -> str | None:
        """Return the state of the newest commit; None if there is no index."""
        with self._convert_errors():
            self._refresh()
        return self._state

    def count_rows(self, collection: str) -> int:
        """Return the number of rows of a collection."""
        return int(self._read(collection, lambda table: table.count_rows()))

    def search(
        self,
        collection: str,
        vector: Vector,
        k: int,
        *,
        where: str | None = None,
        effort: int | None = None,
    ) -> pa.Table:
        """Return the k nearest rows; see `Store.search`."""

        def run(table: Any) -> pa.Table:
            return search_rows(table, vector, k, where=where, effort=effort)

        return self._read(collection, run)

    def get_vector(
        self, collection: str, *, topic: str, partition: int, offset: int
    ) -> Vector | None:
        """Return the embedding of a row; None if there is no such row."""
        where = match_offsets(topic, partition, [offset])

        def run(table: Any) -> pa.Table:
            return table.search().where(where).select([EMBEDDING]).limit(1).to_arrow()

        found = stack_vectors(self._read(collection, run))
        return found[0] if len(found) else None

    def sample(self, collection: str, count: int) -> npt.NDArray[np.float32]:
        """Return embeddings of up to `count` rows, chosen at random, but always the same ones."""

        def run(table: Any) -> pa.Table:
            rows = table.count_rows()
            places = np.random.default_rng(rows).choice(rows, min(count, rows), replace=False)
            return table.take_offsets(np.sort(places).tolist()).select([EMBEDDING]).to_arrow()

        return stack_vectors(self._read(collection, run))

    def list_keys(self, collection: str) -> pa.Table:
        """Return the columns of `KEY` of all rows."""
        return self._read(collection, lambda table: table.search().select([*KEY]).to_arrow())

    def close(self) -> None:
        """Release what the store holds."""
        self._opened.clear()
        self._state_table = None
        self._connection = None

    def _read(self, collection: str, run: Callable[[Any], Result]) -> Result:
        """Return what `run` reads of a collection.

        A file that is gone has been replaced by the writer: the collection is opened once more.
        """
        with self._convert_errors():
            try:
                return run(self._open(collection))
            except _LANCE_ERRORS as error:
                _LOG.info("opening the collection '%s' again: %s", collection, explain(error))
                self._opened.clear()
                return run(self._open(collection))

    def _open(self, collection: str) -> Any:
        """Return a collection as the newest commit has it."""
        self._refresh()
        self._check_collection(collection)
        if collection not in self._opened:
            table = self._connection.open_table(collection)
            table.checkout(self._versions[collection])
            self._opened[collection] = table
        return self._opened[collection]

    def _check_collection(self, collection: str) -> None:
        if collection not in self._versions:
            raise SetupError(
                f"the index at '{self.address}' has no collection '{collection}': it may have been "
                "built again in the meantime; repeat the command"
            )

    def _refresh(self) -> None:
        """Read the newest commit, if there is one that has not been read."""
        if not self._find_state_table():
            return
        self._state_table.checkout_latest()
        if (version := self._state_table.version) == self._state_version:
            return
        self._state, versions = self._read_commit()
        for name in [one for one in self._opened if versions.get(one) != self._versions.get(one)]:
            del self._opened[name]
        self._versions = versions
        self._state_version = version

    def _find_state_table(self) -> bool:
        """Open the table of the state; return False if there is no index."""
        if self._state_table is not None:
            return True
        if self._location.folder is not None and not self._location.folder.is_dir():
            return False
        if self._connection is None:
            self._connection = self._connect(
                self._location.uri, storage_options=dict(self._location.storage_options)
            )
        names = self._list_tables()
        if _STATE_TABLE in names:
            self._state_table = self._connection.open_table(_STATE_TABLE)
            return True
        if names:
            raise SetupError(
                f"'{self.address}' holds tables of something else, such as '{names[0]}'; set "
                "index.path to a folder that is the index's alone"
            )
        return False

    def _read_commit(self) -> tuple[str | None, dict[str, int]]:
        rows = self._state_table.search().to_arrow()
        if rows.schema.names != _STATE_SCHEMA.names:
            raise SetupError(
                f"the table '{_STATE_TABLE}' at '{self.address}' is not embedstream's; set "
                "index.path to a folder that is the index's alone"
            )
        if not rows.num_rows:
            return None, {}
        row = rows.to_pylist()[0]
        return row["state"], json.loads(row["versions"])

    def _list_tables(self) -> list[str]:
        names: list[str] = []
        token: str | None = None
        while True:
            page = self._connection.list_tables(page_token=token)
            names += page.tables
            if not (token := page.page_token):
                return names

    @contextmanager
    def _convert_errors(self) -> Iterator[None]:
        try:
            yield
        except _LANCE_ERRORS as error:
            raise SetupError(
                f"the index at '{self.address}' cannot be used: {explain(error)}"
            ) from error


class LanceWriter(LanceStore):
    """The collections of an index, for the only writer."""

    def __init__(self, location: LanceLocation, *, grace: timedelta = _GRACE) -> None:
        super().__init__(location)
        self._grace = grace
        self._is_half_done = False
        self._unlock = lock_folder(location)
        try:
            with self._convert_errors():
                self._refresh()
                if self._state_table is None:
                    self._state_table = self._connection.create_table(
                        _STATE_TABLE, schema=_STATE_SCHEMA
                    )
                    self._state_version = self._state_table.version
                self._restore()
        except BaseException:
            self._unlock()
            raise

    def close(self) -> None:
        """Release what the store holds, and let other writers in."""
        super().close()
        self._unlock()

    def read_state(self) -> str | None:
        """Return the state that was last written; None if there is no index yet."""
        return self._state

    def write(self, writes: Sequence[Write], state: str) -> None:
        """Do all writes and replace the state, or do nothing; see `StoreWriter.write`."""
        with self._transact() as versions:
            for one in writes:
                self._apply(one, versions)
            self._commit(state, versions)

    def drop(self, collections: Sequence[str]) -> None:
        """Delete collections; one that does not exist is ignored."""
        with self._transact() as versions:
            for name in collections:
                versions.pop(name, None)
                self._opened.pop(name, None)
            # The commit comes first, so that it never names a collection that is gone.
            self._commit(self._state, versions)
            self._drop_unnamed()

    def list_collections(self) -> list[str]:
        """Return the names of all collections that exist."""
        return list(self._versions)

    def build_ann(self, collection: str, *, rows: int, dimension: int) -> AnnIndex | None:
        """Build an IVF_SQ index, or replace it; there is one for any dimension.

        It has as many partitions as the square root of the rows, LanceDB's own default. The kind
        was chosen by measuring: docs/decisions/0026-approximate-index.md.
        """
        from lancedb.index import IvfSq

        partitions = round(rows**0.5)
        index = IvfSq(distance_type="cosine", num_partitions=partitions)
        with self._transact() as versions:
            table = self._open(collection)
            table.create_index(EMBEDDING, config=index, replace=True)
            versions[collection] = table.version
            self._commit(self._state, versions)
        return AnnIndex(
            kind="IVF_SQ",
            parameters={"partitions": partitions, "refine_factor": REFINE_FACTOR},
            efforts=[*(one for one in _PROBES if one < partitions), partitions],
        )

    def maintain(self, collections: Sequence[str]) -> None:
        """Merge small files, add new rows to the approximate index, delete old versions."""
        with self._transact() as versions:
            # The recorded versions may go only after the new ones are recorded.
            for age in (_NEVER, self._grace):
                for name in collections:
                    table = self._open(name)
                    table.optimize(cleanup_older_than=age)
                    versions[name] = table.version
                self._commit(self._state, versions)
            self._state_table.optimize(cleanup_older_than=self._grace)
            self._state_version = self._state_table.version

    def _open(self, collection: str) -> Any:
        """Return a collection at its newest version, which is the one of the last commit."""
        if collection not in self._opened:
            self._check_collection(collection)
            table = self._connection.open_table(collection)
            if table.version != self._versions[collection]:
                raise self._refuse_writer()
            self._opened[collection] = table
        return self._opened[collection]

    def _apply(self, write: Write, versions: dict[str, int]) -> None:
        """Do one write; put the version that the collection has then into `versions`."""
        name = write.collection
        if name in versions:
            table = self._open(name)
        elif write.rows is not None:
            table = self._connection.create_table(name, schema=write.rows.schema)
            self._opened[name] = table
        else:
            return
        for condition in list_delete_conditions(table, write):
            self._advance(table, partial(table.delete, condition))
        if write.rows is not None and write.rows.num_rows:
            insert = table.add
            if write.mode == "upsert":
                merge = table.merge_insert([*KEY])
                insert = merge.when_matched_update_all().when_not_matched_insert_all().execute
            self._advance(table, partial(insert, write.rows))
        versions[name] = table.version

    def _advance(self, table: Any, change: Callable[[], object]) -> None:
        """Make a change; Lance would put it after the changes of another writer in silence."""
        before = table.version
        change()
        if table.version != before + 1:
            raise self._refuse_writer()

    @contextmanager
    def _transact(self) -> Iterator[dict[str, int]]:
        """Enclose changes that end with a commit; undo them if it does not come to that."""
        with self._convert_errors():
            if self._is_half_done:
                self._restore()
            self._check_alone()
            self._is_half_done = True
            try:
                yield dict(self._versions)
            except BaseException:
                self._restore()
                raise
            self._is_half_done = False

    def _commit(self, state: str | None, versions: dict[str, int]) -> None:
        """Replace the row of the state."""
        self._check_alone()
        row = pa.table([[state], [json.dumps(versions)]], schema=_STATE_SCHEMA)
        self._advance(self._state_table, partial(self._state_table.add, row, mode="overwrite"))
        self._state, self._versions = state, dict(versions)
        self._state_version = self._state_table.version

    def _check_alone(self) -> None:
        self._state_table.checkout_latest()
        if self._state_table.version != self._state_version:
            raise self._refuse_writer()

    def _refuse_writer(self) -> SetupError:
        return SetupError(
            f"another process has written to the index at '{self.address}'; stop it, or give each "
            "table an index.path of its own"
        )

    def _restore(self) -> None:
        """Return to the last commit, and commit that: another writer notices it."""
        self._check_alone()
        self._opened.clear()
        versions: dict[str, int] = {}
        for name, version in self._versions.items():
            try:
                table = self._connection.open_table(name)
                if table.version != version:
                    table.restore(version)
            except ValueError as error:
                _LOG.warning(
                    "the index at '%s' is lost and will be built again: version %d of '%s': %s",
                    self.address,
                    version,
                    name,
                    explain(error),
                )
                versions = {}
                self._state = None
                break
            versions[name] = table.version
        self._commit(self._state, versions)
        self._drop_unnamed()
        self._is_half_done = False

    def _drop_unnamed(self) -> None:
        """Delete the collections that the last commit does not name."""
        for name in self._list_tables():
            if name != _STATE_TABLE and name not in self._versions:
                self._connection.drop_table(name, ignore_missing=True)
