"""Apply the commits that follow the version which the index holds."""

from __future__ import annotations

import threading
from collections import Counter
from typing import Any

from embedstream.follow.changes import Changes, read_changes
from embedstream.follow.data_files import read_onwards, select_new
from embedstream.follow.log_entries import (
    CannotFollow,
    Commit,
    find_last_version,
    hash_commit,
    is_column_mapped,
    read_commit,
)
from embedstream.follow.table_files import TableFiles
from embedstream.follow.table_reader import open_table, select_batches
from embedstream.follow.tombstones import Tombstones, read_tombstones
from embedstream.index.index_writer import IndexWriter
from embedstream.index.reports import Applied
from embedstream.index.rows import choose_columns
from embedstream.index.state import Partial
from embedstream.index.transaction import BYTES_PER_WRITE, ROWS_PER_WRITE, Transaction

__all__ = ["CommitFollower"]

_COMMITS_PER_WRITE = 200


class CommitFollower:
    """Applies commits in order; several in one write where the index is behind."""

    def __init__(self, index: IndexWriter, opened: Any) -> None:
        self._index = index
        self._table = opened.table_uri
        self._files = TableFiles(opened)
        self._is_mapped = is_column_mapped(opened.metadata().configuration)
        self._tombstones: Tombstones | None = None

    def apply(self, stop: threading.Event) -> bool:
        """Apply the next commits, as many as one write takes; return False if there are none.

        Raises:
            CannotFollow: the next commit needs a full pass.
            SetupError: the log cannot be read, or the store cannot be written.
        """
        counts: Counter[str] = Counter()
        transaction = self._begin()
        last: Commit | None = None
        while (commit := self._read_next(last)) is not None:
            fits = transaction.bytes + commit.size <= BYTES_PER_WRITE
            if last is not None and not fits:
                break
            try:
                changes = self._read_changes(commit)
            except CannotFollow as error:
                if last is None:
                    raise CannotFollow(f"commit {commit.version}: {error}") from None
                # What comes before it is written first; the next call finds it again.
                break
            if changes.outcomes is None:
                if not self._write_parts(changes, stop):
                    return True
            else:
                self._add(transaction, changes)
            last = commit
            counts.update(_count(changes))
            is_full = transaction.rows >= ROWS_PER_WRITE or counts["commits"] >= _COMMITS_PER_WRITE
            if is_full or not fits or stop.is_set():
                break
        if last is None:
            return False
        self._write(transaction, last)
        behind = find_last_version(self._files, last.version) - last.version
        self._index.report(Applied(version=last.version, behind=behind, **counts))
        return True

    def _begin(self) -> Transaction:
        state = self._index.known
        return Transaction(
            state.collections, generation=state.generation, attributes=state.attributes
        )

    def _read_next(self, last: Commit | None) -> Commit | None:
        if last is not None:
            return read_commit(self._files, last.version + 1)
        state = self._index.known
        if state.version is None:
            return None
        commit = read_commit(self._files, state.version + 1)
        if commit is not None and state.commit_sha256 is not None:
            applied = hash_commit(self._files, state.version)
            if applied not in (None, state.commit_sha256):
                raise CannotFollow(
                    f"the table's version {state.version} is not the one that the index holds: it "
                    "was created again, or restored from a copy"
                )
        return commit

    def _read_changes(self, commit: Commit) -> Changes:
        if commit.metadata is not None:
            self._is_mapped = is_column_mapped(commit.metadata.get("configuration") or {})
        if commit.table_id not in (None, self._index.known.table_id):
            raise CannotFollow("it begins another table")
        if self._is_mapped and (commit.new_files or commit.removed):
            raise CannotFollow("the columns have other names in the files (column mapping)")
        columns = choose_columns(self._index.known.attributes)
        changes = read_changes(self._files, commit, columns, keep_bytes=BYTES_PER_WRITE)
        if changes.lost_tombstones.num_rows:
            self._tombstones = None
            self._check_lost(changes)
        if self._tombstones is not None:
            self._tombstones.add(changes.tombstones)
        return changes

    def _check_lost(self, changes: Changes) -> None:
        """Check that tombstones that were deleted from the table leave no row to bring back."""
        lost = Tombstones()
        lost.add(changes.lost_tombstones)
        opened = open_table(self._table)
        present = read_tombstones(opened)
        columns = 'topic, "partition", "key", "offset" FROM outcomes WHERE "key" IS NOT NULL'
        for batch in select_batches(opened, columns):
            visible = present.hide(batch)
            if lost.hide(visible).num_rows < visible.num_rows:
                raise CannotFollow("it deletes tombstones, and rows that they hid are still there")

    def _find_hidden(self, changes: Changes) -> Tombstones:
        """Return the tombstones that may hide new rows of a commit.

        For a stream's rows, these are its own: they are newer than any other. A replay adds old
        rows again, which a tombstone may have hidden since it read them.
        """
        if changes.commit.mode == "append":
            own = Tombstones()
            own.add(changes.tombstones)
            return own
        if self._tombstones is None:
            # Of the newest version: the rule does not depend on the order of commits.
            self._tombstones = read_tombstones(open_table(self._table))
        return self._tombstones

    def _add(self, transaction: Transaction, changes: Changes) -> None:
        hidden, partial = self._find_hidden(changes), self._index.known.partial
        # Some of its rows are there if it did not fit into one write when it was begun.
        is_begun = partial is not None and partial.version == changes.commit.version
        transaction.begin("upsert" if is_begun else changes.commit.mode)
        transaction.delete(changes.deleted)
        transaction.bury(changes.tombstones)
        for outcomes in changes.outcomes or ():
            transaction.add(hidden.hide(outcomes))

    def _write_parts(self, changes: Changes, stop: threading.Event) -> bool:
        """Write the rows of a commit that is too large for one write; return False if stopped.

        What has been written is recorded, so that no row is appended twice.
        """
        commit, state = changes.commit, self._index.known
        partial = state.partial
        if partial is None or partial.version != commit.version:
            partial = Partial(version=commit.version)
        hidden = self._find_hidden(changes)
        transaction = self._begin()
        transaction.begin(commit.mode)
        transaction.delete(changes.deleted)
        transaction.bury(changes.tombstones)
        for files_done, rows_done, outcomes in read_onwards(
            self._files,
            commit.new_files,
            choose_columns(state.attributes),
            files_done=partial.files_done,
            rows_done=partial.rows_done,
        ):
            transaction.add(hidden.hide(select_new(outcomes)))
            if transaction.bytes < BYTES_PER_WRITE and transaction.rows < ROWS_PER_WRITE:
                continue
            self._write_part(transaction, commit, files_done, rows_done)
            transaction = self._begin()
            transaction.begin(commit.mode)
            if stop.is_set():
                return False
        self._write_part(transaction, commit, len(commit.new_files), 0)
        return True

    def _write_part(
        self, transaction: Transaction, commit: Commit, files_done: int, rows_done: int
    ) -> None:
        partial = Partial(version=commit.version, files_done=files_done, rows_done=rows_done)
        writes = transaction.build_writes()
        changes = {"partial": partial, "collections": transaction.collections}
        self._index.write(writes, self._index.known.model_copy(update=changes))

    def _write(self, transaction: Transaction, last: Commit) -> None:
        writes = transaction.build_writes()
        changes = {
            "version": last.version,
            "commit_sha256": last.sha256,
            "partial": None,
            # A large commit has written its own.
            "collections": {**self._index.known.collections, **transaction.collections},
        }
        self._index.write(writes, self._index.known.model_copy(update=changes))


def _count(changes: Changes) -> dict[str, int]:
    return {
        "commits": 1,
        "added": changes.added,
        "replaced": changes.replaced,
        "deleted": changes.removed,
        "tombstones": changes.tombstones.num_rows,
    }
