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
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from embedstream.config.sections import IndexConfig
from embedstream.index.rows import KEY
from embedstream.index.stores.contract import READ_ROWS, AnnIndex, Write
from embedstream.index.stores.lance_indexes import (
    KEEP_ALL,
    count_partitions,
    count_segments,
    create_indexes,
    list_efforts,
)
from embedstream.index.stores.lance_location import LanceLocation, locate_index, lock_folder
from embedstream.index.stores.lance_queries import (
    EMBEDDING,
    REFINE_FACTOR,
    list_delete_conditions,
    stack_vectors,
)
from embedstream.index.stores.lance_reader import STATE_SCHEMA, STATE_TABLE, LanceStore
from embedstream_core.errors import SetupError

__all__ = ["LanceStore", "LanceWriter", "open_store"]

_log = logging.getLogger(__name__)

# How long a reader may go on with files that `maintain` has replaced.
_GRACE = timedelta(minutes=1)

# Each segment of an approximate index adds 0.3 ms to a search over 64 dimensions.
_MAX_SEGMENTS = 32


def open_store(
    config: IndexConfig, *, table: str, mode: Literal["read", "write"]
) -> LanceStore | LanceWriter:
    """Open the index of a table; see `kinds.open_store`."""
    location = locate_index(config.path, table=table)
    return LanceWriter(location) if mode == "write" else LanceStore(location)


class LanceWriter(LanceStore):
    """The collections of an index, for the only writer."""

    def __init__(
        self,
        location: LanceLocation,
        *,
        grace: timedelta = _GRACE,
        max_segments: int = _MAX_SEGMENTS,
    ) -> None:
        super().__init__(location)
        self._grace = grace
        self._max_segments = max_segments
        self._is_half_done = False
        self._unlock = lock_folder(location)
        try:
            with self._convert_errors():
                self._refresh()
                if self._state_table is None:
                    self._state_table = self._connection.create_table(
                        STATE_TABLE, schema=STATE_SCHEMA
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

    def read_vectors(self, collection: str) -> Iterator[tuple[pa.Table, npt.NDArray[np.float32]]]:
        """Yield the columns of `KEY` and the embeddings of all rows in parts."""
        with self._convert_errors():
            query = self._open(collection).search().select([*KEY, EMBEDDING])
            for batch in query.to_batches(READ_ROWS):
                part = pa.table(batch)
                yield part.select(KEY), stack_vectors(part)

    def list_collections(self) -> list[str]:
        """Return the names of all collections that exist."""
        return list(self._versions)

    def build_ann(self, collection: str, *, rows: int, dimension: int) -> AnnIndex | None:
        """Build an IVF_SQ index, or replace it; there is one for any dimension."""
        with self._transact() as versions:
            table = self._open(collection)
            create_indexes(table, rows)
            versions[collection] = table.version
            self._commit(self._state, versions)
        return AnnIndex(
            kind="IVF_SQ",
            parameters={"partitions": count_partitions(rows), "refine_factor": REFINE_FACTOR},
            efforts=list_efforts(rows),
        )

    def maintain(self, collections: Sequence[str]) -> None:
        """Merge small files, add new rows to the approximate index, delete old versions.

        Lance indexes new rows in a segment of their own. Where these are too many, the approximate
        index is built again, with the same rule for its partitions.
        """
        with self._transact() as versions:
            for name in collections:
                table = self._open(name)
                # The recorded version may be deleted only after the new one is recorded.
                for age in (KEEP_ALL, self._grace):
                    table.optimize(cleanup_older_than=age)
                    if count_segments(table) > self._max_segments:
                        create_indexes(table, table.count_rows())
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
        # Not merge_insert, which took three times the time of both, and left Lance to rewrite the
        # approximate index in the next `maintain`.
        if write.rows is not None and write.rows.num_rows:
            self._advance(table, partial(table.add, write.rows))
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
        row = pa.table([[state], [json.dumps(versions)]], schema=STATE_SCHEMA)
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
        existing = self._list_tables()
        state = self._state
        versions: dict[str, int] = {}
        for name, version in self._versions.items():
            table = self._connection.open_table(name) if name in existing else None
            # An error is no answer here: a store that is down must not cost the whole index.
            if table is None or not _has_version(table, version):
                _log.warning(
                    "the index at '%s' is lost and will be built again: version %d of its "
                    "collection '%s' does not exist any more",
                    self.address,
                    version,
                    name,
                )
                state, versions = None, {}
                break
            if table.version != version:
                table.restore(version)
            versions[name] = table.version
        self._commit(state, versions)
        self._drop_unnamed()
        self._is_half_done = False

    def _drop_unnamed(self) -> None:
        """Delete the collections that the last commit does not name."""
        for name in self._list_tables():
            if name != STATE_TABLE and name not in self._versions:
                self._connection.drop_table(name, ignore_missing=True)


def _has_version(table: Any, version: int) -> bool:
    return table.version == version or version in [one["version"] for one in table.list_versions()]
