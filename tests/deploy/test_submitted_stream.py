"""spark-submit runs deploy/main.py as the driver's pod does, and the pod's preStop ends it.

The command is the one that Spark's image runs in a driver's pod; only the master is another:
executors in processes of their own instead of pods.
"""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyspark
import pytest
import requests
from pyspark.sql import SparkSession

from drivers import DrivenStream, processes_of, started, wait_until
from embedstream.spark.jars import fetch_jars, find_jars_folder
from embedstream.spark.java import find_java
from manifests import KUBERNETES, ROOT, read_spark_conf
from streams import Topic

pytestmark = [pytest.mark.kafka, pytest.mark.spark, pytest.mark.long, pytest.mark.timeout(400)]

MESSAGES = 48
LOOPBACK = "127.0.0.1"
TOKEN = "t" * 32
# The machine of the tests is smaller, and has no object store.
SMALLER = {
    "spark.executor.instances": "1",
    "spark.executor.cores": "1",
    "spark.executor.memory": "1g",
    "spark.driver.memory": "1g",
}


@pytest.fixture
def stream(spark: SparkSession, topic: Topic, tmp_path: Path) -> DrivenStream:
    return DrivenStream.of(spark, topic, tmp_path)


@contextmanager
def submitted(
    stream: DrivenStream, *settings: str, port: int = 0
) -> Iterator[subprocess.Popen[str]]:
    home = Path(pyspark.__file__).parent
    jars = fetch_jars(["spark"], find_jars_folder())
    conf = {name: value for name, value in read_spark_conf().items() if ".kubernetes." not in name}
    conf |= {**SMALLER, "spark.jars": ",".join(map(str, jars))}
    del conf["spark.driver.port"], conf["spark.driver.blockManager.port"]
    del conf["spark.blockManager.port"]
    properties = stream.folder / "spark.properties"
    properties.write_text("".join(f"{name}={value}\n" for name, value in conf.items()))
    overrides = [
        f"kafka.bootstrap_servers={stream.topic.bootstrap_servers}",
        f"kafka.subscribe={stream.topic.name}",
        "kafka.max_offsets_per_trigger=8",
        "kafka.options.kafka.security.protocol=PLAINTEXT",
        f"table.path={stream.table}",
        f"checkpoint={stream.folder / 'checkpoint'}",
        f"monitor.listen={LOOPBACK}:{port}",
        "trigger.interval_s=0",
        *stream.settings,
        *settings,
    ]
    command = [
        str(home / "bin" / "spark-submit"),
        "--deploy-mode=client",
        f"--properties-file={properties}",
        "--master=local-cluster[1,1,1024]",
        "--class=org.apache.spark.deploy.PythonRunner",
        f"local://{ROOT / 'deploy' / 'main.py'}",
        "run",
        str(KUBERNETES / "base" / "stream.yaml"),
        *(f"--set={one}" for one in overrides),
    ]
    secrets = ("KAFKA_PASSWORD", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "MONITOR_TOKEN")
    environment = {
        **dict.fromkeys(secrets, TOKEN),
        "SPARK_HOME": str(home),
        "JAVA_HOME": str(find_java().resolve().parent.parent),
        "SPARK_LOCAL_DIRS": str(stream.folder / "scratch"),
        "PYSPARK_PYTHON": str(ROOT / ".venv" / "bin" / "python"),
    }
    with started(command, environment) as driver:
        yield driver


def find_free_port() -> int:
    with socket.socket() as server:
        server.bind((LOOPBACK, 0))
        port: int = server.getsockname()[1]
        return port


def fetch(port: int, path: str, *, token: str = "") -> int:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    return requests.get(f"http://{LOOPBACK}:{port}{path}", headers=headers, timeout=30).status_code


def test_pre_stop_lets_the_micro_batch_finish(stream: DrivenStream) -> None:
    stream.send(MESSAGES)
    port = find_free_port()
    with submitted(stream, port=port) as driver:
        stream.wait_for_batches(2, driver)
        # As the kubelet asks, and as Prometheus does.
        assert [fetch(port, path) for path in ("/livez", "/readyz", "/metrics")] == [200, 200, 401]
        assert fetch(port, "/metrics", token=TOKEN) == 200
        wait_until(stream.in_flight, driver=driver, poll_s=0.01)
        in_flight = stream.last_batch("offsets")

        subprocess.run([KUBERNETES / "image" / "stop-driver.sh"], check=True, timeout=120)

        output, _ = driver.communicate(timeout=60)
        assert driver.returncode == 0, output
        assert "the micro-batch in flight is being finished" in output
        wait_until(lambda: not processes_of(driver), timeout_s=20)
    assert stream.last_batch("commits") >= in_flight
    assert 0 < len(stream.rows()) < MESSAGES

    stream.finish()

    assert len(stream.rows()) == MESSAGES


def test_a_refused_start_is_exit_code_2(stream: DrivenStream) -> None:
    with submitted(stream, "kafka.subscribe=absent") as driver:
        output, _ = driver.communicate(timeout=200)

    assert driver.returncode == 2, output
    assert "the stream was not started: fix the failed checks above" in output
