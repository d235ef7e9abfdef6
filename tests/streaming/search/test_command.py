"""`embedstream search`: what it prints, and where."""

from __future__ import annotations

import json
import os
import pty
import sys
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from embedstream.cli import console
from embedstream.cli.app import main
from embedstream.kafka.client_settings import convert_options
from embedstream_core.errors import SetupError
from outcome_tables import row, write_table
from pictures import real_pictures

Run = Callable[..., tuple[object, str, str]]

NOTE = "compared all rows of the table, version 1\n"


@pytest.fixture
def search(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run the command; return its exit code, its output, and what it wrote to standard error."""

    def run(*arguments: object) -> tuple[object, str, str]:
        monkeypatch.setattr(sys, "argv", ["embedstream", "search", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            main()
        said = capsys.readouterr()
        return end.value.code, said.out, said.err

    return run


@pytest.fixture
def table(tmp_path: Path) -> str:
    """Rows of a topic with hyphens; the first is an image in a file."""
    (tmp_path / "cat.png").write_bytes(real_pictures()["chelsea.png"])
    rows = [
        row("cat", [1, 0], uri=(tmp_path / "cat.png").as_uri(), offset=7),
        row("Zoë\x1b[31m\n", [1, 1], offset=8),
        row("猫", [0, 1], offset=9),
    ]
    extra = {
        "topic": "my-topic",
        "timestamp": datetime(2026, 1, 2, 3, tzinfo=UTC),
        "media": {"type": "image/png", "duration_s": None},
        "attributes": {"shop": "ä"},
    }
    return write_table(tmp_path, [one | extra for one in rows])


def test_the_rows_are_in_columns(tmp_path: Path, table: str, search: Run) -> None:
    code, out, err = search("--like", "my-topic-0-7", "--table", table)
    uri = (tmp_path / "cat.png").as_uri()
    assert (code, err) == (0, NOTE)
    assert out.splitlines() == [
        f"similarity  id{' ' * 11}  media type  source",
        f"    1.0000  cat{' ' * 10}  image/png   {uri}",
        "    0.7071  Zoë\\x1b[31m\\n  image/png   my-topic-0-8",
        f"    0.0000  猫{' ' * 11}  image/png   my-topic-0-9",
    ]


def test_a_line_fits_into_the_terminal(table: str, monkeypatch: pytest.MonkeyPatch) -> None:
    leader, follower = pty.openpty()
    monkeypatch.setenv("COLUMNS", "40")
    with os.fdopen(follower, "w") as terminal:
        monkeypatch.setattr(sys, "stdout", terminal)
        console.print_rows(
            ["similarity", "id", "source"], [["1.0000", "i" * 50, "file:///" + "s" * 50]]
        )
    written = b""
    # Linux ends a terminal whose other side is closed by an error.
    with suppress(OSError):
        while part := os.read(leader, 1000):
            written += part
    lines = written.decode().splitlines()
    os.close(leader)
    assert [len(line) for line in lines[1:]] == [40]
    assert lines[1].startswith("    1.0000  …iii")
    assert lines[1].endswith("s")


def test_json_is_an_object_per_line_and_nothing_else(
    tmp_path: Path, table: str, search: Run
) -> None:
    sheet = tmp_path / "sheet.png"
    code, out, err = search(
        "--like", "my-topic-0-7", "--table", table, "-k", 2, "--format", "json", "--out", sheet
    )
    first, second = map(json.loads, out.splitlines())
    assert (code, err) == (0, f"{NOTE}contact sheet: {sheet}\n")
    assert first == {
        "similarity": 1.0,
        "topic": "my-topic",
        "partition": 0,
        "offset": 7,
        "model_id": first["model_id"],
        "image_id": "cat",
        "uri": (tmp_path / "cat.png").as_uri(),
        "media_type": "image/png",
        "duration_s": None,
        "timestamp": "2026-01-02T03:00:00+00:00",
        "attributes": {"shop": "ä"},
    }
    assert (second["image_id"], second["similarity"]) == ("Zoë\x1b[31m\n", 0.7071068)


def test_a_sheet_shows_the_row_that_was_asked_for(tmp_path: Path, table: str, search: Run) -> None:
    sheet = tmp_path / "sheet.png"
    arguments = ["--like", "my-topic-0-7", "--table", table, "-k", 1, "--format", "sheet"]
    code, out, err = search(*arguments, "--out", sheet)
    assert (code, out, err) == (0, f"contact sheet: {sheet}\n", NOTE)
    with Image.open(sheet) as drawn:
        query, found = (drawn.crop((left, 10, left + 168, 178)) for left in (10, 198))
        assert query.tobytes() == found.tobytes()
        assert len(found.getcolors(2**16) or []) > 100


def test_a_condition_selects(table: str, search: Run) -> None:
    where = "attributes['shop'] = 'ä' AND offset > 8"
    _, out, _ = search("--like", "my-topic-0-7", "--table", table, "--where", where)
    assert [line.split()[1] for line in out.splitlines()[1:]] == ["猫"]
    _, out, _ = search("--like", "my-topic-0-7", "--table", table, "--where", "offset > 9")
    assert out.splitlines() == ["similarity  id  media type  source"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give one query: a file, --text, or --like"),
        (["--text", "a", "--like", "a-0-1"], "give one query: a file, --text, or --like"),
        (["--like", "images"], "--like takes TOPIC-PARTITION-OFFSET, such as images-0-17; not 'im"),
        (
            ["--text", "a", "--format", "sheet"],
            "--format sheet needs --out, the file of the contac",
        ),
        (
            ["--like", "my-topic-0-7", "--where", "a = 1; b"],
            "it is not one condition; leave out se",
        ),
        (
            ["--like", "my-topic-0-7", "--where", "shop = 'a'"],
            "unknown column `shop`; known: topic,",
        ),
    ],
)
def test_what_cannot_be_done_is_a_sentence(
    table: str, search: Run, arguments: list[str], message: str
) -> None:
    code, out, err = search(*arguments, "--table", table)
    assert (code, out) == (2, "")
    assert err.startswith("embedstream: ")
    assert message in err


def test_a_table_or_a_configuration_is_given(search: Run) -> None:
    assert search("--text", "a") == (
        2,
        "",
        "embedstream: give --table, or --config, which names the table\n",
    )


def test_a_configuration_names_the_table(tmp_path: Path, table: str, search: Run) -> None:
    path = tmp_path / "stream.yaml"
    tree: dict[str, Any] = {
        "kafka": {"bootstrap_servers": "127.0.0.1:1", "subscribe": "my-topic"},
        "table": {"path": table},
        "checkpoint": str(tmp_path / "checkpoint"),
    }
    path.write_text(yaml.safe_dump(tree))
    code, out, err = search("--like", "my-topic-0-9", "--config", path, "-k", 1)
    assert (code, err) == (0, NOTE)
    assert out.splitlines()[1].split()[:2] == ["1.0000", "猫"]


def test_the_options_of_kafkas_java_client_are_converted() -> None:
    login = 'org.apache.kafka.common.security.plain.PlainLoginModule required username="me"'
    options = {
        "kafka.security.protocol": "SASL_SSL",
        "kafka.SASL.mechanism": "PLAIN",
        "kafka.sasl.jaas.config": login + ' password="a\\"b";',
        "kafka.ssl.truststore.type": "PEM",
        "kafka.ssl.truststore.location": "/ca.pem",
        "maxOffsetsPerTrigger": "1",
    }
    assert convert_options(options) == {
        "security_protocol": "SASL_SSL",
        "sasl_mechanism": "PLAIN",
        "sasl_plain_username": "me",
        "sasl_plain_password": 'a"b',
        "ssl_cafile": "/ca.pem",
    }
    with pytest.raises(SetupError, match=r"kafka\.ssl\.truststore\.location, a Java keystore"):
        convert_options({"kafka.ssl.truststore.location": "/ca.jks"})
