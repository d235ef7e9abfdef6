"""What Kafka keeps besides plain messages: transactions, gaps, null values, messages twice."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Literal

import pytest
from kafka import KafkaConsumer, KafkaProducer, TopicPartition
from kafka.admin import KafkaAdminClient
from pyspark.sql import SparkSession

from drivers import wait_until
from embedstream.config.sections import StreamConfig
from embedstream.kafka.dev_broker import Broker, start_broker, stop_broker
from embedstream.table.views import embeddings
from live import live
from oracle import Position, check_outcomes
from small import tiny_picture
from streams import Topic, image
from streams_by_start import start

pytestmark = [pytest.mark.kafka, pytest.mark.spark]

Configure = Callable[..., StreamConfig]
End = Literal["commit", "abort"]

# What Kafka does in the background every 10 or 15 seconds, it does here at once.
PROMPT = {
    "log.cleaner.backoff.ms": "100",
    "transaction.abort.timed.out.transaction.cleanup.interval.ms": "200",
}


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    folder = tmp_path_factory.mktemp("broker")
    try:
        yield start_broker(folder, properties=PROMPT)
    finally:
        stop_broker(folder)


@contextmanager
def transactional(topic: Topic, *, timeout_s: float = 60) -> Iterator[KafkaProducer]:
    """A producer whose transaction is open; one that its test leaves open hangs."""
    producer = KafkaProducer(
        bootstrap_servers=topic.bootstrap_servers,
        transactional_id=f"writer-{uuid.uuid4().hex[:8]}",
        transaction_timeout_ms=int(timeout_s * 1000),
    )
    try:
        producer.init_transactions()
        producer.begin_transaction()
        yield producer
    finally:
        producer.close(timeout=1)


def write(producer: KafkaProducer, topic: Topic, count: int) -> set[Position]:
    """Send images to the first partition; they are in the log when this returns."""
    sent = [producer.send(topic.name, tiny_picture(), partition=0) for _ in range(count)]
    producer.flush()
    return {Position(topic.name, 0, one.get(timeout=10).offset) for one in sent}


def transaction(topic: Topic, count: int, end: End) -> set[Position]:
    with transactional(topic) as producer:
        positions = write(producer, topic, count)
        if end == "commit":
            producer.commit_transaction()
        else:
            producer.abort_transaction()
    return positions


def plainly(topic: Topic, count: int) -> set[Position]:
    with closing(KafkaProducer(bootstrap_servers=topic.bootstrap_servers)) as producer:
        return write(producer, topic, count)


@pytest.mark.long
@pytest.mark.parametrize("isolation", ["read_committed", "read_uncommitted"])
def test_aborted_messages_make_rows_only_where_uncommitted_ones_are_read(
    spark: SparkSession, topic: Topic, configure: Configure, isolation: str
) -> None:
    """Some micro-batches hold nothing but aborted messages and the records that end transactions.

    So does the end of the topic: a second start continues after it.
    """
    committed = transaction(topic, 2, "commit")
    aborted = transaction(topic, 6, "abort")
    committed |= transaction(topic, 1, "commit")
    aborted |= transaction(topic, 5, "abort")
    config = configure(kafka={"isolation": isolation, "max_offsets_per_trigger": 4})

    start(spark, config)
    expected = committed if isolation == "read_committed" else committed | aborted
    check_outcomes(Path(config.table.path), expected)

    expected |= transaction(topic, 1, "commit")
    start(spark, config)
    check_outcomes(Path(config.table.path), expected)


@pytest.mark.long
def test_a_hung_transaction_holds_messages_back_until_it_times_out(
    spark: SparkSession, topic: Topic, configure: Configure
) -> None:
    config = configure(trigger={"interval_s": 0})
    before = transaction(topic, 2, "commit")
    with live(spark, config) as stream, transactional(topic, timeout_s=5) as hung:
        stream.until_rows(2)
        write(hung, topic, 2)
        after = plainly(topic, 2)
        held_from = time.monotonic()

        stream.until_still(2)
        assert stream.positions() == before

        stream.until_rows(4)
        assert time.monotonic() - held_from > 3
    check_outcomes(Path(config.table.path), before | after)


@pytest.mark.long
def test_an_open_transaction_is_read_at_once_where_uncommitted_messages_are(
    spark: SparkSession, topic: Topic, configure: Configure
) -> None:
    config = configure(kafka={"isolation": "read_uncommitted"})
    with transactional(topic) as producer:
        expected = write(producer, topic, 2) | plainly(topic, 1)
        start(spark, config)
        check_outcomes(Path(config.table.path), expected)
        producer.abort_transaction()
    start(spark, config)
    check_outcomes(Path(config.table.path), expected)


@pytest.mark.long
def test_a_compacted_topic_has_a_row_for_each_message_that_is_left(
    spark: SparkSession, broker: Broker, configure: Configure
) -> None:
    """Compaction leaves gaps in the offsets; the null value of a deleted key makes no row."""
    topic = compacted_topic(broker)
    for _ in range(4):
        topic.send(image(name, tiny_picture()) for name in "abc")
    topic.send([image("b", None)])
    topic.send([image("d", tiny_picture())])
    wait_until(lambda: kept(topic) == {9, 11, 12, 13}, timeout_s=60)
    config = configure(kafka={"subscribe": topic.name, "max_offsets_per_trigger": 2})

    start(spark, config)

    check_outcomes(Path(config.table.path), {Position(topic.name, 0, n) for n in (9, 11, 13)})


@pytest.mark.long
def test_a_message_that_was_sent_twice_has_two_rows(
    spark: SparkSession, topic: Topic, configure: Configure
) -> None:
    """At two offsets, with the same embedding: also where equal images are embedded once."""
    config = configure(pipeline={"dedupe": "on"})
    for _ in range(2):
        topic.send([image("cat", tiny_picture())])

    start(spark, config)

    rows = check_outcomes(Path(config.table.path), topic.positions())
    assert len(rows) == 2
    found = embeddings(spark, config.table.path).select("image_id", "embedding").collect()
    assert found[0] == found[1]


def compacted_topic(broker: Broker) -> Topic:
    """Of one partition; each batch that is sent begins a file, and older files are compacted."""
    topic = Topic(f"compacted-{uuid.uuid4().hex[:8]}", broker.bootstrap_servers)
    configs = {
        "cleanup.policy": "compact",
        "min.cleanable.dirty.ratio": "0.01",
        "segment.ms": "1",
    }
    options: dict[str, Any] = {"num_partitions": 1, "replication_factor": 1, "configs": configs}
    with closing(KafkaAdminClient(bootstrap_servers=broker.bootstrap_servers)) as admin:
        admin.create_topics({topic.name: options}, wait_for_metadata=True)
    return topic


def kept(topic: Topic) -> set[int]:
    """The offsets that are in the topic."""
    partition = TopicPartition(topic.name, 0)
    consumer = KafkaConsumer(bootstrap_servers=topic.bootstrap_servers)
    found: set[int] = set()
    with closing(consumer):
        consumer.assign([partition])
        consumer.seek_to_beginning(partition)
        end = consumer.end_offsets([partition])[partition]
        while consumer.position(partition) < end:
            found |= {record.offset for record in consumer.poll(1000).get(partition, [])}
    return found
