"""Read a whole version of the table, a part at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa

from embedstream.follow.data_files import CHANGE, SOURCES, Columns, read_onwards
from embedstream.follow.log_entries import (
    CannotFollow,
    DataFile,
    check_features,
    check_schema,
    is_column_mapped,
)
from embedstream.follow.sql_text import quote_name, quote_text
from embedstream.follow.table_files import TableFiles
from embedstream.follow.table_reader import has_field, name_columns, open_table, select_batches
from embedstream_core.errors import SetupError

__all__ = ["check_readable", "list_files", "open_version", "read_whole"]


def check_readable(opened: Any) -> None:
    """Check that a table has the columns of embedstream, and no feature unknown here.

    Raises:
        SetupError: it has not.
    """
    check_features(opened.protocol().reader_features or ())
    check_schema(opened.schema().to_json())


def open_version(table: str, version: int) -> Any:
    """Return a version of the table, as a `deltalake.DeltaTable`.

    Raises:
        CannotFollow: the version cannot be read any more.
        SetupError: the table cannot be read at all.
    """
    try:
        return open_table(table, version=version)
    except SetupError as error:
        open_table(table)
        raise CannotFollow(f"version {version} is not there any more ({error})") from None


def list_files(opened: Any) -> list[DataFile] | None:
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


def read_whole(
    opened: Any,
    sources: Sequence[DataFile] | None,
    columns: Columns,
    *,
    files_done: int = 0,
    rows_done: int = 0,
    where: str = "TRUE",
) -> Iterator[tuple[int, int, pa.Table]]:
    """Yield the outcomes of a version from a position on, each part with the position after it.

    `sources` are those of `list_files`. Without them deltalake's query engine reads the rows: in no
    order, so the positions are 0 and everything is read, of which `where` may leave out a part.

    Raises:
        CannotFollow: a file is gone.
        SetupError: the table cannot be read.
    """
    if sources is not None:
        yield from read_onwards(
            TableFiles(opened), sources, columns, files_done=files_done, rows_done=rows_done
        )
        return
    schema = columns.schema
    for batch in select_batches(opened, f"{_select(opened, columns)} FROM outcomes WHERE {where}"):
        cast = [batch.column(name).cast(schema.field(name).type) for name in schema.names]
        yield 0, 0, pa.Table.from_arrays(cast, schema=schema)


def _select(opened: Any, columns: Columns) -> str:
    """Return the columns in SQL."""
    present = name_columns(opened)
    selected = []
    for name in columns.schema.names:
        source, part = SOURCES.get(name, (name, None))
        expression = "NULL"
        if name in columns.attributes:
            if "attributes" in present:
                expression = f"attributes[{quote_text(columns.attributes[name])}]"
        elif part is not None:
            if has_field(opened, source, part):
                expression = f"{source}['{part}']"
        elif name != CHANGE and name in present:
            expression = quote_name(name)
        selected.append(f"{expression} AS {quote_name(name)}")
    return ", ".join(selected)
