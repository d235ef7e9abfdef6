"""What Spark's Delta writes is followed: the stream, MERGE, DELETE, deletion vectors."""

from __future__ import annotations

from pathlib import Path

from pyspark.sql import SparkSession

from spark_tables import SparkTable
from tables_in_motion import outcome, tombstone


def test_what_spark_writes_is_followed(spark: SparkSession, tmp_path: Path) -> None:
    table = SparkTable(spark, tmp_path)
    table.stream([outcome(one, failed=one == 6) for one in range(12)])
    assert table.follow() == (["there is no index yet"], 0)
    table.merge([2, 3, 40])
    # The change data feed names three rows; the files that were rewritten hold all.
    assert table.follow() == ([], 3)
    table.run("DELETE FROM {} WHERE offset = 4")
    table.stream([tombstone(50, b"key 0")])
    table.run("OPTIMIZE {}")
    assert table.follow() == ([], 1)
    table.run("ALTER TABLE {} SET TBLPROPERTIES ('delta.enableDeletionVectors' = 'true')")
    table.run("DELETE FROM {} WHERE offset = 8")
    [reason], _ = table.follow()
    assert reason.endswith("it has deletion vectors, and no change data feed")
    table.run("ALTER TABLE {} SET TBLPROPERTIES ('delta.columnMapping.mode' = 'name')")
    table.stream([outcome(61)])
    [reason], _ = table.follow()
    assert "column mapping" in reason
