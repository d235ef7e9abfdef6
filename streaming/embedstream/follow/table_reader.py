"""Read the outcome table without Spark."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import datetime
from typing import Any

from embedstream.config.locations import make_readable_without_spark
from embedstream_core.errors import SetupError

__all__ = [
    "has_field",
    "list_models",
    "list_rows",
    "name_columns",
    "open_table",
    "refresh_table",
    "select_batches",
]

_ARROW_BATCH_ROWS = 1024

# deltalake 1.6 opens a table that has these features, and then reads no row of it.
_UNREADABLE = {"typeWidening", "typeWidening-preview", "vacuumProtocolCheck"}


def list_models(opened: Any) -> list[str]:
    """Return the `model_id`s of the models that fill an open table, from its properties.

    Raises:
        SetupError: it is not a table of embedstream.
    """
    model_ids = opened.metadata().configuration.get("embedstream.model_id")
    if model_ids is None:
        raise SetupError(
            f"the table '{opened.table_uri}' names no model: it was not made by embedstream"
        )
    return str(model_ids).splitlines()


def name_columns(opened: Any) -> set[str]:
    """Return the names of a table's columns; tables of earlier versions lack some."""
    return {field.name for field in opened.schema().fields}


def has_field(opened: Any, column: str, field: str) -> bool:
    """Return whether a table has a column of structures with that field.

    Tables of earlier versions lack some.
    """
    kinds = {one.name: one.type for one in opened.schema().fields}
    fields = getattr(kinds.get(column), "fields", ())
    return any(one.name == field for one in fields)


def select_batches(opened: Any, query: str) -> Iterator[Any]:
    """Yield the non-empty Arrow batches of a SELECT over the table `outcomes`.

    Columns of text and bytes are `string` and `binary`.

    deltalake's query engine knows deletion vectors, column mapping and v2 checkpoints, which its
    pyarrow readers do not; docs/decisions/0017 has the other reasons.
    """
    import pyarrow as pa
    from deltalake import QueryBuilder

    builder = QueryBuilder({"datafusion.execution.batch_size": str(_ARROW_BATCH_ROWS)})
    try:
        reader = builder.register("outcomes", opened).execute(f"SELECT {query}")
        for batch in pa.RecordBatchReader.from_stream(reader):
            if batch.num_rows:
                yield _replace_views(batch)
    # The engine raises no type of its own for a file that is missing or cut short.
    except Exception as error:
        raise _refuse_table(opened.table_uri, error) from error


def list_rows(rows: Any) -> list[dict[str, Any]]:
    """Return the rows of an Arrow batch or table; times that Python does not have become null.

    A producer may give a message any time, also one after the year 9999.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    column = rows.schema.get_field_index("timestamp")
    if column >= 0 and getattr(rows.schema.field(column).type, "unit", "") == "us":
        times = rows.column(column)
        first, last = (pa.scalar(one, times.type) for one in (datetime.min, datetime.max))
        is_known = pc.and_(pc.greater_equal(times, first), pc.less_equal(times, last))
        rows = rows.set_column(column, "timestamp", pc.if_else(is_known, times, None))
    return list(rows.to_pylist())


def open_table(table: str, *, version: int | None = None) -> Any:
    """Return a version of the table, the newest by default, as a `deltalake.DeltaTable`.

    Raises:
        SetupError: there is no table, or it cannot be read, or its file system not without Spark.
    """
    from deltalake import DeltaTable
    from deltalake.exceptions import DeltaError, TableNotFoundError

    try:
        opened = DeltaTable(make_readable_without_spark(table), version=version)
    except TableNotFoundError:
        raise SetupError(f"there is no Delta table at '{table}'; has the stream run?") from None
    except (DeltaError, OSError) as error:
        raise _refuse_table(table, error) from None
    if unreadable := sorted(_UNREADABLE.intersection(opened.protocol().reader_features or ())):
        names = ", ".join(unreadable)
        raise SetupError(
            f"the Delta table '{table}' cannot be read without Spark: deltalake does not know its "
            f"feature {names}; run ALTER TABLE … DROP FEATURE {names}, or read it with Spark"
        )
    return opened


def refresh_table(opened: Any) -> None:
    """Bring an open table to its newest version.

    Raises:
        SetupError: the table cannot be read.
    """
    from deltalake.exceptions import DeltaError

    try:
        opened.update_incremental()
    except (DeltaError, OSError) as error:
        raise _refuse_table(opened.table_uri, error) from None


def _replace_views(batch: Any) -> Any:
    """Return the batch with plain texts: the engine gives views, which pyarrow 26 cannot filter."""
    import pyarrow as pa

    plain = {pa.string_view(): pa.string(), pa.binary_view(): pa.binary()}
    if not any(kind in plain for kind in batch.schema.types):
        return batch
    columns = [one.cast(plain.get(one.type, one.type)) for one in batch.columns]
    return pa.RecordBatch.from_arrays(columns, names=batch.schema.names)


def _refuse_table(table: str, error: Exception) -> SetupError:
    # deltalake's messages have several lines, with colours, and some a stack of its engine.
    plain = re.sub(r"\x1b\[[\d;]*m", "", str(error))
    reason = " ".join(re.split(r"(?m)^\s*(?:stack backtrace:|0: )", plain)[0].split())
    return SetupError(
        f"the Delta table '{table}' cannot be read without Spark: {reason}; it has to be a folder "
        "of this machine, or at s3a://, gs:// or abfss:// with credentials in the environment, "
        "and the deltalake package has to know all features of the table"
    )
