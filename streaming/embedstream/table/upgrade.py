"""Alter a table of an earlier version, which has the columns `width` and `height`, not `media`."""

from __future__ import annotations

import json
from typing import Any

from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as f

from embedstream.table.address import TableAddress
from embedstream.table.delta import (
    check_rewritable,
    check_table,
    has_earlier_shape,
    open_table,
)
from embedstream.table.delta_log import read_snapshot
from embedstream.table.rows import MEDIA_TYPE
from embedstream_core.errors import SetupError

__all__ = ["needs_upgrade", "upgrade_table"]


def needs_upgrade(spark: SparkSession, table: TableAddress) -> bool:
    """Return whether a table has the columns of an earlier version.

    Raises:
        SetupError: there is no table, or it is not one of this version either.
    """
    found = open_table(spark, table)
    if found is not None and has_earlier_shape(found.schema):
        return True
    if check_table(spark, table) is None:
        raise SetupError(f"there is no table '{table}', so there is nothing to upgrade")
    return False


def upgrade_table(spark: SparkSession, table: TableAddress) -> int:
    """Replace `width` and `height` by `media`, in one Delta commit; return the number of rows.

    `media` is null where both were, and its `type` is always null: the rows do not hold it. All
    rows, the other columns with their order, comments and generated values, the partitioning, the
    table's properties and the streaming transactions in its log stay; so a stream continues exactly
    once. The files of the version before stay for time travel, until VACUUM deletes them.

    The commit overwrites the table and its schema. Column mapping could drop the two columns
    without writing files, but filling `media` writes all of them anyway, and it would take three
    commits and require a protocol that fewer readers know.

    Not kept, because Delta's overwrite drops both: NOT NULL, and CLUSTER BY, which a second commit
    restores. The caller must keep other writers out.

    Raises:
        SetupError: the table is append-only, or has an identity column.
    """
    check_rewritable(spark, table, purpose="an upgrade")
    metadata = _read_metadata(spark, table.path)
    for name, keys in metadata.items():
        if any(key.startswith("delta.identity.") for key in keys):
            raise SetupError(
                f"the table '{table}' cannot be rewritten: its column '{name}' is an identity "
                "column, whose values Delta would assign again; drop it before the upgrade"
            )
    present = table.read(spark)
    rows = present.count()
    detail = spark.sql(f"DESCRIBE DETAIL {table.sql}").collect()[0]
    writer = present.select(_list_columns(present, metadata)).write.format("delta")
    writer = writer.mode("overwrite").option("overwriteSchema", "true")
    # Delta reads neither from the table's properties when it overwrites.
    writer = writer.option("compression", "zstd").partitionBy(*detail["partitionColumns"])
    # By its path even where it has a name: saveAsTable would replace the table, and forget what
    # the streams wrote.
    writer.save(table.path)
    if clustering := detail["clusteringColumns"]:
        names = ", ".join(clustering)
        spark.sql(f"ALTER TABLE {table.sql} CLUSTER BY ({names})")
    return rows


def _list_columns(table: DataFrame, metadata: dict[str, dict[str, Any]]) -> list[Column]:
    """Return the columns of the altered table; `media` is where `width` was."""
    fields = [
        (f.col(name) if name in ("width", "height") else f.lit(None)).cast(kind).alias(name)
        for name, kind in ((field.name, field.dataType) for field in MEDIA_TYPE)
    ]
    known = f.coalesce("width", "height").isNotNull()
    media = f.when(known, f.struct(*fields)).alias("media")
    return [
        media if name == "width" else f.col(f"`{name}`").alias(name, metadata=metadata[name])
        for name in table.columns
        if name != "height"
    ]


def _read_metadata(spark: SparkSession, path: str) -> dict[str, dict[str, Any]]:
    """Return the metadata of each column, with the keys that Delta hides from readers.

    These hold the expressions of generated columns and the defaults. Delta assigns those of column
    mapping itself.
    """
    schema = json.loads(read_snapshot(spark, path).metadata().schemaString())
    return {
        field["name"]: {
            key: value
            for key, value in field["metadata"].items()
            if not key.startswith("delta.columnMapping.")
        }
        for field in schema["fields"]
    }
