"""Read a whole version of the table into collections of their own, which then replace the others.

The files are read in the order of their paths, and what has been read of them is recorded with the
rows, so an interrupted pass goes on. A table with deletion vectors or column mapping is read by
deltalake's query engine, which has no such order: an interrupted pass over it starts over.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa

from embedstream.index.index_writer import IndexWriter
from embedstream.index.reports import FullPassBegun, FullPassEnded, FullPassGoesOn
from embedstream.index.rows import name_attribute_column
from embedstream.index.source.data_files import (
    build_outcome_schema,
    read_onwards,
    select_embedded,
)
from embedstream.index.source.log_entries import (
    CannotFollow,
    DataFile,
    check_features,
    check_schema,
    hash_commit,
    is_column_mapped,
)
from embedstream.index.source.table_files import TableFiles
from embedstream.index.source.table_reader import (
    has_field,
    name_columns,
    open_table,
    select_batches,
)
from embedstream.index.source.tombstones import Tombstones, read_tombstones
from embedstream.index.sql_text import quote_text
from embedstream.index.state import FullPass, IndexState
from embedstream.index.transaction import BYTES_PER_WRITE, ROWS_PER_WRITE, Transaction
from embedstream_core.errors import SetupError

__all__ = ["begin_full_pass", "check_readable", "continue_full_pass"]

_REPORT_S = 1.0


def check_readable(opened: Any) -> None:
    """Check that a table has the columns of embedstream, and no feature unknown here.

    Raises:
        SetupError: it has not.
    """
    check_features(opened.protocol().reader_features or ())
    check_schema(opened.schema().to_json())


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
    opened = _open_version(table, full_pass.version)
    sources = _list_files(opened)
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


def _open_version(table: str, version: int) -> Any:
    try:
        return open_table(table, version=version)
    except SetupError as error:
        open_table(table)
        raise CannotFollow(f"version {version} is not there any more ({error})") from None


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
    for *position, outcomes in _read_parts(opened, sources, full_pass):
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


def _list_files(opened: Any) -> list[DataFile] | None:
    """Return the table's files in the order of their paths; None if they cannot be read as such."""
    if is_column_mapped(opened.metadata().configuration):
        return None
    vectors = opened.deletion_vectors()
    if vectors is not None and pa.table(vectors).num_rows:
        return None
    actions = pa.table(opened.get_add_actions())
    paths = actions.column("path").to_pylist()
    partitions: list[Any] = [{}] * len(paths)
    if "partition" in actions.schema.names:
        partitions = actions.column("partition").to_pylist()
    found = [
        DataFile.from_log(path, partition_values=values or {})
        for path, values in zip(paths, partitions, strict=True)
    ]
    return sorted(found, key=lambda file: file.path)


def _read_parts(
    opened: Any, sources: Sequence[DataFile] | None, full_pass: FullPass
) -> Iterator[tuple[int, int, pa.Table]]:
    if sources is not None:
        yield from read_onwards(
            TableFiles(opened),
            sources,
            full_pass.attributes,
            files_done=full_pass.files_done,
            rows_done=full_pass.rows_done,
        )
        return
    schema = build_outcome_schema(full_pass.attributes, "all")
    selected = _select_columns(opened, full_pass.attributes)
    where = "embedding IS NOT NULL AND error IS NULL"
    for batch in select_batches(opened, f"{selected} FROM outcomes WHERE {where}"):
        columns = [batch.column(name).cast(schema.field(name).type) for name in schema.names]
        yield 0, 0, pa.Table.from_arrays(columns, schema=schema)


def _select_columns(opened: Any, attributes: Sequence[str]) -> str:
    """Return the columns of `build_outcome_schema` in SQL."""
    present = name_columns(opened)
    selected = {name: f'"{name}"' for name in build_outcome_schema((), "all").names}
    selected |= {"code": "CAST(NULL AS STRING)", "change": "CAST(NULL AS STRING)"}
    for name, field in (("media_type", "type"), ("duration_s", "duration_s")):
        is_there = has_field(opened, "media", field)
        selected[name] = f"media['{field}']" if is_there else "NULL"
    for attribute in attributes:
        expression = f"attributes[{quote_text(attribute)}]" if "attributes" in present else "NULL"
        selected[name_attribute_column(attribute)] = expression
    return ", ".join(f'{expression} AS "{name}"' for name, expression in selected.items())
