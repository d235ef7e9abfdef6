"""`kill -9` of the process that publishes, and a broker that is away: no outcome is missing."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

import pytest
import yaml

from broker_faults import broker as own_broker
from broker_faults import come_back
from broker_faults import kill as kill_broker
from drivers import kill, running, started, wait_until
from embedstream.config.load import load_config
from embedstream.kafka.dev_broker import Broker
from killed_publisher import POINTS
from oracle import check_outcomes
from published import KafkaTarget, check_published
from small import send_pictures, write_config
from streams import Topic
from tables_in_motion import CHANGES, MovingTable

__all__ = ["own_broker"]

pytestmark = [pytest.mark.kafka, pytest.mark.long]

LAUNCHER = Path(__file__).parents[1] / "support" / "killed_publisher.py"
TIMEOUT_S = 60.0


@pytest.fixture
def table(tmp_path: Path) -> MovingTable:
    return MovingTable.create(tmp_path / "table", rows=50, feed=True)


@pytest.fixture
def target(broker: Broker) -> KafkaTarget:
    return KafkaTarget.create(broker.bootstrap_servers, f"outcomes-{uuid4().hex[:8]}")


def write_publish_config(table: MovingTable, target: KafkaTarget, folder: Path) -> Path:
    tree = {
        "kafka": {"bootstrap_servers": target.bootstrap_servers, "subscribe": "images"},
        "table": {"path": table.path},
        "checkpoint": str(folder / "checkpoint"),
        "publish": {"topic": target.name, "poll_s": 0.05},
    }
    path = folder / "publish.yaml"
    path.write_text(yaml.safe_dump(tree), encoding="utf-8")
    return path


@pytest.fixture
def config(table: MovingTable, target: KafkaTarget, tmp_path: Path) -> Path:
    return write_publish_config(table, target, tmp_path)


@contextmanager
def publishing(
    config: Path, *arguments: str, program: tuple[str, ...]
) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, *program, "publish", str(config), "--continuous", *arguments]
    with started(command) as process:
        yield process


def change(table: MovingTable, chance: random.Random) -> None:
    """Something happens; it grows again after an overwrite."""
    if chance.random() < 0.5:
        table.append(chance.randrange(1, 80))
    CHANGES[chance.choice(sorted(CHANGES))](table, chance.randrange(100))


def await_line(process: subprocess.Popen[str], text: str = "") -> None:
    """Wait until it has printed a line with this text."""
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line)
        if text in line:
            return
    raise AssertionError(f"it has ended: {lines}")


def test_kill_9_at_a_named_point(table: MovingTable, target: KafkaTarget, config: Path) -> None:
    target.publish(table.path)
    for point in POINTS:
        again = ["--again"] if point == "full pass" else []
        with publishing(config, *again, program=(str(LAUNCHER), point)) as process:
            await_line(process)
            table.append(45)
            deadline = time.monotonic() + TIMEOUT_S
            while process.poll() is None:
                assert time.monotonic() < deadline, f"it passes no point '{point}'"
                time.sleep(0.1)
            assert process.returncode == -signal.SIGKILL, process.communicate()[0]
        table.replace([1, 6, 13])
        target.publish(table.path)
        check_published(target, table.path)
    headers = Counter(
        (one.key, dict(one.headers)["embedstream-table-version"]) for one in target.read()
    )
    assert max(headers.values()) > 1, "no kill has repeated a message"


@pytest.mark.timeout(900)
def test_kill_9_at_random_points(
    table: MovingTable, target: KafkaTarget, config: Path, chance: random.Random
) -> None:
    for number in range(12):
        with publishing(config, program=("-m", "embedstream")) as process:
            if chance.random() < 0.75:
                await_line(process)
            deadline = time.monotonic() + chance.uniform(0, 2)
            while time.monotonic() < deadline:
                change(table, chance)
                time.sleep(chance.uniform(0, 0.1))
            assert process.poll() is None, process.communicate()[0]
            process.kill()
            process.wait()
        if number % 4 == 3:
            target.publish(table.path)
            # A file that VACUUM took before it was published leads to a full pass.
            check_published(target, table.path, tombstones="some")


def test_a_broker_that_is_away_holds_nothing_up(own_broker: Broker, tmp_path: Path) -> None:
    table = MovingTable.create(tmp_path / "table", rows=5)
    target = KafkaTarget.create(own_broker.bootstrap_servers, "outcomes")
    config = write_publish_config(table, target, tmp_path)
    with publishing(config, program=("-m", "embedstream")) as process:
        await_line(process, "the full pass over version 1 has ended: 5 messages")
        kill_broker(own_broker)
        table.append(3)
        await_line(process, "next attempt in")
        table.append(3)
        come_back(own_broker)
        await_line(process, "version 3 ")
    check_published(target, table.path)


def test_a_streams_outcomes_are_published_and_outlive_a_kill_of_the_driver(
    topic: Topic, target: KafkaTarget, tmp_path: Path
) -> None:
    send_pictures(topic, 24)
    path = write_config(topic, tmp_path, publish={"topic": target.name})
    table = load_config(path).table.path
    with running(path) as driver:
        wait_until(target.read, driver=driver)
        kill(driver)
    send_pictures(topic, 24)
    with running(path, "--available-now") as driver:
        output, _ = driver.communicate(timeout=200)

    assert driver.returncode == 0, output
    assert "publish: it has published version" in output
    rows = check_outcomes(Path(table), topic.positions())
    assert len(rows) == 48
    check_published(target, table)
