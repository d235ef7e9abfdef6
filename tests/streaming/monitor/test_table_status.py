"""What is known of a table without its stream: on real Delta tables, without a JVM."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import requests
import yaml
from deltalake import DeltaTable, write_deltalake

from embedstream.config.load import load_files_config
from embedstream.config.sections import BulkFilesConfig
from embedstream.index.indexer import update_index
from embedstream.monitor.table_status import ObservedTable
from outcome_tables import MODEL, row, write_table

NOW = datetime(2026, 11, 26, 12, tzinfo=UTC)


def made(number: int, *, age_s: float = 10, **fields: Any) -> dict[str, Any]:
    """A row that was made so many seconds ago; without a vector, a failure."""
    vector = fields.pop("vector", [1.0, float(number)])
    processed_at = NOW - timedelta(seconds=age_s)
    return {**row(f"i{number}", vector, offset=number), "processed_at": processed_at, **fields}


def deletion(number: int) -> dict[str, Any]:
    error = {"code": "deleted", "stage": "message", "message": "its key is deleted"}
    return made(number, vector=None, error=error, model_id=None)


def configure(table: str) -> BulkFilesConfig:
    return load_files_config({"table": {"path": table}})


def observe(table: str) -> ObservedTable:
    observed = ObservedTable(configure(table), clock=NOW.timestamp)
    observed.look()
    return observed


def test_counts_are_of_the_whole_table(tmp_path: Path) -> None:
    rows = [*map(made, range(5)), made(5, vector=None), deletion(6)]
    table = write_table(tmp_path, rows, [made(9, partition=1)])
    observed = observe(table)
    status = observed.read_status()
    assert observed.is_ready
    assert (status.state, status.reason) == ("unwatched", "")
    assert (status.embeddings, status.failures, status.deleted) == (6, {"image_corrupt": 1}, 1)
    assert status.table.version == DeltaTable(table).version()
    assert status.table.last_commit is not None
    (model,) = status.models
    assert (model.model_id, model.name, model.precision) == (MODEL, "resnet50", "float32")
    assert [(one.partition, one.read) for one in status.partitions] == [(0, 7), (1, 10)]


def test_history_is_of_the_last_hour(tmp_path: Path) -> None:
    rows = [
        *(made(number, age_s=95) for number in range(4)),
        made(4, age_s=95, vector=None),
        made(5, age_s=3560),
        made(6, age_s=7000),
    ]
    status = observe(write_table(tmp_path, rows)).read_status()
    at = {one.at: (one.embeddings, one.failures) for one in status.history}
    assert at[NOW - timedelta(seconds=120)] == (4, 1)
    assert sum(one.embeddings for one in status.history) == 5
    assert len(status.history) <= 120
    assert status.rows_per_s == 0


def test_new_rows_are_counted_when_the_version_has_changed(tmp_path: Path) -> None:
    clock = [NOW.timestamp()]
    table = write_table(tmp_path, [made(0)])
    observed = ObservedTable(configure(table), clock=lambda: clock[0])
    observed.look()
    write_table(tmp_path, [made(1), made(2)], model_id=None)
    # A count that took long is not repeated at once.
    observed.look()
    first = observed.read_status()
    clock[0] += 600
    observed.look()
    status = observed.read_status()
    assert (first.embeddings, status.embeddings) == (1, 3)
    assert status.table.version == DeltaTable(table).version()


def test_the_index_of_another_process_is_shown(tmp_path: Path) -> None:
    table = write_table(tmp_path, [made(0)])
    observed = observe(table)
    assert observed.read_status().index is None
    update_index(table, configure(table).index, report=lambda report: None, stop=threading.Event())
    observed.look()
    index = observed.read_status().index
    assert index is not None
    assert (index.version, index.trouble) == (DeltaTable(table).version(), "")


def test_a_table_that_is_not_there_yet_is_said_and_found_later(tmp_path: Path) -> None:
    observed = observe(str(tmp_path / "table"))
    assert not observed.is_ready
    assert "there is no Delta table" in observed.read_status().reason
    write_table(tmp_path, [made(0)])
    observed.look()
    assert observed.is_ready
    assert (observed.read_status().reason, observed.read_status().embeddings) == ("", 1)


def test_a_table_of_something_else_is_said(tmp_path: Path) -> None:
    write_deltalake(str(tmp_path), pa.table({"name": ["a"]}))
    observed = observe(str(tmp_path))
    assert not observed.is_ready
    assert observed.read_status().reason


@pytest.fixture
def page(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The command over a table of three rows, and the address that it prints."""
    table = write_table(tmp_path, [made(0), made(1), made(2, vector=None)])
    config = tmp_path / "stream.yaml"
    tree = {
        "kafka": {"bootstrap_servers": "localhost:1", "subscribe": "images"},
        "table": {"path": table},
        "checkpoint": str(tmp_path / "checkpoint"),
    }
    config.write_text(yaml.safe_dump(tree))
    command = [sys.executable, "-m", "embedstream", "page", str(config), "--listen", "127.0.0.1:0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        yield process, next(word for word in line.split() if word.startswith("http://"))
        process.kill()


def test_the_command_shows_a_table_and_ends_at_ctrl_c(
    page: tuple[subprocess.Popen[str], str],
) -> None:
    process, url = page
    deadline = time.monotonic() + 60
    while requests.get(f"{url}/readyz", timeout=10).status_code != 200:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    status = requests.get(f"{url}/api/status", timeout=10).json()
    assert (status["embeddings"], status["failures"]) == (2, {"image_corrupt": 1})
    metrics = requests.get(f"{url}/metrics", timeout=10).text
    assert 'embedstream_state{state="unwatched"} 1.0' in metrics
    # What only a stream knows is absent.
    assert "embedstream_rows_total" not in metrics
    process.send_signal(signal.SIGINT)
    assert process.wait(10) == 0
