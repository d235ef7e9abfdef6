"""Queries on the table that leave out what was deleted.

A tombstone is a row with the error code `deleted`. It hides every row of the same topic, partition
and key with a smaller offset, as compaction in Kafka does. docs/deletes.md has the same in SQL.

A table is given by its path, or as a DataFrame: `spark.table("catalog.schema.table")`.
"""

from __future__ import annotations

from pyspark.sql import Column, DataFrame, SparkSession, Window
from pyspark.sql import functions as f

from embedstream_core.errors import Code

__all__ = ["HIDDEN", "embeddings", "failures", "find_deletions", "hide_deleted", "newest"]

HIDDEN = "t.topic = d.topic AND t.partition = d.partition AND t.key = d.key AND t.offset < d.until"
"""The condition that a deleted key `d` of `find_deletions` hides a row `t` of the table."""

# So many keys are sent to all workers, where more would fill their memory and the driver's. With a
# million of them over 2 million rows of 32 floats, on two cores, counting the visible rows took
# 6.6 s by broadcast and 11.2 s by a shuffle.
_BROADCAST_KEYS = 1_000_000


def embeddings(spark: SparkSession, table: str | DataFrame) -> DataFrame:
    """Return the outcomes that have an embedding and are not deleted."""
    return _read_visible(spark, table).where("embedding IS NOT NULL").drop("error")


def failures(spark: SparkSession, table: str | DataFrame) -> DataFrame:
    """Return the outcomes that have an error, with `code`, `stage` and `message` as columns.

    Deletions are no failures, and those of deleted messages are left out.
    """
    failed = _read_visible(spark, table).where("error IS NOT NULL")
    kept = [name for name in failed.columns if name not in ("embedding", "error")]
    return failed.select("error.*", *kept)


def newest(spark: SparkSession, table: str | DataFrame) -> DataFrame:
    """Return the newest row of each `image_id` and `model_id` in each topic: for topics of updates.

    Messages are ordered by timestamp, then partition and offset. A newer failure replaces an older
    embedding; one without a `model_id` replaces the rows of all models, and is itself replaced by
    any newer row. A tombstone deletes the rows of its key; those that have the same `image_id` and
    another key stay.
    """
    order = f.struct("timestamp", "partition", "offset")
    by_model = Window.partitionBy("topic", "image_id", "model_id").orderBy(order.desc())
    by_id = Window.partitionBy("topic", "image_id")
    unowned = f.col("model_id").isNull()
    columns = {
        "_newest": f.max(order).over(by_id),
        "_newest_unowned": f.max(f.when(unowned, order)).over(by_id),
    }
    is_current = (
        f.when(unowned, order == f.col("_newest"))
        .when(f.col("_newest_unowned").isNotNull(), order > f.col("_newest_unowned"))
        .otherwise(True)
    )
    return (
        _read_visible(spark, table)
        .withColumn("_rank", f.row_number().over(by_model))
        .where("_rank = 1")
        .withColumns(columns)
        .where(is_current)
        .drop("_rank", *columns)
    )


def hide_deleted(table: DataFrame) -> DataFrame:
    """Return the rows of a table without tombstones and without the rows that these hide."""
    rows = table.where(~_is_tombstone()).alias("t")
    return rows.join(find_deletions(table).alias("d"), f.expr(HIDDEN), "left_anti")


def find_deletions(table: DataFrame) -> DataFrame:
    """Return the deleted keys of a table: `topic`, `partition`, `key`, and `until`.

    `until` is the offset of the key's last tombstone. Starts a job that counts the tombstones, as
    Spark's own estimate would shuffle the whole table to join it with a handful of keys.
    """
    tombstones = table.where(_is_tombstone()).select("topic", "partition", "key", "offset")
    keys = tombstones.groupBy("topic", "partition", "key").agg(f.max("offset").alias("until"))
    is_small = tombstones.limit(_BROADCAST_KEYS + 1).count() <= _BROADCAST_KEYS
    return f.broadcast(keys) if is_small else keys


def _read_visible(spark: SparkSession, table: str | DataFrame) -> DataFrame:
    rows = spark.read.format("delta").load(table) if isinstance(table, str) else table
    return hide_deleted(rows)


def _is_tombstone() -> Column:
    return f.col("error.code").eqNullSafe(Code.DELETED)
