"""Processes of a standalone cluster are killed during a stream, and the stream continues."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psutil
import pyspark
import pytest
from pyspark.sql import SparkSession

from drivers import DrivenStream, Vectors, processes_of, wait_until
from embedstream.spark.java import find_java
from streams import Topic

pytestmark = [pytest.mark.kafka, pytest.mark.spark, pytest.mark.long, pytest.mark.timeout(600)]

HOST = "127.0.0.1"
WORKERS = 2
MESSAGES = 400


class Cluster:
    """A master that keeps its state in a folder, and two workers, each for one executor."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = _free_port()
        self.url = f"spark://{HOST}:{self.port}"
        self.master = self._start_master()
        self.workers = [self._start_worker(number) for number in range(WORKERS)]

    def executors(self) -> set[psutil.Process]:
        """Those that run now."""
        children = [one for each in self.workers for one in psutil.Process(each.pid).children()]
        return {one for one in children if runs(one)}

    def kill_an_executor(self) -> None:
        """Wait until there are all, `kill -9` one, and wait until it has been replaced."""
        wait_until(lambda: len(self.executors()) == WORKERS)
        victim, other = self.executors()
        victim.kill()
        wait_until(lambda: len(self.executors() - {victim}) == WORKERS)
        assert other in self.executors()

    def kill_master(self) -> None:
        self.master.kill()
        self.master.wait(30)

    def start_master_again(self) -> None:
        """And wait until it knows again what runs."""
        self.master = self._start_master()
        wait_until(lambda: "Recovery complete" in self._log("master.Master").read_text())

    def idle(self) -> bool:
        """Whether nothing is left of a stream: neither executors nor Python workers."""
        return all(len(processes_of(worker)) == 1 for worker in self.workers)

    def stop(self) -> None:
        for process in [*self.workers, self.master]:
            process.terminate()
            process.wait(30)

    def _start_master(self) -> subprocess.Popen[bytes]:
        address = ["--host", HOST, "--port", str(self.port), "--webui-port", "0"]
        master = self._start("master.Master", *address)
        wait_until(self._answers)
        return master

    def _start_worker(self, number: int) -> subprocess.Popen[bytes]:
        place = ["--host", HOST, "--webui-port", "0", "--work-dir", str(self.folder / str(number))]
        return self._start("worker.Worker", *place, "--cores", "1", "--memory", "2g", self.url)

    def _start(self, role: str, *arguments: str) -> subprocess.Popen[bytes]:
        home = Path(pyspark.__file__).parent
        state = "-Dspark.deploy.recoveryMode=FILESYSTEM -Dspark.deploy.recoveryDirectory="
        with self._log(role).open("ab") as log:
            return subprocess.Popen(
                [home / "bin" / "spark-class", f"org.apache.spark.deploy.{role}", *arguments],
                stdout=log,
                stderr=log,
                start_new_session=True,
                env={
                    **os.environ,
                    "SPARK_HOME": str(home),
                    "JAVA_HOME": str(find_java().resolve().parent.parent),
                    "SPARK_DAEMON_MEMORY": "256m",
                    "SPARK_LOCAL_DIRS": str(self.folder / "scratch"),
                    "SPARK_MASTER_OPTS": f"{state}{self.folder / 'state'}",
                },
            )

    def _log(self, role: str) -> Path:
        return self.folder / f"{role}.log"

    def _answers(self) -> bool:
        with socket.socket() as client:
            return client.connect_ex((HOST, self.port)) == 0


def _free_port() -> int:
    with socket.socket() as server:
        server.bind((HOST, 0))
        port: int = server.getsockname()[1]
        return port


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    cluster = Cluster(tmp_path_factory.mktemp("cluster"))
    yield cluster
    cluster.stop()


@pytest.fixture
def stream(spark: SparkSession, topic: Topic, tmp_path: Path) -> DrivenStream:
    stream = DrivenStream.of(spark, topic, tmp_path)
    stream.send(MESSAGES)
    return stream


def settings(cluster: Cluster) -> list[str]:
    options = {"driver.host": HOST, "executor.memory": "768m"}
    return [
        f"spark.master={cluster.url}",
        *(f"spark.options.spark.{name}={value}" for name, value in options.items()),
    ]


def end(driver: subprocess.Popen[str], cluster: Cluster) -> None:
    """As a user does; nothing of the stream is left, here or on the workers."""
    driver.send_signal(signal.SIGTERM)
    output, _ = driver.communicate(timeout=120)
    assert driver.returncode == 0, output
    wait_until(lambda: cluster.idle() and not processes_of(driver), timeout_s=60)


def test_a_stream_survives_the_loss_of_an_executor(
    cluster: Cluster, stream: DrivenStream, vectors: Vectors
) -> None:
    with stream.run(*settings(cluster)) as driver:
        stream.wait_for_batches(2, driver)
        wait_until(stream.in_flight, driver=driver, poll_s=0.01)
        cluster.kill_an_executor()
        stream.send(80)
        stream.wait_for_batches(4, driver)
        end(driver, cluster)

    stream.finish()

    stream.check(vectors)


def test_a_stream_survives_a_restart_of_the_master(
    cluster: Cluster, stream: DrivenStream, vectors: Vectors
) -> None:
    with stream.run(*settings(cluster)) as driver:
        stream.wait_for_batches(2, driver)
        cluster.kill_master()
        stream.wait_for_batches(4, driver)
        cluster.start_master_again()
        # Only a master replaces it.
        cluster.kill_an_executor()
        stream.send(80)
        stream.wait_for_batches(4, driver)
        end(driver, cluster)

    stream.finish()

    stream.check(vectors)


def runs(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
