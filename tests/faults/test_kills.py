"""`kill -9` of the driver, anywhere, and of Python workers: nothing is lost, nothing doubled.

The topic holds images, texts, audio and bad messages of all kinds, for several encoders.
"""

from __future__ import annotations

import json
import logging
import random
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from pyspark.sql import SparkSession
from pyspark.sql.streaming.query import StreamingQuery

from drivers import (
    driver_processes,
    hold_at,
    kill,
    processes_of,
    python_workers,
    wait_until,
)
from embedstream.stream.job import start_stream
from mixed_streams import Mix, MixedStream
from streams import Topic, prepared

pytestmark = [pytest.mark.kafka, pytest.mark.spark]

AHEAD = 160
"""Messages in wait at each start: more than it does before it is killed."""

LOG = logging.getLogger(__name__)


@pytest.fixture
def stream(spark: SparkSession, topic: Topic, tmp_path: Path, mix: Mix) -> MixedStream:
    return MixedStream.mixed(spark, topic, tmp_path, mix)


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("kills", [50])
def test_kill_9_at_random_points(stream: MixedStream, chance: random.Random, kills: int) -> None:
    for number in range(kills):
        before = stream.outcomes().keys()
        stream.send(AHEAD - len(stream.topic.positions()) + len(stream.done()))
        started = time.monotonic()
        with stream.run() as driver:
            await_chance(chance, stream, driver)
            kill(driver)
        assert before <= stream.outcomes().keys()
        LOG.info(
            "kill %d after %.1f s: micro-batch %d planned, %d done",
            number,
            time.monotonic() - started,
            stream.last_batch("offsets"),
            stream.last_batch("commits"),
        )

    stream.finish()

    stream.check()


def await_chance(chance: random.Random, stream: MixedStream, driver: subprocess.Popen[str]) -> None:
    """Every third time some seconds into the start, otherwise some micro-batches later."""
    if chance.random() < 1 / 3:
        time.sleep(chance.uniform(0.5, 15))
    else:
        stream.wait_for_batches(chance.randint(1, 4), driver)
        time.sleep(chance.uniform(0, 2))
    assert driver.poll() is None, driver.communicate()[0]


def planned_first(stream: MixedStream) -> bool:
    """The first micro-batch is planned, and nothing is written."""
    batches = stream.last_batch("offsets"), stream.last_batch("commits")
    return batches == (0, -1) and not data_files(stream)


def writing(stream: MixedStream) -> bool:
    """A data file is there that the table's log does not name."""
    files = data_files(stream)
    return bool(files - {action["add"]["path"] for action in log(stream) if "add" in action})


def between_the_commits(stream: MixedStream) -> bool:
    """The table has a micro-batch that Spark has not down as done."""
    in_table = [action["txn"]["version"] for action in log(stream) if "txn" in action]
    return max(in_table, default=-1) > stream.last_batch("commits")


@pytest.mark.parametrize(
    "point",
    [
        pytest.param(planned_first, marks=pytest.mark.long),
        pytest.param(writing, marks=pytest.mark.long),
        between_the_commits,
    ],
)
def test_kill_9_at_a_named_point(stream: MixedStream, point: Callable[[MixedStream], bool]) -> None:
    stream.send(AHEAD)
    with stream.run() as driver:
        hold_at(lambda: point(stream), driver)
        kill(driver)
    assert point(stream)

    stream.finish()

    stream.check()


def data_files(stream: MixedStream) -> set[str]:
    return {path.name for path in stream.table.glob("part-*.parquet")}


def log(stream: MixedStream) -> Iterator[dict[str, dict[str, Any]]]:
    for path in (stream.table / "_delta_log").glob("[0-9]*.json"):
        yield from map(json.loads, path.read_text().splitlines())


@pytest.mark.long
def test_a_table_whose_creation_was_interrupted_is_created(stream: MixedStream) -> None:
    """A driver that is killed there leaves the log's folder without an entry."""
    (stream.table / "_delta_log").mkdir(parents=True)
    stream.send(8)

    stream.finish()

    stream.check()


@pytest.mark.long
@pytest.mark.parametrize("half", ["python", "java"])
def test_the_other_half_of_a_killed_driver_ends_too(stream: MixedStream, half: str) -> None:
    stream.send(AHEAD)
    with stream.run() as driver:
        stream.wait_for_batches(2, driver)
        (victim,) = [one for one in driver_processes(driver) if one.name().startswith(half)]
        victim.kill()
        output, _ = driver.communicate(timeout=60)
        wait_until(lambda: not processes_of(driver), timeout_s=30)
    if half == "java":
        assert driver.returncode == 2, output
        last_line = output.splitlines()[-1]
        assert last_line.startswith("embedstream: Spark's JVM has ended by signal 9"), output

    stream.finish()

    stream.check()


@pytest.mark.long
def test_kill_9_of_a_python_worker_in_mid_batch(spark: SparkSession, stream: MixedStream) -> None:
    # A worker is done with fewer before it is seen to work.
    stream.send(4 * AHEAD)
    config = stream.undisturbed()
    before = {worker: worker.cpu_times().user for worker in python_workers()}

    query = start_stream(spark, config, prepared(config), until="drained").query
    wait_until(lambda: busy(before))
    busy(before)[0].kill()
    query.awaitTermination()

    assert failed_tasks(spark, query) > 0
    stream.check()


def busy(before: dict[psutil.Process, float]) -> list[psutil.Process]:
    """The workers that have computed for some time since then."""
    return [one for one in python_workers() if one.cpu_times().user > before.get(one, 0.0) + 0.2]


def failed_tasks(spark: SparkSession, query: StreamingQuery) -> int:
    tracker = spark.sparkContext.statusTracker()
    jobs = map(tracker.getJobInfo, tracker.getJobIdsForGroup(query.runId))
    stages = [tracker.getStageInfo(stage) for job in jobs if job for stage in job.stageIds]
    return sum(stage.numFailedTasks for stage in stages if stage)
