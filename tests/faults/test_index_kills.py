"""`kill -9` of the process that follows a table, anywhere: the index still becomes the table."""

from __future__ import annotations

import logging
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from drivers import started
from embedstream.config.sections import IndexConfig
from index_oracle import check_index, find_state, update
from index_stores import configure_index
from killed_indexer import FULL_PASS_POINTS, POINTS
from postgres import postgres
from tables_in_motion import CHANGES, MovingTable

__all__ = ["postgres"]

LOG = logging.getLogger(__name__)

LAUNCHER = Path(__file__).parents[1] / "support" / "killed_indexer.py"
ROWS = 400
TIMEOUT_S = 60.0

KINDS = ["lancedb", pytest.param("pgvector", marks=pytest.mark.long)]


@pytest.fixture
def table(tmp_path: Path) -> MovingTable:
    """A table of several files, with enough rows for an approximate index."""
    table = MovingTable.create(tmp_path / "table", rows=ROWS // 4, feed=True)
    for _ in range(3):
        table.append(ROWS // 4)
    return table


@pytest.fixture
def config(request: pytest.FixtureRequest, kind: str, tmp_path: Path) -> IndexConfig:
    return configure_index(kind, request, tmp_path, ann_rows=300, poll_s=0.05)


@contextmanager
def following(
    table: MovingTable, config: IndexConfig, *arguments: str, program: tuple[str, ...]
) -> Iterator[subprocess.Popen[str]]:
    given = config.model_dump(exclude_defaults=True, exclude={"url", "attributes"})
    if config.url is not None:
        given["url"] = config.url.get_secret_value()
    settings = [f"--set=index.{name}={value}" for name, value in given.items()]
    command = [sys.executable, *program, "index", f"--table={table.path}", "--continuous"]
    with started([*command, *settings, *arguments]) as process:
        yield process


def change(table: MovingTable, chance: random.Random) -> None:
    """Something happens; it grows again after an overwrite."""
    if chance.random() < 0.4:
        table.append(chance.randrange(1, 80))
    CHANGES[chance.choice(sorted(CHANGES))](table, chance.randrange(100))


@pytest.mark.long
@pytest.mark.parametrize("kind", KINDS)
def test_kill_9_at_a_named_point(
    table: MovingTable, config: IndexConfig, chance: random.Random
) -> None:
    update(table.path, config)
    for point in (*POINTS, *FULL_PASS_POINTS):
        rebuild = ["--rebuild"] if point in FULL_PASS_POINTS else []
        with following(table, config, *rebuild, program=(str(LAUNCHER), point)) as process:
            deadline = time.monotonic() + TIMEOUT_S
            await_line(process)
            while process.poll() is None:
                assert time.monotonic() < deadline, f"it passes no point '{point}'"
                if point in POINTS:
                    # Some hundred new rows need maintenance.
                    table.append(80 if point == "maintenance" else 3)
                time.sleep(0.1)
            assert process.returncode == -signal.SIGKILL, process.communicate()[0]
        change(table, chance)
        update(table.path, config)
        check_index(table.path, config)


def await_line(process: subprocess.Popen[str]) -> None:
    assert process.stdout is not None
    assert process.stdout.readline()


def await_start(process: subprocess.Popen[str], chance: random.Random) -> None:
    """Three times of four until its first line, which says that it has opened the index."""
    if chance.random() < 0.25:
        time.sleep(chance.uniform(0.2, 2))
    else:
        await_line(process)


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.long
@pytest.mark.parametrize("kills", [30])
def test_kill_9_at_random_points(
    table: MovingTable, config: IndexConfig, chance: random.Random, kills: int
) -> None:
    for number in range(kills):
        rebuild = ["--rebuild"] if number % 5 == 2 else []
        begun = time.monotonic()
        with following(table, config, *rebuild, program=("-m", "embedstream")) as process:
            await_start(process, chance)
            deadline = time.monotonic() + chance.uniform(0, 2)
            while time.monotonic() < deadline:
                change(table, chance)
                time.sleep(chance.uniform(0, 0.1))
            assert process.poll() is None, process.communicate()[0]
            process.kill()
            process.wait()
        state = find_state(config, table.path)
        LOG.info("kill %d after %.1f s: %s", number, time.monotonic() - begun, state)
        if chance.random() < 0.3:
            update(table.path, config)
            check_index(table.path, config)
    update(table.path, config)
    check_index(table.path, config)
