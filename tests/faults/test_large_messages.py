"""Memory does not grow with what the topic holds."""

from __future__ import annotations

import io
import subprocess
from collections import defaultdict
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image
from pyspark.sql import SparkSession
from pyspark.sql.functions import broadcast

from faults.drivers import DrivenStream, processes_of, wait_until
from faults.oracle import check_outcomes
from streams import Topic

pytestmark = [
    pytest.mark.kafka,
    pytest.mark.spark,
    pytest.mark.long,
    pytest.mark.timeout(900),
]

MESSAGES = 200
HEAP = "600m"
MIB = 2**20


def five_megabytes() -> bytes:
    """A picture that does not compress."""
    side = 1290
    noise = np.random.default_rng(7).integers(0, 256, (side, side, 3), dtype=np.uint8)
    data = io.BytesIO()
    Image.fromarray(noise).save(data, "BMP")
    return data.getvalue()


def send(spark: SparkSession, topic: Topic, content: bytes, file: Path) -> None:
    """By Spark: kafka-python computes its checksums in Python, a second for each message."""
    file.write_bytes(content)
    picture = spark.read.format("binaryFile").load(str(file)).select("content")
    messages = spark.range(MESSAGES).crossJoin(broadcast(picture))
    writer = messages.selectExpr("cast(id AS string) AS key", "content AS value").write
    options = {
        "kafka.bootstrap.servers": topic.bootstrap_servers,
        "kafka.max.request.size": str(10 * MIB),
        "topic": topic.name,
    }
    writer.format("kafka").options(**options).save()
    assert sum(topic.end_offsets().values()) == MESSAGES
    file.unlink()


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
            if "embedstream.daemon" in name:
                highest["worker"] = max(highest["worker"], memory)
            elif "pyspark-shell" in name:
                highest["jvm"] = max(highest["jvm"], memory)
        return driver.poll() is not None

    wait_until(look, timeout_s=600, poll_s=0.2)
    return highest


def test_200_messages_of_5_mb_pass_in_bounded_memory(
    spark: SparkSession, topic: Topic, tmp_path: Path
) -> None:
    """A gigabyte in one micro-batch: what bounds it are Arrow batches of 32 MiB between Spark and
    Python, and 64 MiB read ahead of the model. Spark's heap is smaller than the messages."""
    send(spark, topic, five_megabytes(), tmp_path / "noise.bmp")
    stream = DrivenStream.of(spark, topic, tmp_path)

    with stream.run(
        "kafka.max_offsets_per_trigger=1000",
        f"spark.options.spark.driver.memory={HEAP}",
        until="drained",
    ) as driver:
        highest = peaks(driver)
        output, _ = driver.communicate(timeout=30)

    assert driver.returncode == 0, output
    assert "in 1 micro-batch" in output
    rows = check_outcomes(stream.table, topic.positions())
    assert all(row["error"] is None for row in rows.values())
    assert highest["worker"] < 1500
    assert highest["jvm"] < 1200
