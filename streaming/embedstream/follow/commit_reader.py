"""Read a table's commits one after the other, and the keys of the rows that they change."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from embedstream.follow.data_files import CHANGE, KEYS, concat, read_onwards
from embedstream.follow.log_entries import (
    CannotFollow,
    Commit,
    DataFile,
    check_features,
    check_schema,
    hash_commit,
    is_column_mapped,
    read_commit,
)
from embedstream.follow.table_files import TableFiles
from embedstream_core.errors import SetupError

__all__ = ["CommitReader", "concat_keys", "read_keys", "read_old_keys"]

# The most rows that a commit may remove and be followed. Their keys are compared in memory, where
# one takes about 80 bytes; the memory of a full pass does not depend on the table.
_MOST_REMOVED = 5_000_000

# The kinds of rows of a change data feed that are gone.
_OLD = pa.array(["delete", "update_preimage"])


class CommitReader:
    """Reads the commits of an open table, and checks that they can be followed."""

    def __init__(self, opened: Any) -> None:
        self.files = TableFiles(opened)
        self._is_mapped = is_column_mapped(opened.metadata().configuration)

    def read_next(self, version: int, *, sha256: str | None = None) -> Commit | None:
        """Return the commit after a version; None if there is none yet.

        `sha256` is of the entry of `version` as it was when it was followed.

        Raises:
            CannotFollow: the log has another entry of `version` now.
            SetupError: the log cannot be read.
        """
        commit = read_commit(self.files, version + 1)
        if commit is None or sha256 is None:
            return commit
        if hash_commit(self.files, version) not in (None, sha256):
            raise CannotFollow(
                f"the table's version {version} is not the one that was followed: the table was "
                "created again, or restored from a copy"
            )
        return commit

    def check(self, commit: Commit, *, table_id: str) -> None:
        """Check that a commit is of this table, and that it names the rows that it changes.

        Raises:
            CannotFollow: it is not, or does not; a full pass reports what it finds wrong with the
                table.
        """
        if commit.metadata is not None:
            self._is_mapped = is_column_mapped(commit.metadata.get("configuration") or {})
        if commit.table_id not in (None, table_id):
            raise CannotFollow("it begins another table")
        try:
            check_features(commit.reader_features)
            if commit.metadata is not None:
                check_schema(str(commit.metadata["schemaString"]))
        except SetupError as error:
            raise CannotFollow(str(error)) from None
        if self._is_mapped and (commit.new_files or commit.removed):
            raise CannotFollow("the columns have other names in the files (column mapping)")
        changed = (*commit.added, *commit.removed)
        if not commit.changes and any(one.has_deletions for one in changed):
            raise CannotFollow("it has deletion vectors, and no change data feed")

    def check_log(self, version: int, *, newest: int) -> None:
        """Check that the commit after a version can be read, if the table has later ones.

        Raises:
            CannotFollow: its entry is gone.
        """
        if newest > version and read_commit(self.files, version + 1) is None:
            raise CannotFollow(f"the entry {version + 1} of the table's log is gone")


def read_keys(files: TableFiles, sources: Sequence[DataFile]) -> pa.Table:
    """Return the rows of files in the columns of `KEYS`.

    Raises:
        CannotFollow: they are more than are compared in memory, or a file is gone.
    """
    tables, rows = [], 0
    for _, _, keys in read_onwards(files, sources, KEYS):
        tables.append(keys)
        rows += keys.num_rows
        if rows > _MOST_REMOVED:
            raise CannotFollow(f"it changes more than {_MOST_REMOVED:,} rows")
    return concat_keys(tables)


def read_old_keys(files: TableFiles, commit: Commit, found: pa.Table) -> pa.Table:
    """Return the keys of the rows that a commit removes or replaces, in the columns of `KEYS`.

    `found` are the keys in its new files, which hold the old rows too if they are a change data
    feed's.

    Raises:
        CannotFollow: they are more than are compared in memory, or a file is gone.
    """
    if commit.changes:
        return found.filter(pc.is_in(found.column(CHANGE), value_set=_OLD))
    return read_keys(files, commit.removed)


def concat_keys(tables: Sequence[pa.Table]) -> pa.Table:
    """Return tables in the columns of `KEYS` as one."""
    return concat(tables, KEYS.schema)
