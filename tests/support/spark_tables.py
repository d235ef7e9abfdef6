"""A table that Spark fills, changes and reads, without Kafka and models."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq
from pyspark.sql import SparkSession

from embedstream.config.sections import IndexConfig, TableConfig
from embedstream.index.reports import Applied, FullPassBegun
from embedstream.table.address import TableAddress
from embedstream.table.delta import append, create_table
from embedstream.table.layout import fill_layout
from embedstream.table.rows import OUTCOME_SCHEMA
from index_oracle import check_index, update
from outcome_tables import MODEL, SCHEMA
from published import MemoryTarget, check_published
from tables_in_motion import outcome

__all__ = ["SparkTable"]


class SparkTable:
    """A table that the stream's own sink fills, from files of outcomes.

    `layout` has further keys of the section `table`.
    """

    def __init__(self, spark: SparkSession, folder: Path, **layout: Any) -> None:
        self._spark = spark
        self._source = folder / "source"
        self._source.mkdir(parents=True)
        self.path = str(folder / "table")
        self._checkpoint = str(folder / "checkpoint")
        self.address = TableAddress(self.path)
        self.table = TableConfig(path=self.path, **layout)
        create_table(spark, self.table, model_ids=[MODEL])
        self.config = IndexConfig(path=str(folder / "index"), attributes=("shop",))
        self.target = MemoryTarget()
        self._tombstones: Literal["all", "some"] = "all"

    def drain(self) -> None:
        outcomes = self._spark.readStream.schema(OUTCOME_SCHEMA).parquet(str(self._source))
        filled = fill_layout(outcomes, self.table)
        query = append(filled, self.address, checkpoint=self._checkpoint, interval_s=None)
        query.awaitTermination()

    def stream(self, rows: Sequence[dict[str, Any]]) -> None:
        """Append rows; they stay where the next drain reads them if this one fails."""
        name = f"{len(list(self._source.iterdir()))}.parquet"
        pq.write_table(pa.Table.from_pylist(list(rows), schema=SCHEMA), self._source / name)
        self.drain()

    def run(self, statement: str) -> None:
        self._spark.sql(statement.format(self.address.sql))

    def merge(self, offsets: Sequence[int]) -> None:
        """As a replay does."""
        made = str(self._source.parent / "made.parquet")
        rows = [outcome(one) for one in offsets]
        pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), made)
        filled = fill_layout(self._spark.read.parquet(made), self.table)
        filled.createOrReplaceTempView("made")
        same = " AND ".join(f"t.`{one}` <=> s.`{one}`" for one in ("topic", "offset", "model_id"))
        names = ", ".join(f"`{one}`" for one in filled.columns)
        values = ", ".join(f"s.`{one}`" for one in filled.columns)
        pairs = ", ".join(f"`{one}` = s.`{one}`" for one in filled.columns)
        self.run(
            f"MERGE INTO {{}} AS t USING made AS s ON {same} WHEN MATCHED THEN UPDATE SET {pairs} "
            f"WHEN NOT MATCHED THEN INSERT ({names}) VALUES ({values})"
        )

    def follow(self) -> tuple[list[str], int]:
        """The reasons of full passes, and the number of rows that were written.

        What is published follows by the same commits and full passes.
        """
        reports = update(self.path, self.config)
        check_index(self.path, self.config)
        reasons = [one.reason for one in reports if isinstance(one, FullPassBegun)]
        if reasons and self.target.messages:
            # What a full pass finds gone gets no tombstone.
            self._tombstones = "some"
        published = self.target.publish(self.path)
        assert sum(one.kind == "full pass begun" for one in published) == len(reasons)
        check_published(self.target, self.path, tombstones=self._tombstones)
        applied = [one for one in reports if isinstance(one, Applied)]
        return reasons, sum(one.added + one.replaced + one.deleted for one in applied)
