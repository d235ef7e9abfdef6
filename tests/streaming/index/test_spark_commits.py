"""What Spark's Delta writes is followed: the stream, MERGE, DELETE, deletion vectors."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pyspark.sql import SparkSession

from embedstream.config.sections import IndexConfig, TableConfig
from embedstream.index.reports import Applied, FullPassBegun
from embedstream.table.delta import append, create_table, quote_table
from embedstream.table.rows import OUTCOME_SCHEMA
from index_oracle import check_index, update
from outcome_tables import MODEL, SCHEMA
from published import MemoryTarget, check_published
from tables_in_motion import outcome, tombstone


class SparkTable:
    """A table that the stream's own sink fills, from files of outcomes."""

    def __init__(self, spark: SparkSession, folder: Path) -> None:
        self._spark = spark
        self._source = folder / "source"
        self._source.mkdir()
        self.path = str(folder / "table")
        self._checkpoint = str(folder / "checkpoint")
        create_table(spark, TableConfig(path=self.path), model_ids=[MODEL])
        self.config = IndexConfig(path=str(folder / "index"), attributes=("shop",))
        self.target = MemoryTarget()

    def stream(self, rows: Sequence[dict[str, Any]]) -> None:
        name = f"{len(list(self._source.iterdir()))}.parquet"
        pq.write_table(pa.Table.from_pylist(list(rows), schema=SCHEMA), self._source / name)
        outcomes = self._spark.readStream.schema(OUTCOME_SCHEMA).parquet(str(self._source))
        writer = append(outcomes, self.path, checkpoint=self._checkpoint)
        writer.trigger(availableNow=True).start().awaitTermination()

    def run(self, statement: str) -> None:
        self._spark.sql(statement.format(quote_table(self.path)))

    def merge(self, offsets: Sequence[int]) -> None:
        """As a replay does."""
        made = str(self._source.parent / "made.parquet")
        rows = [outcome(one) for one in offsets]
        pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), made)
        self._spark.read.parquet(made).createOrReplaceTempView("made")
        same = " AND ".join(f"t.`{one}` <=> s.`{one}`" for one in ("topic", "offset", "model_id"))
        self.run(
            f"MERGE INTO {{}} AS t USING made AS s ON {same} "
            "WHEN MATCHED THEN UPDATE SET * WHEN NOT MATCHED THEN INSERT *"
        )

    def follow(self) -> tuple[list[str], int]:
        """The reasons of full passes, and the number of rows that were written.

        What is published follows by the same commits and full passes.
        """
        reports = update(self.path, self.config)
        check_index(self.path, self.config)
        reasons = [one.reason for one in reports if isinstance(one, FullPassBegun)]
        published = self.target.publish(self.path)
        assert sum(one.kind == "full pass begun" for one in published) == len(reasons)
        check_published(self.target, self.path, tombstones="some" if reasons else "all")
        applied = [one for one in reports if isinstance(one, Applied)]
        return reasons, sum(one.added + one.replaced + one.deleted for one in applied)


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
