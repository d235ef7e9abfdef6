"""`kill -9` in the middle of a swap: nothing is lost or doubled, and each row names its model."""

from __future__ import annotations

import json
import logging
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from pyspark.sql import SparkSession

import seeded_encoders
from drivers import DrivenStream, hold_at, kill, wait_until
from embedstream.config.load import load_config
from embedstream.search.queries import embed_queries
from embedstream.worker.model import prepare
from oracle import check_outcomes
from pictures import real_pictures
from small import shrink
from streams import Topic

pytestmark = [pytest.mark.kafka, pytest.mark.spark]

LOG = logging.getLogger(__name__)

AHEAD = 120
"""Messages in wait at each start: more than it does before it is killed."""

NAMES = ("first", "second")
ENVIRONMENT = {
    "PYTHONPATH": os.pathsep.join([seeded_encoders.FOLDER, os.environ.get("PYTHONPATH", "")])
}


@pytest.fixture
def stream(spark: SparkSession, topic: Topic, tmp_path: Path) -> DrivenStream:
    stream = DrivenStream.of(spark, topic, tmp_path)
    choose(stream, "first")
    return stream


def choose(stream: DrivenStream, name: str) -> None:
    """Write another encoder into the stream's file."""
    tree = yaml.safe_load(stream.config.read_text())
    tree["encoder"] = {"name": f"seeded_encoders:{name}", "weights": "own"}
    stream.config.write_text(yaml.safe_dump(tree))


def model_id(stream: DrivenStream) -> str:
    """The model that the file names now."""
    config = load_config(stream.config, ["encoder.precision=float32"])
    return prepare(config.encoder).card.model_id


@contextmanager
def swapping(stream: DrivenStream, name: str) -> Iterator[subprocess.Popen[str]]:
    """A driver that is asked for another encoder when it works."""
    with stream.run(environment=ENVIRONMENT) as driver:
        stream.wait_for_batches(1, driver)
        choose(stream, name)
        os.kill(driver.pid, signal.SIGHUP)
        yield driver


def record(stream: DrivenStream) -> Mapping[str, Any]:
    path = stream.folder / "checkpoint" / "_embedstream" / "swap.json"
    found: Mapping[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return found


def phase(stream: DrivenStream) -> str:
    return str(record(stream).get("phase", "none"))


def log(stream: DrivenStream) -> Iterator[dict[str, dict[str, Any]]]:
    for path in sorted((stream.table / "_delta_log").glob("[0-9]*.json")):
        yield from map(json.loads, path.read_text().splitlines())


def named_model(stream: DrivenStream) -> str:
    named = [one["metaData"]["configuration"] for one in log(stream) if "metaData" in one]
    return str(named[-1]["embedstream.model_id"])


def preparing(stream: DrivenStream) -> bool:
    return phase(stream) == "preparing"


def accepted(stream: DrivenStream) -> bool:
    """The switch is recorded, and the table still names the old model."""
    return phase(stream) == "accepted" and "first" in named_model(stream)


def named(stream: DrivenStream) -> bool:
    """The table names the new model, which has not planned a micro-batch."""
    return "second" in named_model(stream) and not stream.in_flight()


def planned(stream: DrivenStream) -> bool:
    """The new model's first micro-batch is in flight."""
    return "second" in named_model(stream) and stream.in_flight()


def written(stream: DrivenStream) -> bool:
    """The new model's first micro-batch is in the table, and Spark has not recorded it."""
    versions = [one["txn"]["version"] for one in log(stream) if "txn" in one]
    return "second" in named_model(stream) and max(versions) > stream.last_batch("commits")


@pytest.mark.parametrize(
    ("point", "restart"),
    [
        pytest.param(preparing, "first", marks=pytest.mark.long),
        pytest.param(accepted, "first", marks=pytest.mark.long),
        pytest.param(accepted, "second", marks=pytest.mark.long),
        pytest.param(named, "first", marks=pytest.mark.long),
        pytest.param(named, "second", marks=pytest.mark.long),
        pytest.param(planned, "first", marks=pytest.mark.long),
        pytest.param(planned, "second", marks=pytest.mark.long),
        pytest.param(written, "second", marks=pytest.mark.long),
    ],
)
def test_kill_9_in_a_swap_and_a_restart_with_either_configuration(
    stream: DrivenStream, point: Callable[[DrivenStream], bool], restart: str
) -> None:
    stream.send(AHEAD)
    with swapping(stream, "second") as driver:
        hold_at(lambda: point(stream), driver)
        kill(driver)
    assert point(stream)

    choose(stream, restart)
    drain(stream)

    # The restart has made the rest.
    counts = check(stream)
    assert counts[model_id(stream)] > 0
    if restart == "first":
        assert len(counts) == 1


def drain(stream: DrivenStream) -> None:
    """Do the rest, as a user does it: without a further option."""
    with stream.run(
        "kafka.max_offsets_per_trigger=2000", until="drained", environment=ENVIRONMENT
    ) as driver:
        output, _ = driver.communicate(timeout=240)
    assert driver.returncode == 0, output


def check(stream: DrivenStream) -> dict[str, int]:
    """Each message has one row, with the vector of the model that it names; count them by model."""
    rows = check_outcomes(stream.table, stream.topic.positions())
    contents = list(dict.fromkeys(map(shrink, real_pictures().values())))
    counts: dict[str, int] = {}
    for made_by in {row["model_id"] for row in rows.values()}:
        ours = [row for row in rows.values() if row["model_id"] == made_by]
        sent = contents[:12]
        expected = np.stack(embed_queries(sent, model_ids=[made_by])[1])
        for row in ours:
            assert row["error"] is None, row
            distances = np.abs(expected - np.asarray(row["embedding"])).max(axis=1)
            assert distances[int(row["image_id"]) % len(sent)] < 1e-4
        counts[made_by] = len(ours)
    return counts


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("kills", [20])
def test_kill_9_at_random_points_of_swaps(
    stream: DrivenStream, chance: random.Random, kills: int
) -> None:
    for number in range(kills):
        before = stream.rows().keys()
        stream.send(AHEAD - len(stream.topic.positions()) + len(before))
        present = chance.choice(startable(stream))
        choose(stream, present)
        other = NAMES[1 - NAMES.index(present)]
        with swapping(stream, other) as driver:
            if chance.random() < 0.5:
                until = chance.choice(["preparing", "accepted", "done"])
                wait_until(lambda until=until: phase(stream) == until, driver=driver, poll_s=0.005)  # type: ignore[misc]
            time.sleep(chance.uniform(0, 3))
            kill(driver)
        assert before <= stream.rows().keys()
        LOG.info("kill %d of a swap to %s: %s", number, other, phase(stream))

    choose(stream, chance.choice(startable(stream)))
    drain(stream)

    assert len(check(stream)) == 2


def startable(stream: DrivenStream) -> list[str]:
    """The encoders with which a start needs no consent."""
    if phase(stream) in ("accepted", "switched"):
        return [*NAMES]
    named = named_model(stream) if (stream.table / "_delta_log").exists() else "first"
    return [name for name in NAMES if name in named]
