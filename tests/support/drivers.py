"""Streams that drivers of their own run, as a user starts them, and what these leave behind."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import cache
from itertools import combinations, islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
import psutil
from pyspark.sql import SparkSession

from embedstream.config.load import load_config
from embedstream.config.sections import StreamConfig
from embedstream.kafka.dev_broker import Broker
from embedstream.stream.job import Until
from oracle import Position, Row, check_outcomes, read_rows
from pictures import real_pictures
from small import shrink, write_config
from streams import Topic, image
from streams_by_start import start

__all__ = [
    "SETTINGS",
    "DrivenStream",
    "Vectors",
    "driver_processes",
    "hold_at",
    "kill",
    "processes_of",
    "python_workers",
    "running",
    "started",
    "undisturbed_vectors",
    "wait_until",
]

Vectors = Mapping[str, np.ndarray]
"""Embeddings by the sha256 of their image's bytes."""

PICTURES = 12
TOLERANCE = 1e-4
# What a start may take on a machine that has other work.
TIMEOUT_S = 180.0
# Vectors do not depend on the shape of the batch beyond the tolerance; in bfloat16 they might.
SETTINGS = ["encoder.precision=float32"]

_UUID = r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"
_OWN_FILES = re.compile(
    rf"""stream\.yaml | spark\.log
    | table/ ( \.?part-\d{{5}}-{_UUID}[.\w-]*\.parquet(\.crc)?
        | _delta_log/ ( \.?\d{{20}}\.[.\w-]+ | \.?_last_checkpoint(\.crc)? )
        | _embedstream/topics\.json )
    | checkpoint/ ( \.?metadata(\.crc)?
        | (offsets|commits|sources/0)/ (\d+ | \.\d+\.crc)
        | _embedstream/(topics|swap)\.json )
    | (table/_delta_log|checkpoint(/\w+)*)/ \.+[\w.-]+\.{_UUID}\.tmp(\.crc)?""",
    re.VERBOSE,
)


@contextmanager
def running(
    config: Path, *arguments: str, environment: Mapping[str, str] | None = None
) -> Iterator[subprocess.Popen[str]]:
    """The `embedstream run` command as a user starts it, in a session and group of its own.

    Spark's scratch files lie in the configuration's folder: one that is killed leaves them.
    """
    command = [sys.executable, "-m", "embedstream", "run", str(config), *arguments]
    scratch = {"SPARK_LOCAL_DIRS": str(config.parent / "scratch")}
    with started(command, {**scratch, **(environment or {})}) as process:
        yield process


@contextmanager
def started(
    command: Sequence[str], environment: Mapping[str, str] | None = None
) -> Iterator[subprocess.Popen[str]]:
    """A command in a session and group of its own, which is killed on leaving if it still runs."""
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1", **(environment or {})},
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def processes_of(leader: subprocess.Popen[Any]) -> list[psutil.Process]:
    """It and all that it has started, for it was given a session of its own."""
    return [one for one in psutil.process_iter() if _in_session(one, leader.pid)]


def _in_session(process: psutil.Process, session: int) -> bool:
    try:
        return os.getsid(process.pid) == session and process.status() != psutil.STATUS_ZOMBIE
    except (ProcessLookupError, psutil.NoSuchProcess):
        return False


def python_workers() -> list[psutil.Process]:
    """Those of this process's session, which Spark's Python daemon has forked."""
    return [one for one in psutil.Process().children(recursive=True) if _is_worker(one)]


def _is_worker(process: psutil.Process) -> bool:
    try:
        parent = process.parent()
        return parent is not None and "embedstream.worker.daemon" in parent.cmdline()
    except psutil.NoSuchProcess:
        # It has ended since it was listed.
        return False


def kill(driver: subprocess.Popen[str]) -> None:
    """End Python and its JVM by `kill -9`; what they started ends by itself."""
    os.killpg(driver.pid, signal.SIGKILL)
    driver.wait(30)
    wait_until(lambda: not processes_of(driver), timeout_s=30)


def wait_until(
    condition: Callable[[], object],
    *,
    driver: subprocess.Popen[str] | None = None,
    timeout_s: float = TIMEOUT_S,
    poll_s: float = 0.05,
) -> None:
    """Wait for a condition; fails when it takes too long, or when the driver ends before."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it does not get on"
        if driver is not None and driver.poll() is not None and not condition():
            raise AssertionError(f"the driver has ended: {driver.communicate()[0]}")
        time.sleep(poll_s)


def hold_at(point: Callable[[], bool], driver: subprocess.Popen[str]) -> None:
    """Suspend the driver while a condition holds; resume it if it was suspended too late."""
    while True:
        wait_until(point, driver=driver, poll_s=0.001)
        os.killpg(driver.pid, signal.SIGSTOP)
        wait_until(lambda: stands(driver), poll_s=0.001)
        if point():
            return
        os.killpg(driver.pid, signal.SIGCONT)


def stands(driver: subprocess.Popen[str]) -> bool:
    return all(one.status() == psutil.STATUS_STOPPED for one in driver_processes(driver))


def driver_processes(driver: subprocess.Popen[str]) -> list[psutil.Process]:
    """Python and its JVM."""
    python = psutil.Process(driver.pid)
    return [python, *python.children()]


@dataclass(frozen=True)
class DrivenStream:
    """A stream in small micro-batches; its table, checkpoint and log lie beside its configuration.

    `spark` is the test's own session, which drains it undisturbed.
    """

    spark: SparkSession
    topic: Topic
    config: Path

    @property
    def settings(self) -> list[str]:
        """What each of its drivers sets."""
        return SETTINGS

    @staticmethod
    def of(spark: SparkSession, topic: Topic, folder: Path) -> DrivenStream:
        return DrivenStream(spark, topic, write_config(topic, folder))

    @property
    def folder(self) -> Path:
        return self.config.parent

    @property
    def table(self) -> Path:
        return self.folder / "table"

    def send(self, count: int) -> None:
        """More pictures, by turns."""
        contents = _pictures()
        sent = sum(self.topic.end_offsets().values())
        self.topic.send(
            image(str(number), contents[number % PICTURES]) for number in range(sent, sent + count)
        )

    def run(
        self,
        *settings: str,
        until: Until = "stopped",
        environment: Mapping[str, str] | None = None,
    ) -> AbstractContextManager[subprocess.Popen[str]]:
        """A driver for it; it is killed on leaving, if it still runs."""
        arguments = [f"--set={setting}" for setting in [*self.settings, *settings]]
        if until == "drained":
            arguments.append("--available-now")
        return running(self.config, *arguments, environment=environment)

    def last_batch(self, kind: Literal["offsets", "commits"]) -> int:
        """The last micro-batch that is planned, or done; -1 for none."""
        names = (path.name for path in (self.folder / "checkpoint" / kind).glob("[0-9]*"))
        return max(map(int, names), default=-1)

    def in_flight(self) -> bool:
        """Whether a micro-batch is planned that is not done."""
        return self.last_batch("offsets") > self.last_batch("commits")

    def hangs(self) -> bool:
        """Whether a micro-batch has been in flight for some seconds."""
        planned = self.folder / "checkpoint" / "offsets" / str(self.last_batch("offsets"))
        return self.in_flight() and time.time() - planned.stat().st_mtime > 5

    def wait_for_batches(self, count: int, driver: subprocess.Popen[str]) -> None:
        """Wait until so many more micro-batches are done."""
        last = self.last_batch("commits") + count
        wait_until(lambda: self.last_batch("commits") >= last, driver=driver)

    def rows(self) -> dict[Position, Row]:
        """What the table holds by now, nothing doubled."""
        made = (self.table / "_delta_log" / f"{0:020}.json").exists()
        return read_rows(self.table) if made else {}

    def undisturbed(self) -> StreamConfig:
        """The configuration with large micro-batches."""
        return load_config(self.config, [*self.settings, "kafka.max_offsets_per_trigger=2000"])

    def finish(self) -> None:
        """Do what is left, undisturbed."""
        start(self.spark, self.undisturbed())

    def check(self, vectors: Vectors | None = None) -> None:
        """The oracle: each message once, its vector as when undisturbed, and no file beside."""
        rows = check_outcomes(self.table, self.topic.positions())
        for row in rows.values():
            assert row["error"] is None, row
            if vectors is not None:
                expected = vectors[row["content_sha256"]]
                assert _distance(np.asarray(row["embedding"]), expected) < TOLERANCE
        check_files(self.folder)


def check_files(folder: Path) -> None:
    """Only what the stream, Spark and Delta keep there; Spark's scratch is left out."""
    files = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    names = [str(name) for name in files if name.parts[0] != "scratch"]
    assert [name for name in names if not _OWN_FILES.fullmatch(name)] == []


def undisturbed_vectors(spark: SparkSession, broker: Broker, folder: Path) -> Vectors:
    """The embedding of each picture, from a stream that nothing disturbs."""
    topic = Topic.create(broker.bootstrap_servers, partitions=2, prefix="undisturbed")
    stream = DrivenStream.of(spark, topic, folder)
    stream.send(PICTURES)
    stream.finish()
    rows = stream.rows().values()
    vectors = {row["content_sha256"]: np.asarray(row["embedding"]) for row in rows}
    assert len(vectors) == PICTURES
    assert all(_distance(*pair) > 10 * TOLERANCE for pair in combinations(vectors.values(), 2))
    return vectors


@cache
def _pictures() -> list[bytes]:
    """Real pictures, made tiny, and each another."""
    return list(islice(dict.fromkeys(map(shrink, real_pictures().values())), PICTURES))


def _distance(one: np.ndarray, other: np.ndarray) -> float:
    return float(1 - one @ other / (np.linalg.norm(one) * np.linalg.norm(other)))
