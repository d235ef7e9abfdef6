"""Read outcomes from the Parquet files of a table, as Arrow without a Python object per value."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from embedstream.follow.log_entries import CannotFollow, DataFile
from embedstream.follow.table_files import TableFiles
from embedstream.follow.tombstones import TOMBSTONE_SCHEMA
from embedstream_core.errors import Code

__all__ = [
    "CHANGE",
    "IDENTITY",
    "KEYS",
    "SOURCES",
    "Columns",
    "concat",
    "read_onwards",
    "select_embedded",
    "select_new",
    "select_tombstones",
]

IDENTITY = ["model_id", "topic", "partition", "offset"]
"""The columns that identify a row of the table."""

# Rows of 384 floats were decoded at 450,000 rows/s in batches of 16,384 and at 220,000 as a whole
# row group of 100,000, and a writer may put a million rows into one.
_BATCH_BYTES = 16 * 2**20
_BATCH_ROWS = 16_384

SOURCES: Mapping[str, tuple[str, str]] = {
    "code": ("error", "code"),
    "error_stage": ("error", "stage"),
    "error_message": ("error", "message"),
    "media_type": ("media", "type"),
    "width": ("media", "width"),
    "height": ("media", "height"),
    "duration_s": ("media", "duration_s"),
    "characters": ("media", "characters"),
    "truncated": ("media", "truncated"),
}
"""The columns that are a field of a structure: the table's column, and the field."""

CHANGE = "change"
"""The column that says what a row of a change data feed is: insert, delete, update_preimage,
update_postimage; null elsewhere."""


@dataclass(frozen=True, slots=True)
class Columns:
    """What is read of each row: the columns of `schema`.

    A column is the table's of the same name, unless it is in `SOURCES`, or in `attributes`: then it
    is the message's attribute of that name. One that the table lacks is null.
    """

    schema: pa.Schema
    attributes: Mapping[str, str] = field(default_factory=dict)


KEYS = Columns(
    pa.schema(
        [
            pa.field("model_id", pa.string()),
            pa.field("topic", pa.string()),
            pa.field("partition", pa.int32()),
            pa.field("offset", pa.int64()),
            pa.field("key", pa.binary()),
            pa.field("code", pa.string()),
            pa.field(CHANGE, pa.string()),
        ]
    )
)
"""The columns by which the rows of commits are compared."""

_NEW = pa.array([None, "insert", "update_postimage"])


def read_onwards(
    files: TableFiles,
    sources: Sequence[DataFile],
    columns: Columns,
    *,
    files_done: int = 0,
    rows_done: int = 0,
) -> Iterator[tuple[int, int, pa.Table]]:
    """Yield the outcomes of files from a position on, each part with the position after it.

    A position is the number of a file and of a row in it. Columns that a file lacks are null, as
    those of tables of earlier versions.

    Raises:
        CannotFollow: a file is gone, or its partition has values that are not read here.
    """
    for number in range(files_done, len(sources)):
        done = rows_done if number == files_done else 0
        for outcomes in _read_file(files, sources[number], columns, skip=done):
            done += outcomes.num_rows
            yield number, done, outcomes


def select_new(outcomes: pa.Table) -> pa.Table:
    """Return the outcomes without the rows of a change data feed that are gone."""
    change = outcomes.column("change")
    if change.null_count == len(change):
        return outcomes
    return outcomes.filter(pc.is_in(change, value_set=_NEW))


def select_embedded(outcomes: pa.Table) -> pa.Table:
    """Return the outcomes that have an embedding, which are those of a model without an error."""
    has_one = pc.and_(pc.is_null(outcomes.column("code")), pc.is_valid(outcomes.column("model_id")))
    # A filter copies the vectors even if it keeps all of them.
    return outcomes if pc.all(has_one, min_count=0).as_py() else outcomes.filter(has_one)


def select_tombstones(outcomes: pa.Table) -> pa.Table:
    """Return the tombstones among outcomes, in the columns of `TOMBSTONE_SCHEMA`."""
    found = outcomes.filter((pc.field("code") == Code.DELETED) & pc.field("key").is_valid())
    return found.select(TOMBSTONE_SCHEMA.names)


def _read_file(
    files: TableFiles,
    file: DataFile,
    columns: Columns,
    *,
    skip: int,
) -> Iterator[pa.Table]:
    try:
        source = files.open(file.path)
    except FileNotFoundError:
        raise CannotFollow(f"the file {file.path} is gone, as after VACUUM") from None
    with source:
        # No pre-buffering: its threads would read, see `TableFiles`.
        parquet = pq.ParquetFile(source, pre_buffer=False, coerce_int96_timestamp_unit="us")
        wanted = _list_sources(parquet.schema_arrow, columns)
        for batch in parquet.iter_batches(
            _count_batch_rows(parquet.metadata), columns=wanted, use_threads=False
        ):
            if skip >= batch.num_rows:
                skip -= batch.num_rows
                continue
            yield _build_outcomes(batch.slice(skip), file, columns)
            skip = 0


def concat(tables: Sequence[pa.Table], schema: pa.Schema) -> pa.Table:
    """Return the tables as one; an empty one of that schema if there are none."""
    return pa.concat_tables(tables) if tables else schema.empty_table()


def _count_batch_rows(metadata: Any) -> int:
    total = sum(
        metadata.row_group(number).total_byte_size for number in range(metadata.num_row_groups)
    )
    row_bytes = max(1, total // max(1, metadata.num_rows))
    return int(max(1, min(_BATCH_ROWS, _BATCH_BYTES // row_bytes)))


def _list_sources(present: pa.Schema, columns: Columns) -> list[str]:
    """Return the columns of a file to read, as Parquet writes paths."""
    wanted = []
    for name in columns.schema.names:
        column, part = _find_source(name, columns)
        if column in present.names:
            wanted.append(column if part is None else f"{column}.{part}")
    return list(dict.fromkeys(wanted))


def _find_source(name: str, columns: Columns) -> tuple[str, str | None]:
    if name == CHANGE:
        return "_change_type", None
    return ("attributes", None) if name in columns.attributes else SOURCES.get(name, (name, None))


def _build_outcomes(batch: pa.RecordBatch, file: DataFile, columns: Columns) -> pa.Table:
    built = []
    for column in columns.schema:
        name, part = _find_source(column.name, columns)
        if name in file.partition_values:
            values = _repeat_value(file.partition_values[name], column, batch.num_rows)
        elif name not in batch.schema.names:
            values = None
        elif column.name in columns.attributes:
            attribute = columns.attributes[column.name]
            values = pc.map_lookup(batch.column(name), attribute, "first")
        else:
            values = batch.column(name)
            if part is not None:
                has_part = values.type.get_field_index(part) >= 0
                values = pc.struct_field(values, part) if has_part else None
        if values is None:
            values = pa.nulls(batch.num_rows, column.type)
        built.append(values.cast(column.type))
    return pa.Table.from_arrays(built, schema=columns.schema)


def _repeat_value(value: Any, field: pa.Field, rows: int) -> pa.Array:
    """Return a value of the partition as a column; the log writes it as a text, and null as ''."""
    if value is None or value == "":
        return pa.nulls(rows, field.type)
    if isinstance(value, str):
        if pa.types.is_binary(field.type):
            raise CannotFollow(f"the table is partitioned by {field.name}, which is not text")
        if pa.types.is_timestamp(field.type):
            # `2026-01-31 12:00:00`, or ISO 8601 in UTC.
            local = pa.scalar(value.removesuffix("Z")).cast(pa.timestamp("us"))
            return pa.repeat(pc.assume_timezone(local, "UTC"), rows)
        return pa.repeat(pa.scalar(value).cast(field.type), rows)
    return pa.repeat(pa.scalar(value, field.type), rows)
