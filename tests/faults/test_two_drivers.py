"""A second driver on the same checkpoint or table is kept out; one whose first is gone is not.

The details: tests/streaming/recovery/test_claim.py, in memory.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from pyspark.sql import SparkSession

from drivers import running
from embedstream.config.sections import StreamConfig
from embedstream.recovery.claim import claim_stream
from embedstream.stream.job import list_ids
from embedstream.table.delta import create_table
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
    create_table(spark, config.table, model_ids=list_ids(prepared(config)))

    with claim_stream(spark, config):
        message = refusal(spark, config, "driver")
        assert f"pid {os.getpid()}, since 20" in message
        assert f"checkpoint '{config.checkpoint}' on the table '{config.table.path}'" in message
        for second in (config, same_table, same_checkpoint):
            with (
                pytest.raises(SetupError, match="another driver runs"),
                claim_stream(spark, second),
            ):
                pass
        # The first, which was refused the table, gave its checkpoint back.
        assert not list(tmp_path.glob("other/**/*.json"))
        drain(spark, config)
        spark.conf.set("spark.databricks.delta.retentionDurationCheck.enabled", "false")
        spark.sql(f"VACUUM delta.`{config.table.path}` RETAIN 0 HOURS")
        assert all(path.exists() for path in claims(config))

    assert not any(path.exists() for path in claims(config))
    check_outcomes(Path(config.table.path), topic.positions())


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


def _until_committed(checkpoint: Path) -> None:
    deadline = time.monotonic() + 120
    while not (checkpoint / "commits" / "0").exists():
        assert time.monotonic() < deadline, "the stream does not get on"
        time.sleep(0.05)
