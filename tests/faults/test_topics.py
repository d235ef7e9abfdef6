"""Topics that were created again, and messages that Kafka deleted before they were read.

The details: tests/streaming/recovery, in memory.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from pyspark.errors import StreamingQueryException
from pyspark.sql import SparkSession

from embedstream.config.sections import StreamConfig
from embedstream.kafka.admin import create_topic
from embedstream.recovery.lost_messages import LostRange
from embedstream.recovery.resume import explain_failure
from kafka_topics import delete_before, delete_topic
from oracle import Position, check_outcomes
from small import send_pictures
from streams import Topic, drain, refusal
from streams_by_start import start

pytestmark = [pytest.mark.kafka, pytest.mark.spark]

Configure = Callable[..., StreamConfig]


def test_a_topic_created_again_is_refused_with_and_without_the_checkpoint(
    spark: SparkSession, topic: Topic, configure: Configure, tmp_path: Path
) -> None:
    config = configure()
    without = config.model_copy(update={"checkpoint": str(tmp_path / "new")})
    send_pictures(topic, 8)
    start(spark, config)
    before = topic.positions()
    delete_topic(topic)
    create_topic(topic.bootstrap_servers, topic.name, partitions=2)
    send_pictures(topic, 20)

    messages = [
        refusal(spark, config, "checkpoint"),
        refusal(spark, without, "checkpoint", adopt=True),
    ]

    for message in messages:
        assert f"topic '{topic.name}' is not the one that was read so far" in message
        assert "start over with another table and checkpoint" in message
    check_outcomes(Path(config.table.path), before)


@pytest.mark.long
def test_messages_that_retention_deleted_are_named_and_skipped_on_demand(
    spark: SparkSession, topic: Topic, configure: Configure
) -> None:
    config = configure()
    send_pictures(topic, 8)
    start(spark, config)
    read, due = topic.positions(), topic.end_offsets()
    send_pictures(topic, 12)
    earliest = {number: offset + 2 for number, offset in due.items()}
    delete_before(topic, earliest)

    message = refusal(spark, config, "checkpoint")
    for number, offset in due.items():
        deleted = f"partition {number}: offsets {offset} to {offset + 1} (2 offsets)"
        assert f"topic '{topic.name}' {deleted}" in message
    assert "--accept-loss" in message

    lost = start(spark, config, accept_loss=True)

    assert lost == [LostRange(topic.name, n, due[n], due[n] + 1) for n in sorted(due)]
    gone = {Position(topic.name, n, offset + k) for n, offset in due.items() for k in (0, 1)}
    check_outcomes(Path(config.table.path), topic.positions() - gone | read)
    noted = Path(config.checkpoint, "_embedstream", "losses.jsonl").read_text().splitlines()
    assert [json.loads(line)["first"] for line in noted] == [due[n] for n in sorted(due)]
    send_pictures(topic, 4)
    assert start(spark, config) == []
    check_outcomes(Path(config.table.path), topic.positions() - gone)


@pytest.mark.long
def test_a_loss_within_a_planned_micro_batch_is_skipped(
    spark: SparkSession, topic: Topic, configure: Configure
) -> None:
    """The driver ended after it had planned a micro-batch, and retention took some of it."""
    config = configure()
    send_pictures(topic, 8)
    start(spark, config)
    read, due = topic.positions(), topic.end_offsets()
    send_pictures(topic, 8)
    offsets = Path(config.checkpoint, "offsets")
    planned = (offsets / "0").read_text().splitlines()
    planned[-1] = json.dumps({topic.name: topic.end_offsets()})
    (offsets / "1").write_text("\n".join(planned))
    delete_before(topic, {0: due[0] + 1})

    assert f"offsets {due[0]} to {due[0]} (1 offset)" in refusal(spark, config, "checkpoint")
    start(spark, config, accept_loss=True)

    gone = {Position(topic.name, 0, due[0])}
    check_outcomes(Path(config.table.path), topic.positions() - gone | read)


@pytest.mark.long
def test_a_running_stream_that_meets_a_loss_stops_with_a_sentence(
    spark: SparkSession, topic: Topic, configure: Configure
) -> None:
    config = configure()
    send_pictures(topic, 8)
    start(spark, config)
    due = topic.end_offsets()
    send_pictures(topic, 8)
    delete_before(topic, {0: due[0] + 1})

    with pytest.raises(StreamingQueryException):
        drain(spark, config)

    reason = explain_failure(spark, config)
    assert reason is not None
    assert f"topic '{topic.name}' partition 0: offsets {due[0]} to {due[0]} (1 offset)" in reason
