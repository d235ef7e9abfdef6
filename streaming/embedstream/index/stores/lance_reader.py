"""An index in LanceDB, open for reading."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from embedstream.index.rows import KEY
from embedstream.index.stores.contract import Vector
from embedstream.index.stores.lance_location import LanceLocation
from embedstream.index.stores.lance_queries import (
    DIALECT,
    EMBEDDING,
    match_offsets,
    search_rows,
    stack_vectors,
)
from embedstream_core.errors import SetupError, explain
from embedstream_core.extras import require_extra

__all__ = ["STATE_SCHEMA", "STATE_TABLE", "LanceStore"]

Result = TypeVar("Result")

_log = logging.getLogger(__name__)

STATE_TABLE = "embedstream_state"
STATE_SCHEMA = pa.schema([("state", pa.string()), ("versions", pa.string())])
"""The only row of this table: the state, and the versions of the collections, in JSON."""

# The builder warns of each partition that a segment of new rows lacks, which is no fault:
# docs/decisions/0026-approximate-index.md.
_LANCE_LOG = "warn,lance::index::vector::builder=error"

# LanceDB has no error types of its own. A table or a version that is missing and a condition that
# is wrong are a ValueError; files that are gone and stores that refuse are one of the others.
_LANCE_ERRORS = (ValueError, RuntimeError, OSError)


class LanceStore:
    """The collections of an index, for reading."""

    def __init__(self, location: LanceLocation) -> None:
        # LanceDB reads it when it is imported.
        os.environ.setdefault("LANCEDB_LOG", _LANCE_LOG)
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
                _log.info("opening the collection '%s' again: %s", collection, explain(error))
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
        if STATE_TABLE in names:
            try:
                self._state_table = self._connection.open_table(STATE_TABLE)
            except ValueError:
                # A writer has made the folder, and not yet the first version in it.
                return False
            return True
        if names:
            raise SetupError(
                f"'{self.address}' holds tables of something else, such as '{names[0]}'; set "
                "index.path to a folder that is the index's alone"
            )
        return False

    def _read_commit(self) -> tuple[str | None, dict[str, int]]:
        rows = self._state_table.search().to_arrow()
        if rows.schema.names != STATE_SCHEMA.names:
            raise SetupError(
                f"the table '{STATE_TABLE}' at '{self.address}' is not embedstream's; set "
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
