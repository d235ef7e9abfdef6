"""What `embedstream index` prints, and how it ends."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from drivers import started
from embedstream.cli.app import app
from embedstream.config.sections import IndexConfig
from embedstream_core.errors import SetupError
from index_oracle import check_index
from tables_in_motion import MovingTable


@pytest.fixture
def table(tmp_path: Path) -> MovingTable:
    return MovingTable.create(tmp_path / "table", rows=4)


def test_a_pass_prints_what_it_did(table: MovingTable) -> None:
    def run(*arguments: str) -> list[str]:
        result = CliRunner().invoke(app, ["index", f"--table={table.path}", *arguments])
        assert result.exit_code == 0, result.output
        return result.output.splitlines()

    address = f"{table.path}/_embedstream/index"
    first = run()
    assert first[0] == f"the index at {address} is empty"
    assert first[1] == "full pass over version 1, 1 files: there is no index yet"
    assert first[3] == (
        "the index holds version 1, 0 behind the table: 4 rows by a full pass, 0 rows added, "
        "0 replaced, 0 deleted"
    )
    table.append(2)
    table.delete("offset = 0")
    second = run()
    assert second[0] == f"the index at {address} holds version 1 of the table"
    assert second[1].split() == (
        ["version", "3", "2", "added", "3", "replaced", "1", "deleted", "0", "behind"]
    )
    assert run()[1] == "nothing was to be done"
    assert run("--rebuild")[1].endswith("--rebuild")
    check_index(table.path, IndexConfig())


def test_one_of_configuration_and_table_is_given() -> None:
    assert CliRunner().invoke(app, ["index"]).exit_code == 2


def test_a_table_that_is_not_there_is_a_sentence(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["index", f"--table={tmp_path / 'none'}"])
    assert isinstance(result.exception, SetupError)
    assert "there is no Delta table at" in str(result.exception)


def test_a_signal_ends_it_after_its_write(table: MovingTable) -> None:
    command = ["-m", "embedstream", "index", f"--table={table.path}", "--continuous"]
    with started([sys.executable, *command]) as process:
        assert process.stdout is not None
        while "full pass  4 rows" not in (line := process.stdout.readline()):
            assert line, "it has ended"
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
        assert "the index holds version 1, 0 behind" in process.stdout.read()
    check_index(table.path, IndexConfig())
