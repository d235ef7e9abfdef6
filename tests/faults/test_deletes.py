"""Tombstones in a topic: one row each, whatever interrupts the stream, and what they hide."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
from pyspark.sql import SparkSession

from embedstream.bulk.replay import Replay
from embedstream.bulk.selection import Kind, Selection
from embedstream.config.sections import StreamConfig
from embedstream.stream.preflight import Consent, check_start
from embedstream.table.views import embeddings, failures
from embedstream_core.errors import Code
from oracle import Row, all_rows, check_outcomes
from small import tiny_picture
from streams import Topic, image
from streams_by_start import start

pytestmark = [pytest.mark.kafka, pytest.mark.spark]

Configure = Callable[..., StreamConfig]


def begin(
    spark: SparkSession, config: StreamConfig, *, kind: Kind = "replay", failures: bool = False
) -> Replay:
    consent = Consent(model_change=kind == "backfill")
    checked = check_start(spark, config, print, consent, purpose="replay")
    assert checked is not None
    selection = Selection(failures=failures)
    return Replay(spark, config, checked.models, checked.topics, kind=kind, selection=selection)


def visible(spark: SparkSession, config: StreamConfig) -> list[str]:
    rows = embeddings(spark, config.table.path).collect()
    return sorted(row.image_id for row in rows)


def codes(rows: Iterable[Row]) -> list[tuple[str, str]]:
    failed = [(row["image_id"], row["error"]["code"]) for row in rows if row["error"]]
    return sorted(failed)


@pytest.mark.long
def test_tombstones_have_one_row_each_and_hide_what_was_sent_before(
    spark: SparkSession, topic: Topic, configure: Configure, tmp_path: Path
) -> None:
    """In one micro-batch and in later ones, with a restart and a lost checkpoint."""
    config = configure(message={"tombstones": "delete"})
    table, picture = tmp_path / "table", tiny_picture()
    topic.send([image("a", picture), image("b", picture), image("c", b"no image")])
    topic.send([image("d", b"no image"), image("a", None), image("e", b"")])
    start(spark, config)
    check_outcomes(table, topic.positions())
    assert visible(spark, config) == ["b"]

    topic.send([image("b", None, shop="42"), image("a", picture), image("c", None)])
    start(spark, config)
    # Tombstones are the last rows of their partitions, or of one of them.
    shutil.rmtree(config.checkpoint)
    start(spark, config, adopt=True)

    rows = check_outcomes(table, topic.positions())
    kept = [("d", Code.IMAGE_UNSUPPORTED), ("e", Code.IMAGE_EMPTY)]
    gone = [(name, Code.DELETED) for name in "abc"]
    assert codes(rows.values()) == sorted([*kept, *gone, ("c", Code.IMAGE_UNSUPPORTED)])
    deleted = [row for row in rows.values() if row["error"] and row["error"]["code"] == "deleted"]
    assert [dict(row["attributes"]) for row in deleted if row["image_id"] == "b"] == [
        {"shop": "42"}
    ]
    assert {row["error"]["stage"] for row in deleted} == {"message"}
    assert visible(spark, config) == ["a"]
    failed = failures(spark, config.table.path).collect()
    assert sorted((row.image_id, row.code) for row in failed) == kept


@pytest.mark.long
def test_deleted_messages_are_neither_replayed_nor_backfilled(
    spark: SparkSession, topic: Topic, configure: Configure, tmp_path: Path
) -> None:
    config = configure(message={"tombstones": "delete"})
    topic.send([image("a", tiny_picture()), image("b", tiny_picture()), image("a", None)])
    topic.send([image("c", b"no image"), image("d", b"no image"), image("c", None)])
    start(spark, config)
    rows = check_outcomes(tmp_path / "table", topic.positions())
    random = config.encoder.model_copy(update={"name": "resnet18", "weights": "random"})
    other = config.model_copy(update={"encoder": random})

    assert begin(spark, config).plan().rows == 2
    assert begin(spark, other, kind="backfill").plan().rows == 1
    replay = begin(spark, config, failures=True)
    for chunk in replay.plan().chunks:
        replay.run(chunk)
    after = check_outcomes(tmp_path / "table", topic.positions())
    changed = [p for p, row in after.items() if row["processed_at"] != rows[p]["processed_at"]]
    assert [after[position]["image_id"] for position in changed] == ["d"]


@pytest.mark.long
def test_null_values_without_a_key_are_only_counted(
    spark: SparkSession, topic: Topic, configure: Configure, tmp_path: Path
) -> None:
    config = configure(message={"tombstones": "delete"})
    # An empty key is a key.
    sent = [(None, tiny_picture()), (None, None), (b"", tiny_picture()), (b"", None)]
    messages = spark.createDataFrame(
        [(key, value, 0) for key, value in sent], "key binary, value binary, partition int"
    )
    # kafka-python refuses a message with neither.
    options = {"kafka.bootstrap.servers": topic.bootstrap_servers, "topic": topic.name}
    messages.coalesce(1).write.format("kafka").options(**options).save()

    start(spark, config)

    found = all_rows(tmp_path / "table")
    assert sorted((row["offset"], row["key"]) for row in found) == [(0, None), (2, b""), (3, b"")]
    assert visible(spark, config) == [f"{topic.name}-0-0"]
