"""A second driver on the same checkpoint or table is kept out; one that is gone is not."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pyspark.sql import SparkSession

from drivers import running
from embedstream.config.sections import StreamConfig
from embedstream.recovery import claim
from embedstream.recovery.claim import ClaimLost, check_unclaimed, claimed
from embedstream.stream.job import make_table
from embedstream_core.errors import SetupError
from oracle import check_outcomes
from small import send_pictures, write_config
from streams import Topic, drain, prepared, refusal

pytestmark = [pytest.mark.kafka, pytest.mark.spark]

Configure = Callable[..., StreamConfig]


def claims(config: StreamConfig) -> list[Path]:
    folders = [config.checkpoint, config.table.path]
    return [Path(folder, "_embedstream", "claim.json") for folder in folders]


def test_the_same_checkpoint_and_the_same_table_are_refused_also_after_vacuum(
    spark: SparkSession, topic: Topic, configure: Configure, tmp_path: Path
) -> None:
    config = configure()
    same_table = config.model_copy(update={"checkpoint": str(tmp_path / "other")})
    same_checkpoint = configure(table={"path": str(tmp_path / "elsewhere")})
    send_pictures(topic, 4)
    make_table(spark, config, prepared(config))

    with claimed(spark, config):
        message = refusal(spark, config, "driver")
        assert f"pid {os.getpid()}, since 20" in message
        assert f"checkpoint '{config.checkpoint}' on the table '{config.table.path}'" in message
        for second in (config, same_table, same_checkpoint):
            with pytest.raises(SetupError, match="another driver runs"), claimed(spark, second):
                pass
        # The first, which was refused the table, gave its checkpoint back.
        assert not list(tmp_path.glob("other/**/*.json"))
        drain(spark, config)
        spark.conf.set("spark.databricks.delta.retentionDurationCheck.enabled", "false")
        spark.sql(f"VACUUM delta.`{config.table.path}` RETAIN 0 HOURS")
        assert all(path.exists() for path in claims(config))

    assert not any(path.exists() for path in claims(config))
    check_outcomes(Path(config.table.path), topic.positions())


def test_a_killed_driver_is_followed_by_the_next(
    spark: SparkSession, topic: Topic, configure: Configure
) -> None:
    """The claim of a driver that `kill -9` ended, from the process that really wrote it."""
    config = configure()
    send_pictures(topic, 4)
    make_table(spark, config, prepared(config))
    ended = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    with claimed(spark, config):
        held = [json.loads(path.read_text()) for path in claims(config)]
    for path, fields in zip(claims(config), held, strict=True):
        path.write_text(json.dumps({**fields, "processes": {ended.pid: time.time()}}))
    with pytest.raises(SetupError, match="another driver runs"):
        check_unclaimed(spark, config)

    ended.send_signal(signal.SIGKILL)
    ended.wait()

    with claimed(spark, config):
        drain(spark, config)
    check_outcomes(Path(config.table.path), topic.positions())


def test_elsewhere_a_claim_ends_when_it_is_not_renewed(
    spark: SparkSession, configure: Configure
) -> None:
    config = configure()
    with claimed(spark, config):
        fields = json.loads(claims(config)[0].read_text())
    fields |= {"host": "far", "machine": "another"}

    claims(config)[0].write_text(json.dumps({**fields, "renewed": time.time() - 30}))
    with pytest.raises(SetupError, match=r"host far, .*its claim ends in (2\d|30) s"):
        check_unclaimed(spark, config)

    claims(config)[0].write_text(json.dumps({**fields, "renewed": time.time() - claim.LEASE_S}))
    with claimed(spark, config):
        pass


def test_a_driver_whose_claim_was_taken_over_stops(
    spark: SparkSession, configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claim, "RENEW_S", 0.05)
    config = configure()
    with claimed(spark, config) as held:
        renewed = _until_renewed(claims(config)[0])
        held.verify()
        other = json.dumps({**renewed, "id": "other", "host": "far"})
        claims(config)[0].write_text(other)
        with pytest.raises(ClaimLost, match="another driver has taken over: host far"):
            _verify_for(held, seconds=10)
    assert claims(config)[0].read_text() == other


@pytest.mark.long
def test_the_command_refuses_while_another_runs_and_follows_it_after_kill_9(
    topic: Topic, tmp_path: Path
) -> None:
    send_pictures(topic, 6)
    config = write_config(topic, tmp_path)
    with running(config) as first:
        _until_committed(tmp_path / "checkpoint")
        other = ["--available-now", "--set", f"checkpoint={tmp_path / 'other'}"]
        with running(config, *other) as second:
            output, _ = second.communicate(timeout=240)
        assert second.returncode == 2, output
        assert f"pid {first.pid}" in output
        assert not (tmp_path / "other").exists()
        os.killpg(first.pid, signal.SIGKILL)
        first.wait(30)
    send_pictures(topic, 6)

    with running(config, "--available-now") as third:
        output, _ = third.communicate(timeout=240)

    assert third.returncode == 0, output
    assert "one has ended: host" in output
    check_outcomes(tmp_path / "table", topic.positions())


def _until_renewed(path: Path) -> dict[str, Any]:
    first = json.loads(path.read_text())
    while True:
        fields: dict[str, Any] = json.loads(path.read_text())
        if fields["renewed"] > first["renewed"]:
            return fields
        time.sleep(0.02)


def _verify_for(held: claim.HeldClaim, *, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        held.verify()
        time.sleep(0.02)


def _until_committed(checkpoint: Path) -> None:
    deadline = time.monotonic() + 120
    while not (checkpoint / "commits" / "0").exists():
        assert time.monotonic() < deadline, "the stream does not get on"
        time.sleep(0.05)
