"""The driver ends, by signal or by `kill -9`, and the next start does what is left."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
import skimage.data
import yaml
from PIL import Image

from faults.oracle import check_outcomes, read_rows
from streams import Topic, image

pytestmark = [pytest.mark.kafka, pytest.mark.spark]

MESSAGES = 48


@pytest.fixture
def config(topic: Topic, tmp_path: Path) -> Path:
    """A stream in small micro-batches over a topic that is full."""
    data = io.BytesIO()
    picture = Image.open(Path(skimage.data.__file__).parent / "coffee.png")
    picture.resize((100, 100)).save(data, "JPEG")
    topic.send(image(str(index), data.getvalue()) for index in range(MESSAGES))
    path = tmp_path / "stream.yaml"
    path.write_text(
        yaml.safe_dump(
            {
                "kafka": {
                    "bootstrap_servers": topic.bootstrap_servers,
                    "subscribe": topic.name,
                    "max_offsets_per_trigger": 8,
                },
                "encoder": {"name": "efficientnet_lite0"},
                "table": {"path": str(tmp_path / "table")},
                "checkpoint": str(tmp_path / "checkpoint"),
                "trigger": {"interval_s": 0},
                "spark": {
                    "master": "local[2,4]",
                    "log_file": str(tmp_path / "spark.log"),
                    "options": {"spark.ui.enabled": "false"},
                },
            }
        )
    )
    return path


@contextmanager
def running(config: Path, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """The `embedstream run` command as a user starts it, in a process group of its own."""
    command = [sys.executable, "-m", "embedstream", "run", str(config), *arguments]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def wait_for_batches(config: Path, count: int) -> None:
    commits = config.parent / "checkpoint" / "commits"
    deadline = time.monotonic() + 180
    while len(list(commits.glob("[0-9]*"))) < count:
        assert time.monotonic() < deadline, "the stream does not get on"
        time.sleep(0.05)


def finish(config: Path) -> str:
    with running(config, "--available-now") as process:
        output, _ = process.communicate(timeout=240)
        assert process.returncode == 0, output
        return output


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_the_batch_finish_and_exits_0(
    config: Path, topic: Topic, number: signal.Signals
) -> None:
    with running(config) as process:
        wait_for_batches(config, 2)
        children = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(number)
        output, _ = process.communicate(timeout=120)

        assert process.returncode == 0, output
        assert "the micro-batch in flight is being finished" in output
        assert "Traceback" not in output
        _, alive = psutil.wait_procs(children, timeout=20)
        assert alive == []
    rows = read_rows(config.parent / "table")
    assert 0 < len(rows) < MESSAGES

    finish(config)

    check_outcomes(config.parent / "table", topic.positions())


def test_kill_9_of_the_driver_loses_and_doubles_nothing(config: Path, topic: Topic) -> None:
    for batches in (1, 3):
        with running(config) as process:
            wait_for_batches(config, batches)
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(30)
    assert len(read_rows(config.parent / "table")) < MESSAGES

    output = finish(config)

    assert "micro-batches done" in output
    rows = check_outcomes(config.parent / "table", topic.positions())
    assert all(row["error"] is None for row in rows.values())


def test_two_executors_load_the_model_once_each(config: Path, topic: Topic) -> None:
    with running(
        config, "--available-now", "--set", "spark.master=local-cluster[2,1,1024]"
    ) as process:
        output, _ = process.communicate(timeout=280)
    assert process.returncode == 0, output

    check_outcomes(config.parent / "table", topic.positions())
    assert "the model was loaded 2 times" in output
