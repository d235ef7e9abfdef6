"""The commands on a table that a Hive metastore names and places, as a user runs them."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import skimage.data

from oracle import check_outcomes
from small import send_pictures, write_config
from streams import Topic

pytestmark = [pytest.mark.kafka, pytest.mark.long, pytest.mark.timeout(1800)]

NAME = "spark_catalog.default.images"


def run(name: str, *arguments: str | Path, folder: Path) -> str:
    """What a command prints; Derby, which one process at a time opens, keeps its log here."""
    command = [sys.executable, "-m", "embedstream", name, *map(str, arguments)]
    ended = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, check=False, timeout=600
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


def test_every_command_takes_a_table_of_a_hive_metastore(topic: Topic, tmp_path: Path) -> None:
    hive = {
        "spark.sql.catalogImplementation": "hive",
        "spark.sql.warehouse.dir": str(tmp_path / "warehouse"),
        "spark.hadoop.javax.jdo.option.ConnectionURL": (
            f"jdbc:derby:;databaseName={tmp_path}/metastore;create=true"
        ),
        "spark.ui.enabled": "false",
    }
    spark = {"master": "local[2,4]", "log_file": str(tmp_path / "spark.log"), "options": hive}
    config = write_config(
        topic, tmp_path, table={"name": NAME}, index={"follow": True}, spark=spark
    )
    folder = tmp_path / "warehouse/images"
    options = [f"--set=spark.options.{key}={value}" for key, value in hive.items()]

    def command(name: str, *arguments: str | Path) -> str:
        return run(name, *arguments, folder=tmp_path)

    send_pictures(topic, 3)
    assert f"{NAME} in file://{folder}: will be created" in command("check", config)
    command("run", config, "--available-now")
    send_pictures(topic, 3)
    # The monitor opens once the catalog has been asked.
    assert "monitor: http" in command("run", config, "--available-now", "--listen", "127.0.0.1:0")
    check_outcomes(folder, topic.positions())
    # The index was written by the stream's child process, which could not have opened Derby.
    assert (folder / "_embedstream/index").is_dir()
    assert "nothing lost" in command("doctor", config)
    position = min(topic.positions())
    like = f"{topic.name}-{position.partition}-{position.offset}"
    assert command("search", "--config", config, "--like", like).count("1.0000") == 6
    assert "6 messages embedded" in command("replay", config)
    assert "deleted 2 rows (2 of the ids)" in command("forget", config, "--id", "0")
    assert "2 deleted" in command("index", "--table-name", NAME, *options)
    assert f"the table '{NAME}' has the current columns" in command(
        "upgrade", "--table-name", NAME, *options
    )

    files = tmp_path / "files"
    files.mkdir()
    shutil.copy(Path(skimage.data.__file__).parent / "coffee.png", files)
    batch = ["--from", files, "--encoder", "efficientnet_lite0", *options]
    batch = ["batch", *batch, "--table-name", "default.files", "--table", tmp_path / "external"]
    assert "1 file embedded" in command(*map(str, batch))
    assert "0 files to embed" in command(*map(str, batch))
    assert (tmp_path / "external/_delta_log").is_dir()
