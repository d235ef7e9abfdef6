"""Rows are deleted from the table's files, and what is left of them is what the report says."""

from __future__ import annotations

import os
import re
import time
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from py4j.protocol import Py4JJavaError
from pyspark.errors import PySparkException
from pyspark.sql import SparkSession

from embedstream.config.sections import TableConfig
from embedstream.table.address import TableAddress
from embedstream.table.delta import create_table
from embedstream.table.forget import Forgetting, count_rows, delete_rows, vacuum
from embedstream.table.leftovers import find_leftovers, read_retention
from embedstream_core.errors import SetupError
from tombstones import START, append_outcomes, make_outcome

pytestmark = pytest.mark.spark

SECRET = "a-person-to-forget"
VECTOR = [0.765625, -7.0]
NOTHING: Counter[str] = Counter()


def make_table(spark: SparkSession, folder: Path, **properties: str) -> str:
    """A table of two files: keys `0` to `9`, and then tombstones of `0` to `2`, and `2` again."""
    path = str(folder / "table [1]")
    given = {"delta.enableChangeDataFeed": "true", **properties}
    create_table(spark, TableConfig(path=path, properties=given), model_ids=["one"])
    first = [make_outcome(n, key=b"%d" % n, image_id=f"id-{n}", minutes=n) for n in range(10)]
    first[7]["image_id"] = SECRET
    first[7]["embedding"] = VECTOR
    append_outcomes(spark, first, path)
    second = [
        make_outcome(10 + n, "tombstone", key=b"%d" % n, image_id=f"id-{n}", minutes=10 + n)
        for n in range(3)
    ]
    again = [make_outcome(20, key=b"2", image_id="id-2", minutes=20)]
    again.append(make_outcome(21, "tombstone", key=b"7", image_id="id-7", minutes=21, partition=1))
    append_outcomes(spark, second + again, path)
    return path


def offsets(spark: SparkSession, path: str) -> list[int]:
    rows = spark.read.format("delta").load(path).select("offset").collect()
    return sorted(row.offset for row in rows)


def forget(spark: SparkSession, path: str, asked: Forgetting) -> Counter[str]:
    return Counter(
        delete_rows(spark, TableAddress(path), asked, count_rows(spark, TableAddress(path), asked))
    )


def find_bytes(path: str, text: str) -> set[str]:
    """The files in the table's folder that hold a text."""
    files = [file for file in Path(path).rglob("*") if file.is_file()]
    return {str(one.relative_to(path)) for one in files if text.encode() in one.read_bytes()}


def test_rows_are_deleted_by_reason_and_a_vacuum_leaves_none_of_their_files(
    spark: SparkSession, tmp_path: Path
) -> None:
    path = make_table(spark, tmp_path)
    # id-2 has a hidden row, a tombstone and a visible row.
    asked = Forgetting(ids=[SECRET, "id-2", "it's none"], older_than=START + timedelta(minutes=5))

    assert forget(spark, path, asked) == {"hidden": 3, "id": 3, "old": 2}

    assert offsets(spark, path) == [5, 6, 8, 9, 10, 11, 21]
    assert count_rows(spark, TableAddress(path), asked) == NOTHING
    left = find_leftovers(spark, path)
    assert (left.version, left.readable, left.changes > 0) == (5, [(0, 4)], True)
    assert left.until is not None
    until = datetime.now(UTC) + read_retention(spark, path)
    assert timedelta(0) < until - left.until < timedelta(minutes=5)
    assert has_row(path, SECRET)

    vacuum(spark, TableAddress(path), retain_hours=0)

    check_erased(spark, path)


@pytest.mark.long
def test_hidden_rows_alone_are_deleted_and_their_tombstones_stay(
    spark: SparkSession, tmp_path: Path
) -> None:
    path = make_table(spark, tmp_path)
    before = find_leftovers(spark, path)
    assert (before.version, before.files, before.until) == (2, 0, None)

    assert forget(spark, path, Forgetting()) == {"hidden": 3}

    assert offsets(spark, path) == [*range(3, 13), 20, 21]
    left = find_leftovers(spark, path)
    # The file before, and the changes for those who follow the table.
    assert (left.version, left.files, left.changes, left.readable) == (3, 2, 1, [(0, 2)])
    assert forget(spark, path, Forgetting()) == NOTHING
    assert find_leftovers(spark, path) == left
    spark.sql(f"ALTER TABLE delta.`{path}` SET TBLPROPERTIES ('delta.appendOnly' = 'true')")
    with pytest.raises(SetupError, match="is append-only, and forgetting rewrites its rows"):
        forget(spark, path, Forgetting())


@pytest.mark.long
def test_rows_that_a_deletion_vector_only_marks_are_deleted_too(
    spark: SparkSession, tmp_path: Path
) -> None:
    """Also those that someone else has deleted."""
    path = make_table(spark, tmp_path, **{"delta.enableDeletionVectors": "true"})
    spark.sql(f"DELETE FROM delta.`{path}` WHERE image_id = '{SECRET}'")
    assert forget(spark, path, Forgetting()) == {"hidden": 3}
    assert find_leftovers(spark, path).files > 0

    vacuum(spark, TableAddress(path), retain_hours=0)

    check_erased(spark, path)


@pytest.mark.long
def test_statistics_leave_the_log_with_its_retention(spark: SparkSession, tmp_path: Path) -> None:
    path = make_table(spark, tmp_path, **{"delta.checkpointInterval": "2"})
    forget(spark, path, Forgetting(ids=[SECRET]))
    vacuum(spark, TableAddress(path), retain_hours=0)
    append_outcomes(spark, [make_outcome(100), make_outcome(101)], path)
    assert find_bytes(path, SECRET)

    # As in five weeks; the next checkpoint deletes what is older than the log's retention.
    weeks_ago = time.time() - 35 * 86400
    for file in Path(path, "_delta_log").iterdir():
        os.utime(file, (weeks_ago, weeks_ago))
    for offset in range(102, 106):
        append_outcomes(spark, [make_outcome(offset)], path)

    assert find_bytes(path, SECRET) == set()


def check_erased(spark: SparkSession, path: str) -> None:
    """Only the statistics of the log know of the row: those of the versions that had it."""
    left = find_leftovers(spark, path)
    assert (left.files, left.bytes, left.changes, left.until) == (0, 0, 0, None)
    # Version 0 had no rows.
    assert left.readable[0] == (0, 0)
    assert left.readable[1][0] > 2
    assert not has_row(path, SECRET)
    holding = find_bytes(path, SECRET)
    assert all(re.fullmatch(r"_delta_log/\d{20}\.(json|crc)", name) for name in holding), holding
    assert f"_delta_log/{1:020}.json" in holding
    assert f"_delta_log/{left.version:020}.json" not in holding
    with pytest.raises((PySparkException, Py4JJavaError), match="does not exist"):
        spark.read.format("delta").option("versionAsOf", 1).load(path).collect()


def has_row(path: str, image_id: str) -> bool:
    """Whether a Parquet file below the folder, of any version, has the row."""
    files = Path(path).rglob("*.parquet")
    rows = [row for file in files for row in pq.ParquetFile(file).read().to_pylist()]
    return any(row["image_id"] == image_id or row["embedding"] == VECTOR for row in rows)
