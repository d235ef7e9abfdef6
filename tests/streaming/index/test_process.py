"""The index as a stream's child process: it is started again, and ends with its driver."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from drivers import started, wait_until
from embedstream.config.sections import IndexConfig
from embedstream.follow.process import FollowerProcess
from embedstream.index.reports import INDEX
from index_oracle import check_index, find_state
from logged import collect_events
from tables_in_motion import MovingTable

DRIVER = """
import json, sys, time
from embedstream.follow.process import FollowerProcess
from embedstream.index.reports import INDEX
command, table = json.loads(sys.argv[1])
with FollowerProcess(INDEX, command, table=table, stop_s=20):
    time.sleep(600)
"""


@pytest.fixture
def table(tmp_path: Path) -> MovingTable:
    return MovingTable.create(tmp_path / "table", rows=4)


@pytest.fixture
def config(tmp_path: Path) -> IndexConfig:
    return IndexConfig(path=str(tmp_path / "index"))


def command(table: MovingTable, config: IndexConfig) -> list[str]:
    path = f"--set=index.path={config.path}"
    return [
        sys.executable,
        "-m",
        "embedstream",
        "index",
        f"--table={table.path}",
        path,
        "--of-stream",
    ]


def is_current(table: MovingTable, config: IndexConfig) -> Callable[[], bool]:
    def look() -> bool:
        state = find_state(config, table.path)
        return state is not None and state.version == table.version()

    return look


def child_of(pid: int) -> psutil.Process:
    """Return the index process; Spark's JVM and PostgreSQL may be children of `pid` too."""
    [child] = [one for one in psutil.Process(pid).children() if "--of-stream" in read_command(one)]
    return child


def read_command(process: psutil.Process) -> list[str]:
    """Return the command line of `process`; a child that ended and was not waited for has none."""
    try:
        return process.cmdline()
    except (psutil.ZombieProcess, psutil.NoSuchProcess):
        return []


def test_it_is_started_again_and_brought_to_the_end(
    table: MovingTable, config: IndexConfig
) -> None:
    with (
        collect_events("index") as lines,
        FollowerProcess(INDEX, command(table, config), table=table.path, stop_s=60) as one,
    ):
        wait_until(is_current(table, config))
        child = child_of(os.getpid())
        assert child.nice() == min(19, psutil.Process().nice() + 10)
        child.kill()
        table.append(3)
        wait_until(is_current(table, config))
        table.append(2)
        one.finish()
        check_index(table.path, config)
        assert (one.version, one.trouble) == (table.version(), "")
        assert one.address == config.path

    assert lines[-1] == f"index: it holds version {table.version()}, the table's last"
    ends = [line for line in lines if "SIGKILL" in line]
    assert ends == [
        "index: its process ended by SIGKILL; it is tried again, and the stream goes on"
    ]
    assert "index: it follows the table again" in lines


def test_a_broken_index_is_reported_once_and_tried_again(
    table: MovingTable, config: IndexConfig
) -> None:
    place = Path(str(config.path))
    place.write_text("not a folder")
    with (
        collect_events("index") as lines,
        FollowerProcess(INDEX, command(table, config), table=table.path, stop_s=60),
    ):
        wait_until(lambda: lines)
        # The first retry comes after a second.
        time.sleep(1.5)
        assert len(lines) == 1, lines
        assert lines[0].endswith("; it is tried again, and the stream goes on")
        place.unlink()
        wait_until(is_current(table, config))
        wait_until(lambda: "index: it follows the table again" in lines)
    check_index(table.path, config)


def test_it_ends_with_a_driver_that_is_killed(table: MovingTable, config: IndexConfig) -> None:
    given = json.dumps([command(table, config), table.path])
    with started([sys.executable, "-c", DRIVER, given]) as driver:
        wait_until(is_current(table, config), driver=driver)
        child = child_of(driver.pid)
        driver.kill()
        driver.wait()
        wait_until(lambda: not child.is_running(), timeout_s=10)
