"""Turn a commit of the table into changes of the index: upserts, deleted rows, tombstones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from embedstream.follow.commit_reader import concat_keys, read_keys, read_old_keys
from embedstream.follow.data_files import (
    IDENTITY,
    KEYS,
    Columns,
    read_onwards,
    select_embedded,
    select_new,
    select_tombstones,
)
from embedstream.follow.log_entries import Commit
from embedstream.follow.table_files import TableFiles

__all__ = ["Changes", "read_changes"]


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
        CannotFollow: it removes more rows than are compared in memory, or a file is gone.
    """
    outcomes = None
    if commit.size <= keep_bytes:
        read = read_onwards(files, commit.new_files, columns)
        outcomes = [outcomes for _, _, outcomes in read]
        found = concat_keys([one.select(KEYS.schema.names) for one in outcomes])
    else:
        found = read_keys(files, commit.new_files)
    after = select_new(found)
    before = read_old_keys(files, commit, found)
    embedded = select_embedded(after)
    # A row that was replaced by a failure leaves the index, too.
    gone = before if commit.mode == "append" else concat_keys([before, after])
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


def _subtract(rows: pa.Table, others: pa.Table, keys: Sequence[str]) -> Any:
    """Return the rows whose keys no row of `others` has; nulls are equal to none."""
    if not rows.num_rows or not others.num_rows:
        return rows
    return rows.join(others.select(keys), keys=list(keys), join_type="left anti", use_threads=False)
