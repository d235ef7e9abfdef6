"""`embedstream forget` as a user runs it: what it prints, and that it may be killed."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
from pyspark.sql import SparkSession

from drivers import kill, started
from embedstream.config.sections import TableConfig
from embedstream.table.delta import create_table
from oracle import all_rows
from small import write_config
from streams import Topic
from tombstones import append_outcomes, make_outcome

pytestmark = [pytest.mark.spark, pytest.mark.long]

ROWS = 2000
SECRET = "a-person-to-forget"


def command(name: str, config: Path, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "embedstream", name, str(config), *arguments]


def run(name: str, config: Path, *arguments: str) -> list[str]:
    """The lines that a command prints."""
    ended = subprocess.run(
        command(name, config, *arguments), capture_output=True, text=True, check=False, timeout=200
    )
    assert ended.returncode == 0, ended.stderr
    # Delta says on its own how many files a VACUUM has deleted.
    return [line for line in ended.stdout.splitlines() if not line.startswith("Deleted ")]


@pytest.fixture
def config(spark: SparkSession, tmp_path: Path) -> Path:
    """A stream's configuration, and its table, every second row of which is hidden."""
    path = str(tmp_path / "table")
    create_table(spark, TableConfig(path=path), model_ids=["one"])
    rows = [make_outcome(n, key=b"%d" % n, image_id=f"id-{n}", minutes=n) for n in range(ROWS)]
    rows[7]["image_id"] = SECRET
    append_outcomes(spark, rows, path)
    gone = [
        make_outcome(ROWS + n, "tombstone", key=b"%d" % n, minutes=ROWS) for n in range(0, ROWS, 2)
    ]
    append_outcomes(spark, gone, path)
    return write_config(Topic("images", "nowhere:1"), tmp_path)


def test_it_says_what_it_deletes_and_what_is_left(config: Path) -> None:
    asked = ["--id", SECRET, "--older-than", "2026-01-01T00:06"]
    run("index", config)
    tried = run("forget", config, *asked, "--dry-run")
    done = run("forget", config, *asked)
    again = run("forget", config, *asked, "--vacuum")
    vacuumed = run("forget", config, "--vacuum", "--retain-hours", "0")

    rows = (
        f"{ROWS // 2 + 4} rows ({ROWS // 2} hidden by tombstones, 1 of the ids, 3 older than asked)"
    )
    assert tried[0] == f"would delete {rows}"
    assert done[0] == f"deleted {rows}"
    assert again[0] == vacuumed[0] == "deleted 0 rows: nothing to forget"
    assert tried[1].startswith("files    none but those of the newest version, 2: ")
    assert "are not of the newest version, 5: " in done[1]
    # The table keeps its files for a week.
    assert again[1] == done[1].replace("version, 5", "version, 7")
    assert again[2].startswith("until    ")
    assert done[3] == "versions 0 to 4 can be read by time travel"
    assert vacuumed[1].startswith("files    none but those of the newest version, ")
    assert vacuumed[2] == "versions 0, 5 to 8 can be read by time travel"
    assert [line.split()[0] for line in vacuumed[3:]] == ["Kafka", "index", "log"]
    assert len(all_rows(config.parent / "table")) == ROWS - 4
    assert "/_embedstream/index has version 2 of the table" in vacuumed[4]
    run("index", config, "--rebuild")
    files = [one for one in (config.parent / "table").rglob("*") if one.is_file()]
    holding = {one.parent.name for one in files if SECRET.encode() in one.read_bytes()}
    assert holding <= {"_delta_log"}


@pytest.mark.timeout(900)
def test_it_may_be_killed_and_run_again(config: Path) -> None:
    chance = random.Random(0)
    arguments = ["--id", SECRET, "--vacuum", "--retain-hours", "0"]
    for _ in range(5):
        with started(command("forget", config, *arguments)) as process:
            time.sleep(chance.uniform(6, 25))
            if process.poll() is None:
                kill(process)

    ended = run("forget", config, *arguments)

    rows = all_rows(config.parent / "table")
    assert len(rows) == ROWS - 1
    assert {row["error"] is None for row in rows if row["offset"] < ROWS} == {True}
    assert ended[1].startswith("files    none but those of the newest version, ")
