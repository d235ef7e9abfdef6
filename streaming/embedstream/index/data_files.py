"""Read outcomes from the Parquet files of a table, as Arrow without a Python object per value."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from embedstream.index.log_entries import CannotFollow, DataFile
from embedstream.index.rows import build_row_schema, name_attribute_column
from embedstream.index.table_files import TableFiles
from embedstream.index.tombstones import TOMBSTONE_SCHEMA
from embedstream_core.errors import Code

__all__ = [
    "IDENTITY",
    "build_outcome_schema",
    "build_rows",
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

_KEYS = pa.schema(
    [
        pa.field("model_id", pa.string()),
        pa.field("topic", pa.string()),
        pa.field("partition", pa.int32()),
        pa.field("offset", pa.int64()),
        pa.field("key", pa.binary()),
        pa.field("code", pa.string()),
        # Of a change data feed: insert, delete, update_preimage, update_postimage.
        pa.field("change", pa.string()),
    ]
)
_CONTENTS = [
    pa.field("image_id", pa.string()),
    pa.field("uri", pa.string()),
    pa.field("media_type", pa.string()),
    pa.field("duration_s", pa.float64()),
    pa.field("timestamp", pa.timestamp("us", "UTC")),
]
_NEW = pa.array([None, "insert", "update_postimage"])
_SOURCES = {
    "code": ("error", "code"),
    "change": ("_change_type", None),
    "media_type": ("media", "type"),
    "duration_s": ("media", "duration_s"),
}
"""Where a column comes from, unless it has its own name: the table's column and its field."""


def build_outcome_schema(attributes: Sequence[str], columns: Literal["all", "keys"]) -> pa.Schema:
    """Return the schema of outcomes on their way to the index; attributes are columns already."""
    if columns == "keys":
        return _KEYS
    return pa.schema(
        [
            *_KEYS,
            *_CONTENTS,
            *(pa.field(name_attribute_column(name), pa.string()) for name in attributes),
            pa.field("embedding", pa.list_(pa.float32())),
        ]
    )


def read_onwards(
    files: TableFiles,
    sources: Sequence[DataFile],
    attributes: Sequence[str] = (),
    *,
    columns: Literal["all", "keys"] = "all",
    files_done: int = 0,
    rows_done: int = 0,
) -> Iterator[tuple[int, int, pa.Table]]:
    """Yield the outcomes of files from a position on, each part with the position after it.

    A position is the number of a file and of a row in it. Columns that a file lacks are null, as
    those of tables of earlier versions.

    Raises:
        CannotFollow: a file is gone, or its partition has values that are not read here.
    """
    schema = build_outcome_schema(attributes, columns)
    for number in range(files_done, len(sources)):
        done = rows_done if number == files_done else 0
        for outcomes in _read_file(files, sources[number], attributes, schema, done):
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
    attributes: Sequence[str],
    schema: pa.Schema,
    skip: int,
) -> Iterator[pa.Table]:
    try:
        source = files.open(file.path)
    except FileNotFoundError:
        raise CannotFollow(f"the file {file.path} is gone, as after VACUUM") from None
    with source:
        # No pre-buffering: its threads would read, see `TableFiles`.
        parquet = pq.ParquetFile(source, pre_buffer=False, coerce_int96_timestamp_unit="us")
        wanted = _list_sources(parquet.schema_arrow, schema)
        for batch in parquet.iter_batches(
            _count_batch_rows(parquet.metadata), columns=wanted, use_threads=False
        ):
            if skip >= batch.num_rows:
                skip -= batch.num_rows
                continue
            yield _build_outcomes(batch.slice(skip), file, attributes, schema)
            skip = 0


def build_rows(outcomes: pa.Table, *, dimension: int, attributes: Sequence[str]) -> pa.Table:
    """Return outcomes as rows of a collection; each has an embedding of shape (dimension,)."""
    schema = build_row_schema(dimension, attributes)
    kind = schema.field("embedding").type
    vectors = [
        pa.FixedSizeListArray.from_arrays(_fill_nulls(chunk.flatten()), type=kind)
        for chunk in outcomes.column("embedding").chunks
    ]
    keys = [key and key.hex() for key in outcomes.column("key").to_pylist()]
    columns = {
        "message_key": pa.array(keys, pa.string()),
        "embedding": pa.chunked_array(vectors, kind),
    }
    return pa.table(
        [columns[name] if name in columns else outcomes.column(name) for name in schema.names],
        schema=schema,
    )


def _fill_nulls(floats: pa.Array) -> pa.Array:
    return floats.fill_null(float("nan")) if floats.null_count else floats


def concat(tables: Sequence[pa.Table], schema: pa.Schema) -> pa.Table:
    """Return the tables as one; an empty one of that schema if there are none."""
    return pa.concat_tables(tables) if tables else schema.empty_table()


def _count_batch_rows(metadata: Any) -> int:
    total = sum(
        metadata.row_group(number).total_byte_size for number in range(metadata.num_row_groups)
    )
    row_bytes = max(1, total // max(1, metadata.num_rows))
    return int(max(1, min(_BATCH_ROWS, _BATCH_BYTES // row_bytes)))


def _list_sources(present: pa.Schema, schema: pa.Schema) -> list[str]:
    """Return the columns of a file to read, as Parquet writes paths."""
    wanted = []
    for name in schema.names:
        column, part = _SOURCES.get(name, (name, None))
        if name.startswith("attribute_"):
            column = "attributes"
        if column in present.names:
            wanted.append(column if part is None else f"{column}.{part}")
    return list(dict.fromkeys(wanted))


def _build_outcomes(
    batch: pa.RecordBatch, file: DataFile, attributes: Sequence[str], schema: pa.Schema
) -> pa.Table:
    by_column = {name_attribute_column(one): one for one in attributes}
    columns = []
    for field in schema:
        name, part = _SOURCES.get(field.name, (field.name, None))
        if field.name in by_column:
            values = _look_up(batch, by_column[field.name])
        elif name in file.partition_values:
            values = _repeat_value(file.partition_values[name], field, batch.num_rows)
        elif name not in batch.schema.names:
            values = None
        else:
            values = batch.column(name)
            if part is not None:
                has_part = values.type.get_field_index(part) >= 0
                values = pc.struct_field(values, part) if has_part else None
        if values is None:
            values = pa.nulls(batch.num_rows, field.type)
        columns.append(values.cast(field.type))
    return pa.Table.from_arrays(columns, schema=schema)


def _look_up(batch: pa.RecordBatch, attribute: str) -> pa.Array | None:
    if "attributes" not in batch.schema.names:
        return None
    return pc.map_lookup(batch.column("attributes"), attribute, "first")


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
