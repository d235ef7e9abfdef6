"""What a real stream reports of its work, and the consumer group that shows its offsets."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from kafka import KafkaConsumer
from kafka.admin import KafkaAdminClient
from pyspark.sql import SparkSession

from drivers import wait_until
from embedstream.config.sections import StreamConfig
from embedstream.kafka.group import commit_offsets
from embedstream.recovery.resume import read_next
from embedstream.stream.job import list_ids, start_stream
from embedstream.stream.reports import MicroBatchReport
from embedstream.stream.watching import StreamWatch, watch_stream
from embedstream.table.delta_log import read_writers
from embedstream.worker.counts import RowKind
from embedstream_core.errors import SetupError
from oracle import read_rows
from small import tiny_picture
from streams import Topic, image, prepared, refusal

pytestmark = [pytest.mark.kafka, pytest.mark.spark]

Configure = Callable[..., StreamConfig]


def drain_watched(spark: SparkSession, config: StreamConfig) -> list[MicroBatchReport]:
    """Run the stream over all that its topic holds now, watched as the command does."""
    reports: list[MicroBatchReport] = []
    with watch_stream(spark, config, replay="", observers=[reports.append]) as watch:
        put_start(spark, config, watch)
        stream = start_stream(
            spark, config, prepared(config), until="drained", tallies=watch.tallies
        )
        stream.query.awaitTermination()
        watch.wait_for_last_report()
    spark.streams.removeListener(watch.listener)
    return reports


def put_start(spark: SparkSession, config: StreamConfig, watch: StreamWatch) -> None:
    if Path(config.table.path).exists():
        watch.put_read(read_next(spark, config, read_writers(spark, config.table.path)))


def committed(topic: Topic, group: str) -> dict[int, int]:
    """The group's offsets, as tools see them."""
    with closing(KafkaAdminClient(bootstrap_servers=topic.bootstrap_servers)) as admin:
        offsets = admin.list_group_offsets({group: None})[group]
    return {one.partition: int(found.offset) for one, found in offsets.items()}


def in_table(config: StreamConfig) -> dict[int, int]:
    """For each partition the offset after the newest row."""
    ends: dict[int, int] = {}
    for one in read_rows(Path(config.table.path)):
        ends[one.partition] = max(ends.get(one.partition, 0), one.offset + 1)
    return ends


def test_a_stream_reports_its_work_and_commits_its_offsets(
    spark: SparkSession, topic: Topic, configure: Configure
) -> None:
    group = f"{topic.name}-lag"
    config = configure(
        kafka={"commit_group": group, "max_offsets_per_trigger": 8}, pipeline={"dedupe": True}
    )
    before = time.time()
    # The workers' cache has no picture with these bytes yet.
    content = tiny_picture() + topic.name.encode()
    topic.send(image(str(number), content) for number in range(12))
    topic.send(image(f"bad-{number}", b"no image") for number in range(4))

    reports = drain_watched(spark, config)

    (model_id,) = list_ids(prepared(config))
    rows: Counter[RowKind] = Counter()
    for one in reports:
        rows.update(one.rows_by_kind)
    assert rows == {
        RowKind(topic.name, model_id, None): 12,
        RowKind(topic.name, model_id, "image_unsupported"): 4,
    }
    assert sum(sum(one.appended.values()) for one in reports) == 16
    for one in reports:
        assert all(before - 5 <= at <= one.committed_at + 1 for at in one.appended)
        assert before < one.committed_at <= time.time()
        assert {"write", "wait"} <= one.stage_seconds.keys()
        assert one.newest_failures.keys() <= {"image_unsupported"}
    # A later one may find all its pictures in the cache.
    assert min(reports[0].stage_seconds[stage] for stage in ("decode", "forward")) > 0
    # Equal pictures in one task, or in two of them.
    assert 12 - 2 * len(reports) <= sum(one.cache_hits for one in reports) <= 11
    assert {number: at for (_, number), at in reports[-1].read.items()} == topic.end_offsets()
    assert committed(topic, group) == topic.end_offsets() == in_table(config)

    # As if a driver had been killed before it wrote to the group: the next one does at its start.
    commit_offsets(spark, config.kafka, group, {(topic.name, 0): 1, (topic.name, 1): 0})
    assert committed(topic, group) == {0: 1, 1: 0}
    with watch_stream(spark, config, replay="", observers=[]) as watch:
        put_start(spark, config, watch)
    spark.streams.removeListener(watch.listener)
    assert committed(topic, group) == in_table(config)

    topic.send(image(f"later-{number}", tiny_picture()) for number in range(3))
    assert sum(one.rows for one in drain_watched(spark, config)) == 3
    assert committed(topic, group) == topic.end_offsets() == in_table(config)


def own_messages(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [one.getMessage() for one in caplog.records if one.name.startswith("embedstream")]


def test_a_group_with_active_members_is_refused_in_a_sentence(
    spark: SparkSession,
    topic: Topic,
    configure: Configure,
    caplog: pytest.LogCaptureFixture,
) -> None:
    group = f"{topic.name}-theirs"
    config = configure(kafka={"commit_group": group})
    with closing(
        KafkaConsumer(
            topic.name,
            group_id=group,
            client_id="their-reader",
            bootstrap_servers=topic.bootstrap_servers,
            # It gets no partition until it asks again where it asked before the topic was known.
            metadata_max_age_ms=500,
        )
    ) as consumer:
        wait_until(lambda: consumer.poll(100) or consumer.assignment(), timeout_s=60)

        assert refusal(spark, config, "topics") == (
            f"the consumer group '{group}' has active members (their-reader), so its offsets are "
            "theirs; set kafka.commit_group to a group that no consumer uses"
        )
        with pytest.raises(SetupError, match="has active members, so its offsets are theirs"):
            commit_offsets(spark, config.kafka, group, {(topic.name, 0): 0})
        with (
            caplog.at_level(logging.WARNING, "embedstream"),
            watch_stream(spark, config, replay="", observers=[]) as watch,
        ):
            watch.put_read({(topic.name, 0): 0})
            wait_until(lambda: own_messages(caplog), timeout_s=60)
    spark.streams.removeListener(watch.listener)
    (message,) = own_messages(caplog)
    assert message.startswith("the consumer group's offsets are not committed, and it is tried")
    assert "\n" not in message
