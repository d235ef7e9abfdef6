"""A partitioned and a clustered table are filled, changed, compacted, searched and followed."""

from __future__ import annotations

from datetime import UTC, date, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from deltalake import DeltaTable
from pyspark.sql import SparkSession

from embedstream.config.sections import TableConfig
from embedstream.follow.table_reader import open_table
from embedstream.monitor.viewing.rows import Rows
from embedstream.search.scan import scan_table
from embedstream.table.delta import check_table, compact
from embedstream.table.features import check_fillable
from embedstream.table.forget import Forgetting, count_rows, delete_rows
from embedstream.table.layout import fill_layout
from embedstream.table.views import embeddings
from embedstream_core.errors import SetupError
from outcome_tables import MODEL
from spark_tables import SparkTable
from tables_in_motion import outcome

pytestmark = pytest.mark.spark

DAY = date(2026, 1, 1)
QUERY = np.array([1.0, 1.0, 1.0], np.float32)


def read_dates(spark: SparkSession, path: str) -> dict[int, date | None]:
    rows = spark.read.format("delta").load(path).select("offset", "date").collect()
    return {row.offset: row.date for row in rows}


@pytest.mark.parametrize(
    "layout",
    [
        pytest.param({"partition_by": "date"}, id="partitioned"),
        pytest.param({"cluster_by": ["image_id", "topic"]}, id="clustered", marks=pytest.mark.long),
    ],
)
def test_every_way_to_use_the_table_works(
    spark: SparkSession, tmp_path: Path, layout: dict[str, Any]
) -> None:
    table = SparkTable(spark, tmp_path, **layout)
    next_day = datetime(2026, 1, 2, tzinfo=UTC)
    rows = [outcome(one, failed=one == 6) for one in range(8)]
    table.stream([*rows, {**outcome(8), "timestamp": next_day}, {**outcome(9), "timestamp": None}])
    assert table.follow() == (["there is no index yet"], 0)

    table.merge([2, 3, 40])
    assert table.follow() == ([], 3)
    asked = Forgetting(ids=["id 4"])
    assert delete_rows(spark, table.address, asked, count_rows(spark, table.address, asked)) == {
        "id": 1
    }
    table.stream([outcome(50)])
    compacted = compact(spark, table.address)
    assert (compacted.files_removed > 1, compacted.files_added) == (True, 1)
    assert table.follow() == ([], 2)

    check_fillable(spark, table.table, door="messages")
    assert check_table(spark, table.address) == 11
    if "partition_by" in layout:
        own = dict.fromkeys([0, 1, 2, 3, 5, 6, 7, 40, 50], DAY)
        assert read_dates(spark, table.path) == {**own, 8: date(2026, 1, 2), 9: None}
    assert embeddings(spark, table.path).count() == 10
    found = scan_table(open_table(table.path), QUERY, model_id=MODEL, k=20)
    assert found.num_rows == 10
    viewed = Rows(SimpleNamespace(table=table.table), config_words="")  # type: ignore[arg-type]
    assert len(viewed.list_newest(20)) == 10


def test_a_time_that_no_calendar_has_leaves_the_table_readable(
    spark: SparkSession, tmp_path: Path
) -> None:
    """A producer chooses the timestamp, and deltalake fails at a partition of the year 10000."""
    table = SparkTable(spark, tmp_path, partition_by="date")
    table.stream([outcome(one) for one in range(4)])
    times = "array(-1000, 253402300799999999, 253402300800000000, 1L << 62)"
    moved = (
        spark.read.format("delta")
        .load(table.path)
        .selectExpr(
            "* EXCEPT (timestamp, date)",
            f"timestamp_micros(element_at({times}, CAST(offset AS INT) + 1)) AS timestamp",
        )
    )
    fill_layout(moved, table.table).write.format("delta").mode("overwrite").save(table.path)

    assert read_dates(spark, table.path) == {0: None, 1: date(9999, 12, 31), 2: None, 3: None}
    found = scan_table(open_table(table.path), QUERY, model_id=MODEL, k=20)
    assert found.num_rows == 4


def test_a_layout_that_differs_from_the_configuration_is_refused(
    spark: SparkSession, tmp_path: Path
) -> None:
    plain, dated = (
        SparkTable(spark, tmp_path / name, **layout)
        for name, layout in (("plain", {}), ("dated", {"partition_by": "date"}))
    )

    def refuse(table: SparkTable, **layout: Any) -> str:
        given = TableConfig(path=table.path, **layout)
        with pytest.raises(SetupError) as error:
            check_fillable(spark, given, door="messages")
        return str(error.value)

    said = refuse(plain, partition_by="date")
    assert "partition_by is date, and the table is neither partitioned nor clustered" in said
    assert "leave partition_by out, or choose another table.path" in said
    said = refuse(plain, cluster_by=["image_id"])
    alter = f"ALTER TABLE {plain.address.sql} CLUSTER BY (image_id)"
    assert f"run {alter}, or change table.cluster_by" in said
    assert "nothing fills 'date'; set table.partition_by: date" in refuse(dated)
    said = refuse(dated, cluster_by=["topic"])
    assert (
        "table.cluster_by is [topic], and the table is partitioned by (date DATE); choose" in said
    )

    # The way out that the message names is one.
    spark.sql(alter)
    clustered = TableConfig(path=plain.path, cluster_by=["image_id"])
    check_fillable(spark, clustered, door="messages")
    assert "the table is clustered by (image_id); run ALTER" in refuse(plain, cluster_by=["topic"])
    # A table's own clustering is its owner's affair.
    check_fillable(spark, plain.table, door="messages")
    assert DeltaTable(dated.path).metadata().partition_columns == ["date"]
