"""Tombstones in a topic: one row each, whatever interrupts the stream, and what they hide."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from pyspark.sql import SparkSession

from embedstream.bulk.replay import Replay
from embedstream.bulk.selection import Kind, Selection
from embedstream.config.sections import StreamConfig
from embedstream.stream.preflight import Consent, check_start
from embedstream.table.views import embeddings, failures, newest
from oracle import check_outcomes
from small import tiny_picture
from streams import Topic, image
from streams_by_start import start

pytestmark = [pytest.mark.kafka, pytest.mark.spark]

Configure = Callable[..., StreamConfig]


def plan(
    spark: SparkSession, config: StreamConfig, *, kind: Kind = "replay", failures: bool = False
) -> Replay:
    checked = check_start(
        spark, config, print, Consent(model_change=kind == "backfill"), purpose="replay"
    )
    assert checked is not None
    selection = Selection(failures=failures)
    return Replay(spark, config, checked.models, checked.topics, kind=kind, selection=selection)


def visible(spark: SparkSession, config: StreamConfig) -> list[str]:
    rows = embeddings(spark, config.table.path).collect()
    return sorted(row.image_id for row in rows)


def test_tombstones_have_one_row_each_and_hide_what_was_sent_before(
    spark: SparkSession, topic: Topic, configure: Configure, tmp_path: Path
) -> None:
    """In one micro-batch and in later ones; replayed, backfilled, adopted, started again."""
    config = configure(message={"tombstones": "delete"})
    table = tmp_path / "table"
    picture = tiny_picture()
    topic.send([image("a", picture), image("b", picture), image("c", b"no image")])
    topic.send([image("d", b"no image"), image("a", None), image("e", b"")])
    start(spark, config)
    check_outcomes(table, topic.positions())
    assert visible(spark, config) == ["b"]

    topic.send([image("b", None, shop="42"), image("a", picture), image("c", None)])
    for _ in range(2):
        start(spark, config)
    shutil.rmtree(config.checkpoint)
    start(spark, config, adopt=True)
    start(spark, config)

    rows = check_outcomes(table, topic.positions())
    deleted = [row for row in rows.values() if row["error"] and row["error"]["code"] == "deleted"]
    assert sorted(row["image_id"] for row in deleted) == ["a", "b", "c"]
    assert {row["error"]["stage"] for row in deleted} == {"message"}
    assert dict(*(row["attributes"] for row in deleted if row["image_id"] == "b")) == {"shop": "42"}
    assert visible(spark, config) == ["a"]
    failed = failures(spark, config.table.path).collect()
    assert sorted((row.image_id, row.code) for row in failed) == [
        ("d", "image_unsupported"),
        ("e", "image_empty"),
    ]
    assert newest(spark, config.table.path).count() == 3

    everything, failed_ones = plan(spark, config), plan(spark, config, failures=True)
    assert (everything.plan().rows, failed_ones.plan().rows) == (3, 2)
    for chunk in everything.plan().chunks:
        everything.run(chunk)
    after = check_outcomes(table, topic.positions())
    changed = [p for p, row in after.items() if row["processed_at"] != rows[p]["processed_at"]]
    assert sorted(after[position]["image_id"] for position in changed) == ["a", "d", "e"]
    other = {"encoder": config.encoder.model_copy(update={"name": "resnet18", "weights": "random"})}
    backfill = plan(spark, config.model_copy(update=other), kind="backfill")
    assert backfill.plan().rows == 1
