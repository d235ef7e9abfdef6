"""What tombstones hide is left out of every query, and the newest row is chosen."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from pyspark.sql import DataFrame, SparkSession

from embedstream.config.sections import TableConfig
from embedstream.table.delta import create_table
from embedstream.table.views import embeddings, failures, hide_deleted, newest
from tombstones import Kind, Outcomes, append_outcomes, find_visible, make_outcome

pytestmark = pytest.mark.spark

Names = list[tuple[int, int, str | None]]

DOCS = Path(__file__).parents[3] / "docs/deletes.md"


@pytest.fixture(scope="module")
def outcomes() -> Outcomes:
    """Rows by chance, of few keys and ids, in two partitions, with equal and swapped times."""
    chance = random.Random(7)
    kinds: Sequence[Kind] = ("embedding", "failure", "unowned", "tombstone")
    made = []
    for offset in range(400):
        made.append(
            make_outcome(
                offset,
                chance.choices(kinds, weights=(5, 1, 1, 1))[0],
                partition=offset % 2,
                key=chance.choice([None, b"", b"a", b"\xff\0", *(b"%d" % n for n in range(30))]),
                image_id=chance.choice("abcdefgh"),
                model_id=chance.choice(["one", "two"]),
                minutes=offset // 3 - chance.choice([0, 0, 0, 50]),
            )
        )
    return made


@pytest.fixture(scope="module")
def table(spark: SparkSession, outcomes: Outcomes, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = str(tmp_path_factory.mktemp("views") / "table")
    create_table(spark, TableConfig(path=path), model_ids=["one", "two"])
    append_outcomes(spark, outcomes, path)
    return path


def names(rows: DataFrame) -> Names:
    found = rows.select("partition", "offset", "model_id").collect()
    return sorted((row.partition, row.offset, row.model_id) for row in found)


def expected(outcomes: Sequence[dict[str, Any]]) -> Names:
    return sorted((one["partition"], one["offset"], one["model_id"]) for one in outcomes)


def choose_newest(outcomes: Outcomes) -> Outcomes:
    """The newest row by id and model; a failure without a model counts for every model."""

    def order(one: dict[str, Any]) -> tuple[datetime, int, int]:
        return one["timestamp"], one["partition"], one["offset"]

    chosen = []
    for one in outcomes:
        same_id = [other for other in outcomes if other["image_id"] == one["image_id"]]
        rivals = [
            other
            for other in same_id
            if None in (one["model_id"], other["model_id"]) or other["model_id"] == one["model_id"]
        ]
        if one is max(rivals, key=order):
            chosen.append(one)
    return chosen


def test_rows_hidden_by_a_tombstone_are_left_out(
    spark: SparkSession, table: str, outcomes: Outcomes
) -> None:
    visible = find_visible(outcomes)
    assert 0 < len(visible) < len(outcomes) - 100

    assert names(embeddings(spark, table)) == expected([one for one in visible if one["embedding"]])
    failed = failures(spark, table)
    assert names(failed) == expected([one for one in visible if one["error"]])
    assert {row.code for row in failed.collect()} == {"image_corrupt", "media_unsupported"}


def test_the_newest_row_of_an_id_and_model(
    spark: SparkSession, table: str, outcomes: Outcomes
) -> None:
    found = newest(spark, table)

    assert names(found) == expected(choose_newest(find_visible(outcomes)))
    assert found.columns == spark.read.format("delta").load(table).columns


def test_the_documented_sql_is_the_same(spark: SparkSession, table: str) -> None:
    page = DOCS.read_text(encoding="utf-8")
    for name, query in re.findall(
        r"^CREATE VIEW (\w+) AS\n(.*?);$", page, re.MULTILINE | re.DOTALL
    ):
        spark.sql(query.replace("/data/table", table)).createOrReplaceTempView(name)

    assert names(spark.table("visible")) == names(hide_deleted(spark.read.load(table, "delta")))
    assert names(spark.table("embeddings")) == names(embeddings(spark, table))
    assert names(spark.table("newest")) == names(newest(spark, table))


def test_files_without_tombstones_are_not_read_to_find_them(
    spark: SparkSession, table: str, outcomes: Outcomes, tmp_path: Path
) -> None:
    """With statistics of `error.code`, which new tables have."""
    path = str(tmp_path / "table")
    columns = {"delta.dataSkippingStatsColumns": "topic,partition,offset,error.code"}
    create_table(spark, TableConfig(path=path, properties=columns), model_ids=["one"])
    good = [one for one in outcomes if one["embedding"]]
    append_outcomes(spark, good, path)
    for file in Path(path).glob("part-*.parquet"):
        file.rename(file.with_suffix(".away"))

    table_rows = spark.read.format("delta").load(path)
    assert table_rows.where("error.code = 'deleted'").count() == 0


def test_without_tombstones_every_row_is_visible(spark: SparkSession, tmp_path: Path) -> None:
    """As in a table of files, whose rows have neither topic nor key."""
    path = str(tmp_path / "table")
    create_table(spark, TableConfig(path=path), model_ids=["one"])
    made = [make_outcome(0, "embedding", image_id=name) for name in "abc"]
    for one in made:
        one |= dict.fromkeys(["topic", "partition", "offset", "timestamp", "key"])
    append_outcomes(spark, made, path)

    assert embeddings(spark, path).count() == newest(spark, path).count() == 3
