"""A table with `width` and `height` becomes one with `media`, and its stream continues."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as f

from earlier_tables import EARLIER_SCHEMA, create_earlier_table
from embedstream.config.sections import StreamConfig
from embedstream.recovery.claim import claim_table
from embedstream.table.address import TableAddress, quote_table
from embedstream.table.delta import append, check_table, read_properties
from embedstream.table.delta_log import read_writers
from embedstream.table.rows import OUTCOME_SCHEMA
from embedstream.table.upgrade import needs_upgrade, upgrade_table
from embedstream_core.errors import SetupError
from oracle import Position
from small import send_pictures
from streams import Topic, drain, image, refusal

pytestmark = pytest.mark.spark


def earlier_rows(spark: SparkSession, offsets: range) -> DataFrame:
    """Embeddings, and for each odd offset a failure."""
    rows: list[tuple[Any, ...]] = []
    for offset in offsets:
        values: dict[str, Any] = {"topic": "images", "partition": 0, "offset": offset, "key": b"k"}
        if offset % 2:
            values["error"] = ("image_corrupt", "decode", "cut short")
        else:
            values |= {"embedding": [0.5, float(offset)], "width": offset + 1, "height": 7}
        values |= {"image_id": str(offset), "model_id": "model", "attributes": {"shop": "42"}}
        rows.append(tuple(values.get(name) for name in EARLIER_SCHEMA.names))
    return spark.createDataFrame(rows, EARLIER_SCHEMA)


def append_rows(rows: DataFrame, path: str) -> None:
    rows.write.format("delta").mode("append").save(path)


def read(spark: SparkSession, path: str, **options: Any) -> list[dict[str, Any]]:
    table = spark.read.format("delta").options(**options).load(path)
    return [row.asDict(recursive=True) for row in table.orderBy("offset").collect()]


def count_versions(path: str) -> int:
    return len(list(Path(path, "_delta_log").glob("*.json")))


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "table")


def test_a_table_of_the_earlier_shape_is_refused_with_the_command_that_alters_it(
    spark: SparkSession, path: str
) -> None:
    create_earlier_table(spark, path)
    with pytest.raises(SetupError, match=r"alter it with `embedstream upgrade CONFIG`"):
        check_table(spark, TableAddress(path))
    with pytest.raises(SetupError, match=r"alter it with `embedstream upgrade --table t`"):
        check_table(spark, TableAddress(path), upgrade="embedstream upgrade --table t")


def test_rows_and_properties_stay_and_media_is_filled_in_one_commit(
    spark: SparkSession, path: str
) -> None:
    create_earlier_table(spark, path, ", note string COMMENT 'why'")
    append_rows(earlier_rows(spark, range(6)).withColumn("note", f.col("image_id")), path)
    before, properties, versions = (
        read(spark, path),
        read_properties(spark, TableAddress(path)),
        count_versions(path),
    )
    assert needs_upgrade(spark, TableAddress(path))

    assert upgrade_table(spark, TableAddress(path)) == 6

    assert not needs_upgrade(spark, TableAddress(path))
    assert check_table(spark, TableAddress(path)) == 6
    assert count_versions(path) == versions + 1
    assert read_properties(spark, TableAddress(path)) == properties
    table = spark.read.format("delta").load(path)
    assert table.columns == [*OUTCOME_SCHEMA.names, "note"]
    assert table.schema["note"].metadata == {"comment": "why"}
    after = read(spark, path)
    unknown = {"type": None, "duration_s": None, "characters": None, "truncated": None}
    for earlier, row in zip(before, after, strict=True):
        width, height = earlier.pop("width"), earlier.pop("height")
        media = None if width is None else {"width": width, "height": height, **unknown}
        assert row == {**earlier, "media": media}
    assert [row["media"] and row["media"]["width"] for row in after] == [1, None, 3, None, 5, None]


def test_the_version_before_can_still_be_read(spark: SparkSession, path: str) -> None:
    create_earlier_table(spark, path)
    append_rows(earlier_rows(spark, range(3)), path)
    before = read(spark, path)
    upgrade_table(spark, TableAddress(path))
    assert read(spark, path, versionAsOf=count_versions(path) - 2) == before


LAYOUTS = {
    "partitioned": (", day string", "PARTITIONED BY (day)", "none"),
    "clustered": ("", "CLUSTER BY (topic, `offset`)", "none"),
    "generated": (", next bigint GENERATED ALWAYS AS (`offset` + 1)", "", "none"),
    "default": (", note string DEFAULT 'none'", "", "none"),
    "odd-name": (", `a b.c` string", "", "name"),
}


@pytest.mark.long
@pytest.mark.parametrize(
    ("extra", "layout", "mapping"),
    [pytest.param(*one, id=name) for name, one in LAYOUTS.items()],
)
def test_the_layout_and_computed_columns_stay(
    spark: SparkSession, path: str, extra: str, layout: str, mapping: str
) -> None:
    create_earlier_table(spark, path, extra, layout, mapping=mapping)
    rows = earlier_rows(spark, range(3))
    append_rows(rows.withColumn("day", f.lit("Mon")) if "day" in extra else rows, path)
    before, described = read(spark, path), describe(spark, path)

    upgrade_table(spark, TableAddress(path))

    assert check_table(spark, TableAddress(path)) == 3
    assert describe(spark, path) == described
    assert [row["offset"] for row in read(spark, path)] == [row["offset"] for row in before]
    # Columns that Delta computes are computed for new rows too.
    one = spark.sql("SELECT 'images' AS topic, CAST(9 AS BIGINT) AS offset, 'Tue' AS day")
    append_rows(one if "day" in extra else one.drop("day"), path)
    last = read(spark, path)[-1]
    assert last.get("next", 10) == 10
    assert last.get("note", "none") == "none"


def describe(spark: SparkSession, path: str) -> tuple[Any, ...]:
    detail = spark.sql(f"DESCRIBE DETAIL {quote_table(path)}").collect()[0]
    properties = {
        name: value for name, value in detail["properties"].items() if "maxColumnId" not in name
    }
    return detail["partitionColumns"], detail["clusteringColumns"], properties


def test_an_append_only_table_is_refused(spark: SparkSession, path: str) -> None:
    create_earlier_table(spark, path)
    spark.sql(f"ALTER TABLE {quote_table(path)} SET TBLPROPERTIES ('delta.appendOnly' = 'true')")
    with pytest.raises(SetupError, match="append-only"):
        upgrade_table(spark, TableAddress(path))


def test_an_identity_column_is_refused(spark: SparkSession, path: str) -> None:
    create_earlier_table(spark, path, ", number bigint GENERATED ALWAYS AS IDENTITY")
    append_rows(earlier_rows(spark, range(3)), path)
    with pytest.raises(SetupError, match="column 'number' is an identity column"):
        upgrade_table(spark, TableAddress(path))


def test_other_tables_are_refused(spark: SparkSession, path: str) -> None:
    with pytest.raises(SetupError, match="there is no table at"):
        needs_upgrade(spark, TableAddress(path))
    spark.sql(f"CREATE TABLE {quote_table(path)} (width int, height int, name string) USING delta")
    with pytest.raises(SetupError, match="column 'media' is missing"):
        needs_upgrade(spark, TableAddress(path))


def test_a_table_that_a_driver_holds_is_refused(spark: SparkSession, path: str) -> None:
    create_earlier_table(spark, path)
    with (
        claim_table(spark, path, checkpoint="first", when="always"),
        pytest.raises(SetupError, match=r"another driver runs: .* with the checkpoint 'first'"),
        claim_table(spark, path, when="always"),
    ):
        pass


@pytest.mark.long
def test_the_command_alters_a_table_that_no_driver_holds(spark: SparkSession, path: str) -> None:
    create_earlier_table(spark, path)
    append_rows(earlier_rows(spark, range(3)), path)

    def run() -> tuple[int, str]:
        command = [sys.executable, "-m", "embedstream", "upgrade", "--table", path]
        ended = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        return ended.returncode, ended.stdout + ended.stderr

    with claim_table(spark, path, checkpoint="first", when="always"):
        code, said = run()
    assert (code, needs_upgrade(spark, TableAddress(path))) == (2, True)
    assert f"another driver runs: host {socket.gethostname()}, pid {os.getpid()}" in said

    assert run()[0] == 0
    rows, versions = read(spark, path), count_versions(path)
    assert check_table(spark, TableAddress(path)) == 3

    code, said = run()
    assert (code, f"the table '{path}' has the current columns already" in said) == (0, True)
    assert (read(spark, path), count_versions(path)) == (rows, versions)


@pytest.mark.long
def test_a_stream_continues_exactly_once(spark: SparkSession, tmp_path: Path, path: str) -> None:
    """The last micro-batch is in the table and not in the checkpoint, as after a kill."""
    source, checkpoint = tmp_path / "source", tmp_path / "checkpoint"
    create_earlier_table(spark, path)

    def send(offsets: range) -> None:
        earlier_rows(spark, offsets).coalesce(1).write.mode("append").parquet(str(source))

    def drain(*, upgraded: bool) -> None:
        rows = spark.readStream.schema(EARLIER_SCHEMA).parquet(str(source))
        if upgraded:
            kind = OUTCOME_SCHEMA["media"].dataType
            media = f.lit(None).cast(kind).alias("media")
            rows = rows.select(
                *[media if name == "media" else name for name in OUTCOME_SCHEMA.names]
            )
        query = append(rows, TableAddress(path), checkpoint=str(checkpoint), interval_s=None)
        query.awaitTermination()

    for offsets in (range(4), range(4, 9)):
        send(offsets)
        drain(upgraded=False)
    assert sorted(one.name for one in (checkpoint / "commits").glob("[0-9]*")) == ["0", "1"]
    for leftover in (checkpoint / "commits").glob("*1*"):
        leftover.unlink()
    writers = read_writers(spark, path)
    assert [one.micro_batch for one in writers.values()] == [1]

    upgrade_table(spark, TableAddress(path))

    assert read_writers(spark, path) == writers
    send(range(9, 12))
    drain(upgraded=True)
    drain(upgraded=True)
    assert [row["offset"] for row in read(spark, path)] == [*range(12)]
    assert [one.micro_batch for one in read_writers(spark, path).values()] == [2]


@pytest.mark.long
@pytest.mark.kafka
def test_a_stream_of_messages_continues_exactly_once(
    spark: SparkSession, topic: Topic, configure: Callable[..., StreamConfig]
) -> None:
    """The table has the earlier shape and a micro-batch that the checkpoint does not know."""
    config = configure(kafka={"max_offsets_per_trigger": 4})
    path, checkpoint = config.table.path, Path(config.checkpoint)
    send_pictures(topic, 8)
    topic.send([image("broken", b"no image")])
    drain(spark, config)
    newest = max(int(one.name) for one in (checkpoint / "commits").glob("[0-9]*"))
    for leftover in (checkpoint / "commits").glob(f"*{newest}*"):
        leftover.unlink()
    before = restore_earlier_shape(spark, path)
    assert "alter it with `embedstream upgrade CONFIG`" in refusal(spark, config, "table")

    assert upgrade_table(spark, TableAddress(path)) == 9
    send_pictures(topic, 3)
    drain(spark, config)

    rows = read(spark, path)
    assert len(rows) == 12
    found = {Position(row["topic"], row["partition"], row["offset"]) for row in rows}
    assert found == topic.positions()
    media = {(row["partition"], row["offset"]): row["media"] for row in rows}
    for row in before:
        kept = media.pop((row["partition"], row["offset"])) or {"width": None, "height": None}
        assert (kept["width"], kept["height"]) == (row["width"], row["height"])
    assert [one["type"] for one in media.values()] == ["image/jpeg"] * 3


def restore_earlier_shape(spark: SparkSession, path: str) -> list[dict[str, Any]]:
    """Rewrite the table as an earlier version made it; return its rows."""
    table = spark.read.format("delta").load(path)
    columns = [
        f.col(f"media.{name}").alias(name) if name in ("width", "height") else f.col(name)
        for name in EARLIER_SCHEMA.names
    ]
    writer = table.select(columns).write.format("delta").mode("overwrite")
    writer.option("overwriteSchema", "true").save(path)
    return read(spark, path)
