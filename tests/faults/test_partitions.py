"""Partitions that are added to a topic that is being read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from kafka.admin import KafkaAdminClient
from pyspark.sql import SparkSession

from drivers import wait_until
from embedstream.config.sections import StreamConfig
from embedstream.recovery.lost_messages import LostRange
from kafka_topics import delete_before
from live import live
from oracle import Position, check_outcomes
from small import send_pictures
from streams import Topic, refusal
from streams_by_start import start

pytestmark = [pytest.mark.kafka, pytest.mark.spark]

Configure = Callable[..., StreamConfig]


def add_partition(topic: Topic) -> int:
    number = len(topic.end_offsets())
    admin = KafkaAdminClient(bootstrap_servers=topic.bootstrap_servers)
    try:
        admin.create_partitions({topic.name: number + 1})
        wait_until(lambda: number in topic.end_offsets())
    finally:
        admin.close()
    return number


def test_a_partition_added_to_a_running_stream_is_read_from_its_first_message(
    spark: SparkSession, topic: Topic, configure: Configure
) -> None:
    """Also where the first start began at the end of the topic."""
    send_pictures(topic, 4)
    skipped = topic.positions()
    config = configure(kafka={"starting_offsets": "latest"})
    with live(spark, config) as stream:
        wait_until(Path(config.checkpoint, "sources", "0", "0").exists)
        added = add_partition(topic)
        send_pictures(topic, 16)
        assert topic.end_offsets()[added] > 0
        stream.until_rows(16)
    check_outcomes(Path(config.table.path), topic.positions() - skipped)


@pytest.mark.long
def test_messages_lost_in_an_added_partition_are_named_and_skipped(
    spark: SparkSession, topic: Topic, configure: Configure
) -> None:
    """It was added, filled and trimmed while no stream ran."""
    config = configure()
    send_pictures(topic, 4)
    start(spark, config)
    added = add_partition(topic)
    send_pictures(topic, 16)
    delete_before(topic, {added: 1})

    message = refusal(spark, config, "checkpoint")
    assert f"topic '{topic.name}' partition {added}: offsets 0 to 0 (1 offset)" in message

    assert start(spark, config, accept_loss=True) == [LostRange(topic.name, added, 0, 0)]
    expected = topic.positions() - {Position(topic.name, added, 0)}
    check_outcomes(Path(config.table.path), expected)
    assert start(spark, config) == []
