"""The broker is killed, or stands still, while the stream runs."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from pyspark.sql import SparkSession

from broker_faults import broker, come_back, kill, standing_still
from drivers import DrivenStream, wait_until
from embedstream.config.sections import StreamConfig
from embedstream.kafka.dev_broker import Broker
from live import live
from oracle import check_outcomes
from small import send_pictures
from streams import Topic
from streams_by_start import start

__all__ = ["broker"]

pytestmark = [pytest.mark.kafka, pytest.mark.spark]

Configure = Callable[..., StreamConfig]

# Bounds of a few seconds, in place of Kafka's and Spark's minutes.
IMPATIENT = {
    "kafka.request.timeout.ms": "1000",
    "kafka.default.api.timeout.ms": "2000",
    "kafkaConsumer.pollTimeoutMs": "2000",
    "fetchOffset.numRetries": "2",
}


@pytest.fixture(autouse=True)
def up(broker: Broker) -> None:
    """Whatever an earlier test left behind."""
    come_back(broker)


@pytest.mark.long
def test_the_stream_continues_after_kill_9_of_the_broker(
    spark: SparkSession, topic: Topic, configure: Configure, broker: Broker
) -> None:
    config = configure(kafka={"max_offsets_per_trigger": 4})
    send_pictures(topic, 24)
    with live(spark, config) as stream:
        stream.until_rows(4)
        kill(broker)
        stream.until_still(3)
        assert len(stream.positions()) < 24

        come_back(broker)

        stream.until_rows(24)
        send_pictures(topic, 4)
        stream.until_rows(28)
    check_outcomes(Path(config.table.path), topic.positions())


@pytest.mark.long
def test_a_task_that_reads_waits_for_the_broker(
    spark: SparkSession, topic: Topic, configure: Configure, broker: Broker
) -> None:
    """The driver has planned the micro-batch already, so that only its tasks ask Kafka."""
    config = configure()
    send_pictures(topic, 4)
    start(spark, config)
    send_pictures(topic, 8)
    offsets = Path(config.checkpoint, "offsets")
    plan = (offsets / "0").read_text().splitlines()
    plan[-1] = json.dumps({topic.name: topic.end_offsets()})
    (offsets / "1").write_text("\n".join(plan))
    kill(broker)

    with live(spark, config) as stream:
        wait_until(spark.sparkContext.statusTracker().getActiveStageIds)
        stream.until_still(3)
        assert len(stream.positions()) == 4
        come_back(broker)
        stream.until_rows(12)

    check_outcomes(Path(config.table.path), topic.positions())


@pytest.mark.long
@pytest.mark.parametrize("seconds", [3, 60])
def test_the_stream_continues_after_the_broker_was_suspended(
    spark: SparkSession, topic: Topic, configure: Configure, broker: Broker, seconds: float
) -> None:
    config = configure(kafka={"max_offsets_per_trigger": 4})
    send_pictures(topic, 24)
    with live(spark, config) as stream:
        stream.until_rows(4)
        with standing_still(broker):
            stream.until_still(seconds)
            assert len(stream.positions()) < 24
        stream.until_rows(24)
        send_pictures(topic, 4)
        stream.until_rows(28)
    check_outcomes(Path(config.table.path), topic.positions())


@pytest.mark.long
def test_an_outage_beyond_the_bounds_stops_the_stream_and_loses_nothing(
    spark: SparkSession, topic: Topic, broker: Broker, tmp_path: Path
) -> None:
    stream = DrivenStream.of(spark, topic, tmp_path)
    stream.send(48)
    bounds = [f"kafka.options.{name}={value}" for name, value in IMPATIENT.items()]

    with stream.run(*bounds) as driver:
        stream.wait_for_batches(1, driver)
        kill(broker)
        output, _ = driver.communicate(timeout=200)

    assert driver.returncode == 2, output
    assert f"embedstream: no Kafka broker answers at {topic.bootstrap_servers}" in output
    assert "Traceback" not in output
    assert len(stream.rows()) < 48
    come_back(broker)
    stream.finish()
    stream.check()


@pytest.mark.long
def test_sigterm_ends_the_stream_also_during_an_outage(
    spark: SparkSession, topic: Topic, broker: Broker, tmp_path: Path
) -> None:
    stream = DrivenStream.of(spark, topic, tmp_path)
    stream.send(48)

    with stream.run("trigger.stop_timeout_s=3") as driver:
        stream.wait_for_batches(1, driver)
        kill(broker)
        driver.send_signal(signal.SIGTERM)
        output, _ = driver.communicate(timeout=120)

    assert driver.returncode == 0, output
    assert "Traceback" not in output
    assert len(stream.rows()) < 48
    come_back(broker)
    stream.finish()
    stream.check()
