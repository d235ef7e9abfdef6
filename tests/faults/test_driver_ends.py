"""The driver ends by a signal: the micro-batch in flight is finished, if it can be in time."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest
from pyspark.sql import SparkSession

from drivers import DrivenStream, processes_of, wait_until
from small import POISON, poisoned, tiny_picture
from streams import Topic, image

pytestmark = [pytest.mark.kafka, pytest.mark.spark]

MESSAGES = 48
STOP_TIMEOUT_S = 60


@pytest.fixture
def stream(spark: SparkSession, topic: Topic, tmp_path: Path) -> DrivenStream:
    return DrivenStream.of(spark, topic, tmp_path)


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.long)]
)
@pytest.mark.long
def test_a_signal_lets_the_micro_batch_finish_and_exits_0(
    stream: DrivenStream, number: signal.Signals
) -> None:
    stream.send(MESSAGES)
    with stream.run(f"trigger.stop_timeout_s={STOP_TIMEOUT_S}") as driver:
        stream.wait_for_batches(2, driver)
        wait_until(stream.in_flight, driver=driver, poll_s=0.01)
        in_flight = stream.last_batch("offsets")
        driver.send_signal(number)
        output, _ = driver.communicate(timeout=STOP_TIMEOUT_S)

        assert driver.returncode == 0, output
        assert "the micro-batch in flight is being finished" in output
        assert "Traceback" not in output
        wait_until(lambda: not processes_of(driver), timeout_s=20)
    assert stream.last_batch("commits") >= in_flight
    assert 0 < len(stream.rows()) < MESSAGES
    assert list((stream.folder / "scratch").iterdir()) == []

    stream.finish()

    stream.check()


@pytest.mark.long
def test_a_stop_waits_no_longer_than_its_limit(stream: DrivenStream) -> None:
    """An image hangs its decoder, and the deadline for that is far."""
    messages = [image(str(index), tiny_picture()) for index in range(MESSAGES)]
    messages[20:] = [image("hangs", poisoned("hang")) for _ in range(MESSAGES - 20)]
    stream.topic.send(messages)
    poison = {"PYTHONPATH": os.pathsep.join([str(POISON), os.getenv("PYTHONPATH", "")])}
    with stream.run(
        "trigger.stop_timeout_s=2", "decode.timeout_s=600", environment=poison
    ) as driver:
        stream.wait_for_batches(1, driver)
        wait_until(stream.hangs, driver=driver)
        driver.send_signal(signal.SIGTERM)
        signalled = time.monotonic()
        output, _ = driver.communicate(timeout=60)

        assert driver.returncode == 0, output
        assert 2 < time.monotonic() - signalled < 30
        assert "it took longer than 2 s; the next start repeats it" in output
        wait_until(lambda: not processes_of(driver), timeout_s=20)
    assert 0 < len(stream.rows()) < MESSAGES

    stream.finish()

    stream.check()


@pytest.mark.long
def test_two_executors_load_the_model_once_each(stream: DrivenStream) -> None:
    stream.send(MESSAGES)
    with stream.run("spark.master=local-cluster[2,1,1024]", until="drained") as driver:
        output, _ = driver.communicate(timeout=280)
    assert driver.returncode == 0, output

    stream.check()
    assert "together they loaded 2 times" in output
