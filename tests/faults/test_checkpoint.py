"""A damaged or missing checkpoint or table log of a real stream, repaired as the doctor says.

Each kind of damage: tests/streaming/recovery/test_doctor.py, in memory.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml
from pyspark.sql import SparkSession

from embedstream.config.sections import StreamConfig
from embedstream.kafka.admin import create_topic
from embedstream.kafka.dev_broker import Broker
from embedstream.recovery.doctor import diagnose
from embedstream.stream.preflight import Finding, check_start
from oracle import check_outcomes
from small import send_pictures
from streams import Topic, image, refusal
from streams_by_start import start

pytestmark = [pytest.mark.kafka, pytest.mark.spark]

START_OVER = "move the checkpoint away and start with `embedstream run --adopt`"


@dataclass(frozen=True)
class Copy:
    """A copy of a stream that has done three micro-batches, for one test to damage."""

    spark: SparkSession
    config: StreamConfig
    topic: Topic

    @property
    def checkpoint(self) -> Path:
        return Path(self.config.checkpoint)

    @property
    def log(self) -> Path:
        return Path(self.config.table.path, "_delta_log")

    def problems(self) -> list[str]:
        """What the doctor says; it leaves every file as it is."""
        before = _contents(self.checkpoint.parent)
        self.forget()
        found = [one.detail for one in diagnose(self.spark, self.config) if not one.passed]
        assert _contents(self.checkpoint.parent) == before
        return found

    def start(self, *, adopt: bool = False) -> None:
        """Go on, and judge the table."""
        self.forget()
        start(self.spark, self.config, adopt=adopt)
        check_outcomes(Path(self.config.table.path), self.topic.positions())
        assert self.problems() == []

    def forget(self) -> None:
        """A driver that starts has seen nothing yet of the log."""
        jvm = self.spark.sparkContext._jvm
        assert jvm is not None
        jvm.org.apache.spark.sql.delta.DeltaLog.clearCache()


@pytest.fixture(scope="module")
def done(
    spark: SparkSession, broker: Broker, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Topic, Path]:
    topic = Topic.create(broker.bootstrap_servers, partitions=2, prefix="checkpoints")
    folder = tmp_path_factory.mktemp("done")
    send_pictures(topic, 12)
    start(spark, _config(topic, folder))
    return topic, folder


@pytest.fixture
def copy(spark: SparkSession, done: tuple[Topic, Path], tmp_path: Path) -> Copy:
    topic, folder = done
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    return Copy(spark, _config(topic, tmp_path), topic)


@pytest.mark.long
def test_a_broken_commit_is_deleted_as_the_doctor_says(copy: Copy) -> None:
    assert copy.problems() == []
    empty(copy.checkpoint / "commits/2")
    (problem,) = copy.problems()
    assert "commits/2 is empty" in problem
    assert "Spark repeats it and the table skips it" in problem
    assert "commits/2" in refusal(copy.spark, copy.config, "checkpoint")

    remove(copy.checkpoint / "commits/2")

    copy.start()


@pytest.mark.long
def test_a_broken_plan_of_a_micro_batch_that_is_not_done_is_deleted_as_the_doctor_says(
    copy: Copy,
) -> None:
    (copy.checkpoint / "offsets/3").write_text("v1\n{")
    (problem,) = copy.problems()
    assert "offsets/3 has 2 lines where Spark writes 3" in problem
    assert "Spark plans it again" in problem

    remove(copy.checkpoint / "offsets/3")

    copy.start()


@pytest.mark.long
def test_a_log_cut_off_at_its_end_is_repaired_as_the_doctor_says(copy: Copy) -> None:
    """The last entry holds a micro-batch that Spark has recorded as done."""
    last = max(copy.log.glob("*.json"))
    empty(last)
    (problem,) = copy.problems()
    assert f"{last.name} is empty" in problem
    assert "run `embedstream doctor` again" in problem
    findings: list[Finding] = []
    check_start(copy.spark, copy.config, findings.append)
    (refused,) = (one for one in findings if not one.passed)
    assert refused.subject == "table"
    assert last.name in refused.detail

    for path in (last, last.with_suffix(".crc"), last.with_name(f".{last.name}.crc")):
        path.unlink(missing_ok=True)
    (problem,) = copy.problems()
    assert "commits/2 says that micro-batch 2 is done, but the last one in the table" in problem
    assert START_OVER in problem

    shutil.rmtree(copy.checkpoint)
    copy.start(adopt=True)


@pytest.mark.long
def test_adopt_continues_a_table_without_its_checkpoint(
    spark: SparkSession, topic: Topic, tmp_path: Path
) -> None:
    """Messages without a value stand at the end of what was read, and before what comes."""
    stream = Copy(spark, _config(topic, tmp_path), topic)
    send_pictures(topic, 6)
    pictures = topic.positions()
    topic.send(image(str(index), None) for index in range(4))
    tombstones = topic.positions() - pictures
    start(spark, stream.config)
    shutil.rmtree(stream.checkpoint)
    assert "--adopt" in refusal(spark, stream.config, "checkpoint")
    send_pictures(topic, 6)

    start(spark, stream.config, adopt=True)

    check_outcomes(Path(stream.config.table.path), topic.positions() - tombstones)
    send_pictures(topic, 2)
    start(spark, stream.config, adopt=True)
    check_outcomes(Path(stream.config.table.path), topic.positions() - tombstones)
    assert stream.problems() == []


@pytest.mark.long
@pytest.mark.parametrize("kind", ["assign", "subscribe_pattern", "starting_timestamp"])
def test_adopt_continues_however_the_topics_are_chosen(
    spark: SparkSession, topic: Topic, tmp_path: Path, kind: str
) -> None:
    """A second topic, of which the table has no row, begins where the configuration says."""
    send_pictures(topic, 6)
    start(spark, _config(topic, tmp_path, subscribe=topic.name, max_offsets_per_trigger=100))
    shutil.rmtree(tmp_path / "checkpoint")
    send_pictures(topic, 6)
    other = Topic(f"{topic.name}-other", topic.bootstrap_servers)
    create_topic(topic.bootstrap_servers, other.name, partitions=2)
    send_pictures(other, 6)
    before, moment = other.positions(), datetime.now(UTC)
    send_pictures(other, 6)
    expected = topic.positions() | other.positions()
    match kind:
        case "assign":
            chosen: dict[str, Any] = {"assign": {topic.name: [0, 1], other.name: [1]}}
            expected = {one for one in expected if one.topic == topic.name or one.partition == 1}
        case "subscribe_pattern":
            chosen = {"subscribe_pattern": f"{topic.name}.*"}
        case _:
            chosen = {"subscribe": f"{topic.name},{other.name}", "starting_timestamp": moment}
            expected -= before
    config = _config(topic, tmp_path, max_offsets_per_trigger=100, **chosen)

    start(spark, config, adopt=True)
    check_outcomes(tmp_path / "table", expected)

    start(spark, config)
    check_outcomes(tmp_path / "table", expected)


@pytest.mark.long
def test_a_missing_query_id_is_written_as_the_doctor_says(copy: Copy) -> None:
    """The next start repeats a micro-batch, which the table must know by the query's id."""
    path = copy.checkpoint / "metadata"
    path.unlink()
    (problem,) = copy.problems()
    remedy = r"delete (\S+) and write into it the table's only writer: (\{.*\})$"
    found = re.search(remedy, problem)
    assert found is not None, problem

    (copy.checkpoint / found[1]).unlink()
    path.write_text(found[2])
    assert copy.problems() == []
    remove(copy.checkpoint / "commits/2")

    copy.start()


@pytest.mark.long
def test_the_command_exits_1_until_all_is_well(copy: Copy) -> None:
    path = copy.checkpoint.parent / "stream.yaml"
    path.write_text(yaml.safe_dump(copy.config.model_dump(mode="json", exclude_unset=True)))
    command = [sys.executable, "-m", "embedstream", "doctor", str(path)]
    empty(copy.checkpoint / "commits/2")

    damaged = subprocess.run(command, capture_output=True, text=True, check=False, timeout=200)
    remove(copy.checkpoint / "commits/2")
    whole = subprocess.run(command, capture_output=True, text=True, check=False, timeout=200)

    assert damaged.returncode == 1, damaged.stderr
    assert "FAIL checkpoint  commits/2 is empty: Spark cannot start" in damaged.stdout
    assert whole.returncode == 0, whole.stdout
    assert "ok   table" in whole.stdout


def empty(path: Path) -> None:
    path.write_bytes(b"")
    path.with_name(f".{path.name}.crc").unlink(missing_ok=True)


def remove(path: Path) -> None:
    path.unlink()
    path.with_name(f".{path.name}.crc").unlink(missing_ok=True)


def _config(topic: Topic, folder: Path, **chosen: Any) -> StreamConfig:
    return StreamConfig.model_validate(
        {
            "kafka": {
                "bootstrap_servers": topic.bootstrap_servers,
                "max_offsets_per_trigger": 4,
                **(chosen or {"subscribe": topic.name}),
            },
            "encoder": {"name": "efficientnet_lite0"},
            "table": {"path": str(folder / "table")},
            "checkpoint": str(folder / "checkpoint"),
        }
    )


def _contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
