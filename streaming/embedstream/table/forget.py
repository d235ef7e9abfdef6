"""Delete rows from the table's files: what tombstones hide, what is old, what has a certain id."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Literal

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as f

from embedstream.spark.sizing import count_parallel_tasks
from embedstream.table.address import TableAddress
from embedstream.table.conflicts import commit_with_retries
from embedstream.table.delta import (
    check_rewritable,
    quote_literal,
)
from embedstream.table.views import HIDDEN, find_deletions

__all__ = ["Forgetting", "Reason", "count_rows", "delete_rows", "vacuum"]

Reason = Literal["hidden", "id", "old"]
"""Why a row is deleted; the first that applies."""

_VIEW = "embedstream_rows_to_forget"


@dataclass(frozen=True, slots=True)
class Forgetting:
    """Which rows to delete, beside those that a tombstone hides.

    `ids` are values of `image_id`; `older_than` is compared with the message's timestamp. Both
    delete tombstones too.
    """

    ids: Sequence[str] = ()
    older_than: datetime | None = None


def count_rows(spark: SparkSession, table: TableAddress, asked: Forgetting) -> Counter[Reason]:
    """Count the rows that are to be deleted, by reason."""
    rows = table.read(spark)
    deletions = find_deletions(rows).alias("d")
    reason = f.when(f.col("d.until").isNotNull(), "hidden")
    reason = reason.when(f.col("t.image_id").isin(*asked.ids), "id")
    if asked.older_than is not None:
        reason = reason.when(f.col("t.timestamp") < asked.older_than, "old")
    joined = rows.alias("t").join(deletions, f.expr(HIDDEN), "left")
    counted = joined.groupBy(reason.alias("reason")).count().where("reason IS NOT NULL")
    return Counter({row[0]: row[1] for row in counted.collect()})


def delete_rows(
    spark: SparkSession, table: TableAddress, asked: Forgetting, planned: Counter[Reason]
) -> Counter[Reason]:
    """Delete rows from the table's newest version; return their number by reason.

    Each reason that has rows in `planned` is one commit. Hidden rows go first, since deleting their
    tombstone first would show them. Where the table has deletion vectors, the files with rows that
    are only marked as deleted, whoever marked them, are written without them.

    Raises:
        SetupError: the table is append-only.
    """
    check_rewritable(spark, table, purpose="forgetting")
    # A tombstone that the stream commits after its hidden rows were deleted here has to stay.
    old = f"NOT (t.error.code <=> 'deleted' AND t.processed_at >= {_write_time(datetime.now(UTC))})"
    statements: dict[Reason, Callable[[], DataFrame]] = {
        "hidden": partial(_delete_hidden, spark, table),
        "id": partial(_delete_ids, spark, table, asked.ids, old),
        "old": partial(_delete_old, spark, table, asked.older_than, old),
    }
    deleted: Counter[Reason] = Counter()
    for reason, delete in statements.items():
        if planned[reason]:
            (counts,) = commit_with_retries(delete).collect()
            # A MERGE names all of its counts, a DELETE has one.
            deleted[reason] = counts.asDict().get("num_deleted_rows", counts["num_affected_rows"])
    (detail,) = spark.sql(f"DESCRIBE DETAIL {table.sql}").collect()
    if "deletionVectors" in detail["tableFeatures"]:
        purge = f"REORG TABLE {table.sql} APPLY (PURGE)"
        commit_with_retries(partial(spark.sql, purge))
    return deleted


def vacuum(spark: SparkSession, table: TableAddress, *, retain_hours: int | None) -> None:
    """Delete the files that no version within the retention uses, by default the table's own.

    A shorter retention than the table's also deletes files that a writer has not committed yet: the
    caller must keep writers out.
    """
    session = spark.newSession()
    session.conf.set("spark.databricks.delta.retentionDurationCheck.enabled", "false")
    # Delta lists even a small folder in 10,000 tasks by default.
    tasks = 8 * count_parallel_tasks(spark)
    session.conf.set("spark.sql.sources.parallelPartitionDiscovery.parallelism", str(tasks))
    retain = "" if retain_hours is None else f" RETAIN {retain_hours} HOURS"
    session.sql(f"VACUUM {table.sql}{retain}")


def _delete_hidden(spark: SparkSession, table: TableAddress) -> DataFrame:
    keys = find_deletions(table.read(spark))
    return _delete_matching(spark, table, keys, HIDDEN)


def _delete_ids(
    spark: SparkSession, table: TableAddress, ids: Sequence[str], condition: str
) -> DataFrame:
    # As constants of the statement, the ids would be kept in the table's log.
    rows = spark.createDataFrame([(one,) for one in set(ids)], "image_id string")
    return _delete_matching(spark, table, rows, f"t.image_id = d.image_id AND {condition}")


def _delete_old(
    spark: SparkSession, table: TableAddress, older_than: datetime | None, condition: str
) -> DataFrame:
    assert older_than is not None
    where = f"t.timestamp < {_write_time(older_than)} AND {condition}"
    return spark.sql(f"DELETE FROM {table.sql} AS t WHERE {where}")  # noqa: S608


def _delete_matching(
    spark: SparkSession, table: TableAddress, rows: DataFrame, condition: str
) -> DataFrame:
    """Delete the rows of the table `t` that match one of the rows `d`.

    Delta's DELETE takes no subqueries.
    """
    rows.createOrReplaceTempView(_VIEW)
    return spark.sql(
        f"MERGE INTO {table.sql} AS t USING {_VIEW} AS d ON {condition} WHEN MATCHED THEN DELETE"
    )


def _write_time(time: datetime) -> str:
    return f"TIMESTAMP {quote_literal(time.astimezone(UTC).isoformat())}"
