"""The published rows that a commit removes."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc

from embedstream.config.publishing import PublishedRows
from embedstream.follow.changes import OLD, read_keys
from embedstream.follow.data_files import CHANGE, IDENTITY, select_new
from embedstream.follow.log_entries import Commit
from embedstream.follow.table_files import TableFiles
from embedstream.publish.messages import select_published

__all__ = ["find_removed"]


def find_removed(files: TableFiles, commit: Commit, rows: PublishedRows) -> pa.Table:
    """Return the keys of rows that a commit removes, or replaces by some that are not published.

    Raises:
        CannotFollow: they are more than are compared in memory, or a file is gone.
    """
    if commit.changes:
        keys = read_keys(files, commit.changes)
        old, new = keys.filter(pc.is_in(keys.column(CHANGE), value_set=OLD)), select_new(keys)
    else:
        old = read_keys(files, commit.removed)
        new = read_keys(files, commit.added) if old.num_rows else old
    before, after = (_fill_models(select_published(one, rows)) for one in (old, new))
    if not before.num_rows or not after.num_rows:
        return before
    keys = after.select(IDENTITY)
    return before.join(keys, keys=IDENTITY, join_type="left anti", use_threads=False)


def _fill_models(keys: pa.Table) -> pa.Table:
    """Return keys whose null models are equal to one another."""
    place = keys.schema.get_field_index("model_id")
    return keys.set_column(place, "model_id", pc.fill_null(keys.column("model_id"), ""))
