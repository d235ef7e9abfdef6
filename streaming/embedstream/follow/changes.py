"""Turn a commit of the table into changes of the index: upserts, deleted rows, tombstones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from embedstream.follow.data_files import (
    IDENTITY,
    KEYS,
    Columns,
    concat,
    read_onwards,
    select_embedded,
    select_new,
    select_tombstones,
)
from embedstream.follow.log_entries import (
    CannotFollow,
    Commit,
    DataFile,
    check_features,
    check_schema,
)
from embedstream.follow.table_files import TableFiles
from embedstream_core.errors import SetupError

__all__ = ["OLD", "Changes", "check_commit", "read_changes", "read_keys"]

# The most rows that a commit may remove and be followed. Their keys are compared in memory, where
# one takes about 80 bytes; the memory of a full pass does not depend on the table.
_MOST_REMOVED = 5_000_000


@dataclass(frozen=True, slots=True)
class Changes:
    """What a commit changes.

    Attributes:
        commit: The commit.
        outcomes: Its new rows, failures among them; None if they are too much to be kept.
        added: The number of embeddings whose keys the commit did not remove.
        replaced: The number of those whose keys it did.
        removed: The number of rows that the commit removed for good.
        deleted: The keys that leave the index, in the columns of `IDENTITY`.
        tombstones: New ones, in the columns of `TOMBSTONE_SCHEMA`.
        lost_tombstones: Those that the commit has deleted from the table.
    """

    commit: Commit
    outcomes: Sequence[pa.Table] | None
    added: int
    replaced: int
    removed: int
    deleted: pa.Table
    tombstones: pa.Table
    lost_tombstones: pa.Table


def read_changes(
    files: TableFiles, commit: Commit, columns: Columns, *, keep_bytes: int
) -> Changes:
    """Return the changes of a commit; its new rows are kept if they have up to `keep_bytes`.

    Raises:
        CannotFollow: the commit needs a full pass.
    """
    check_commit(commit)
    outcomes = None
    if commit.size <= keep_bytes:
        read = read_onwards(files, commit.new_files, columns)
        outcomes = [outcomes for _, _, outcomes in read]
        found = _concat_keys([one.select(KEYS.schema.names) for one in outcomes])
    else:
        found = read_keys(files, commit.new_files)
    after = select_new(found)
    if commit.changes:
        before = found.filter(pc.is_in(found.column("change"), value_set=OLD))
    else:
        before = read_keys(files, commit.removed)
    embedded = select_embedded(after)
    # A row that was replaced by a failure leaves the index, too.
    gone = before if commit.mode == "append" else _concat_keys([before, after])
    removed = _subtract(before, embedded, IDENTITY).num_rows
    deleted = _subtract(gone, embedded, IDENTITY).filter(pc.field("model_id").is_valid())
    lost = _subtract(select_tombstones(before), select_tombstones(after), IDENTITY[1:])
    return Changes(
        commit=commit,
        outcomes=None if outcomes is None else list(map(select_new, outcomes)),
        added=embedded.num_rows - (before.num_rows - removed),
        replaced=before.num_rows - removed,
        removed=removed,
        deleted=deleted.select(IDENTITY),
        tombstones=select_tombstones(after),
        lost_tombstones=lost,
    )


OLD = pa.array(["delete", "update_preimage"])
"""The kinds of rows of a change data feed that are gone."""


def check_commit(commit: Commit) -> None:
    """Check that a commit names the rows that it changes, and that its table can be read.

    Raises:
        CannotFollow: it does not; a full pass reports what it finds wrong with the table.
    """
    try:
        check_features(commit.reader_features)
        if commit.metadata is not None:
            check_schema(str(commit.metadata["schemaString"]))
    except SetupError as error:
        raise CannotFollow(str(error)) from None
    if not commit.changes and any(one.has_deletions for one in (*commit.added, *commit.removed)):
        raise CannotFollow("it has deletion vectors, and no change data feed")


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
    return _concat_keys(tables)


def _concat_keys(tables: Sequence[pa.Table]) -> pa.Table:
    return concat(tables, KEYS.schema)


def _subtract(rows: pa.Table, others: pa.Table, keys: Sequence[str]) -> Any:
    """Return the rows whose keys no row of `others` has; nulls are equal to none."""
    if not rows.num_rows or not others.num_rows:
        return rows
    return rows.join(others.select(keys), keys=list(keys), join_type="left anti", use_threads=False)
