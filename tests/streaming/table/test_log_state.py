"""The state of the table's log is there before the next micro-batch needs it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pyspark.sql import SparkSession

from drivers import wait_until
from embedstream.table.address import TableAddress
from embedstream.table.log_state import compute_state_ahead

pytestmark = pytest.mark.spark


def test_the_state_after_a_commit_is_computed_although_no_micro_batch_follows(
    spark: SparkSession, tmp_path: Path
) -> None:
    table, context = str(tmp_path / "table"), spark.sparkContext
    jvm: Any = context._jvm
    spark.range(1).selectExpr("current_timestamp() AS timestamp", "id AS value").write.format(
        "delta"
    ).save(table)
    log = jvm.org.apache.spark.sql.delta.DeltaLog.forTable(spark._jsparkSession, table)
    rows = spark.readStream.format("rate-micro-batch").option("rowsPerBatch", 5).load()
    writer = rows.writeStream.format("delta").option("checkpointLocation", f"{tmp_path}/checkpoint")
    query = writer.trigger(processingTime="1 hour").start(table)
    wait_until(lambda: query.lastProgress is not None)
    committed = log.unsafeVolatileSnapshot()
    assert (committed.version(), committed._computedStateTriggered()) == (1, False)

    compute_state_ahead(spark, query, TableAddress(table))

    wait_until(committed._computedStateTriggered)
    assert dict(jvm.scala.jdk.javaapi.CollectionConverters.asJava(committed.transactions())) == {
        query.id: 0
    }
    assert _runs(jvm)
    query.stop()
    wait_until(lambda: not _runs(jvm))


def _runs(jvm: Any) -> bool:
    return any(each.getName() == "log-state" for each in jvm.Thread.getAllStackTraces().keySet())
