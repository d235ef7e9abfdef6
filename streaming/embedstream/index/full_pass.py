"""Read a whole version of the table into collections of their own, which then replace the others.

The files are read in the order of their paths, and what has been read of them is recorded with the
rows, so an interrupted pass goes on. A table with deletion vectors or column mapping is read by
deltalake's query engine, which has no such order: an interrupted pass over it starts over.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from typing import Any

from embedstream.follow.data_files import select_embedded
from embedstream.follow.log_entries import CannotFollow, DataFile, hash_commit
from embedstream.follow.table_files import TableFiles
from embedstream.follow.table_reader import open_table
from embedstream.follow.tombstones import Tombstones, read_tombstones
from embedstream.follow.whole_table import check_readable, list_files, open_version, read_whole
from embedstream.index.index_writer import IndexWriter
from embedstream.index.reports import FullPassBegun, FullPassEnded, FullPassGoesOn
from embedstream.index.rows import choose_columns
from embedstream.index.state import FullPass, IndexState
from embedstream.index.transaction import BYTES_PER_WRITE, ROWS_PER_WRITE, Transaction
from embedstream_core.errors import SetupError

__all__ = ["begin_full_pass", "continue_full_pass"]

_REPORT_S = 1.0


def begin_full_pass(index: IndexWriter, opened: Any, *, reason: str) -> None:
    """Record that a full pass over a version of a table begins; its collections are dropped last.

    Rows of another table are dropped at once.

    Raises:
        SetupError: the table cannot be read.
    """
    check_readable(opened)
    table_id = opened.metadata().id
    attributes = index.config.attributes
    state = index.state
    if state is None or state.table_id != table_id:
        generation = 0 if state is None else state.generation
        state = IndexState(
            table=opened.table_uri,
            table_id=table_id,
            attributes=attributes,
            generation=generation,
        )
    full_pass = FullPass(
        version=opened.version(),
        commit_sha256=hash_commit(TableFiles(opened), opened.version()),
        table_id=table_id,
        attributes=attributes,
        reason=reason,
    )
    changes = {"generation": state.generation + 1, "full_pass": full_pass}
    index.write([], state.model_copy(update=changes))
    index.drop_unnamed()


def continue_full_pass(index: IndexWriter, table: str, *, stop: threading.Event) -> bool:
    """Bring the full pass that has begun to its end; return False if it was stopped before.

    Raises:
        CannotFollow: the version cannot be read any more.
        SetupError: the table cannot be read.
    """
    full_pass = _get_pass(index)
    opened = open_version(table, full_pass.version)
    sources = list_files(opened)
    newest = open_table(table)
    if sources is None and (full_pass.collections or newest.version() > full_pass.version):
        raise CannotFollow("the pass was interrupted, and such a table has no order to go on in")
    start = time.monotonic()
    index.report(
        FullPassBegun(
            reason=full_pass.reason,
            version=full_pass.version,
            files_done=full_pass.files_done,
            files=None if sources is None else len(sources),
        )
    )
    try:
        # The newest version's files are there, and the order of commits does not matter.
        rows = _copy_rows(index, opened, sources, read_tombstones(newest), stop)
    except CannotFollow as error:
        if open_table(table).version() > full_pass.version:
            raise
        raise SetupError(f"the table '{table}' cannot be read: {error}") from None
    if rows is None or stop.is_set():
        return False
    _switch(index)
    duration = time.monotonic() - start
    index.report(FullPassEnded(version=full_pass.version, rows=rows, duration_s=duration))
    return True


def _get_pass(index: IndexWriter) -> FullPass:
    full_pass = index.known.full_pass
    if full_pass is None:
        raise AssertionError("no full pass has begun")
    return full_pass


def _copy_rows(
    index: IndexWriter,
    opened: Any,
    sources: Sequence[DataFile] | None,
    tombstones: Tombstones,
    stop: threading.Event,
) -> int | None:
    """Write the rows that are left; return their number, or None if the pass was stopped."""
    full_pass = _get_pass(index)
    transaction = _begin_transaction(index)
    position = [full_pass.files_done, full_pass.rows_done]
    rows, start, reported = 0, time.monotonic(), 0.0
    for *position, outcomes in read_whole(
        opened,
        sources,
        choose_columns(full_pass.attributes),
        files_done=full_pass.files_done,
        rows_done=full_pass.rows_done,
        where="embedding IS NOT NULL AND error IS NULL",
    ):
        if stop.is_set():
            return None
        transaction.add(tombstones.hide(select_embedded(outcomes)))
        if transaction.bytes < BYTES_PER_WRITE and transaction.rows < ROWS_PER_WRITE:
            continue
        rows += _flush(index, transaction, position)
        transaction = _begin_transaction(index)
        elapsed = time.monotonic() - start
        if elapsed - reported > _REPORT_S:
            reported = elapsed
            index.report(
                FullPassGoesOn(
                    rows=rows,
                    files_done=position[0],
                    files=None if sources is None else len(sources),
                    rows_per_s=rows / elapsed,
                )
            )
    return rows + _flush(index, transaction, position)


def _begin_transaction(index: IndexWriter) -> Transaction:
    full_pass = _get_pass(index)
    transaction = Transaction(
        full_pass.collections,
        generation=index.known.generation,
        attributes=full_pass.attributes,
    )
    transaction.begin("append")
    return transaction


def _flush(index: IndexWriter, transaction: Transaction, position: Sequence[int]) -> int:
    writes = transaction.build_writes()
    files_done, rows_done = position
    changes = {
        "files_done": files_done,
        "rows_done": rows_done,
        "collections": transaction.collections,
    }
    full_pass = _get_pass(index).model_copy(update=changes)
    index.write(writes, index.known.model_copy(update={"full_pass": full_pass}))
    return transaction.rows


def _switch(index: IndexWriter) -> None:
    """Let the new collections take the place of the old ones, and drop these.

    Where there are old ones, the new ones get their approximate indexes before: until then readers
    use the old ones.
    """
    full_pass, collections = _get_pass(index), _get_pass(index).collections
    if index.known.version is not None:
        collections = index.build_anns(collections)
    index.update(
        table_id=full_pass.table_id,
        attributes=full_pass.attributes,
        version=full_pass.version,
        commit_sha256=full_pass.commit_sha256,
        partial=None,
        collections=collections,
        full_pass=None,
    )
    index.drop_unnamed()
    # Its writes were large, so there is nothing to merge.
    index.complete()
