"""Memory does not grow with what the topic holds."""

from __future__ import annotations

import io
import logging
import subprocess
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image
from pyspark.sql import SparkSession

from drivers import DrivenStream, processes_of, wait_until
from mixed_messages import build_large_kinds
from mixed_streams import Mix, MixedStream
from oracle import check_outcomes
from streams import Topic, image

pytestmark = [
    pytest.mark.kafka,
    pytest.mark.spark,
    pytest.mark.long,
    pytest.mark.timeout(900),
]

HEAP = "600m"
MIB = 2**20

LOG = logging.getLogger(__name__)


def noise(side: int) -> bytes:
    """An image that does not compress, of three bytes for each pixel."""
    pixels = np.random.default_rng(7).integers(0, 256, (side, side, 3), dtype=np.uint8)
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, "BMP")
    return data.getvalue()


def peaks(driver: subprocess.Popen[str]) -> dict[str, int]:
    """The most memory of its own that the JVM, and any Python worker, had till the end, in MiB."""
    highest: dict[str, int] = defaultdict(int)

    def look() -> bool:
        for process in processes_of(driver):
            try:
                memory = process.memory_full_info().uss // MIB
                name = " ".join(process.cmdline())
            except psutil.NoSuchProcess:
                continue
            # A setting of the JVM's names the daemon too.
            if "pyspark-shell" in name:
                highest["jvm"] = max(highest["jvm"], memory)
            elif "embedstream.worker.daemon" in name:
                highest["worker"] = max(highest["worker"], memory)
        return driver.poll() is not None

    wait_until(look, timeout_s=600, poll_s=0.2)
    return highest


def run_in_bounds(stream: DrivenStream, messages: int) -> None:
    """Run a stream over large messages, and check the memory that it takes.

    In one micro-batch: what bounds it are Arrow batches of 32 MiB between Spark and Python, and
    64 MiB read ahead of the model. Spark's heap is smaller than the messages.
    """
    with stream.run(
        "kafka.max_offsets_per_trigger=1000",
        f"spark.options.spark.driver.memory={HEAP}",
        until="drained",
    ) as driver:
        highest = peaks(driver)
        output, _ = driver.communicate(timeout=30)

    assert driver.returncode == 0, output
    assert "in 1 micro-batch" in output
    LOG.info("%d messages, MiB at most: %s", messages, dict(highest))
    assert 0 < highest["worker"] < 1500
    # The heap, at most as much of direct memory, and what the JVM itself needs.
    assert 0 < highest["jvm"] < 1500


@pytest.mark.parametrize(("messages", "side"), [(200, 1290), (100, 1860)], ids=["5 MB", "10 MB"])
def test_a_gigabyte_of_large_messages_passes_in_bounded_memory(
    spark: SparkSession, topic: Topic, tmp_path: Path, messages: int, side: int
) -> None:
    content = noise(side)
    topic.send(image(f"noise-{number}", content) for number in range(messages))
    stream = DrivenStream.of(spark, topic, tmp_path)

    run_in_bounds(stream, messages)

    rows = check_outcomes(stream.table, topic.positions())
    assert len(rows) == messages
    assert all(row["error"] is None for row in rows.values())


def test_a_gigabyte_of_every_modality_passes_in_bounded_memory(
    spark: SparkSession, topic: Topic, tmp_path: Path, mix: Mix
) -> None:
    large = replace(mix, kinds=build_large_kinds())
    topic.send(large.messages(0, 100))
    stream = MixedStream.mixed(spark, topic, tmp_path, large)

    run_in_bounds(stream, 100)

    stream.check()
