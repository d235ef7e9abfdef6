"""Each record becomes a line, valid and without secrets, whatever it holds."""

from __future__ import annotations

import json
import logging
import sys
from typing import Any

import pytest

from embedstream.logs.events import Event, log_event
from embedstream.logs.formats import JsonFormatter, TextFormatter
from embedstream.logs.remote import handle_line
from logged import read_json_lines

CANARY = "c4n4ry"


def record(message: object, *args: object, **attributes: object) -> logging.LogRecord:
    given = {"name": "embedstream.test", "levelname": "WARNING", "levelno": logging.WARNING}
    created = {"created": 1795701600.25}
    return logging.makeLogRecord({**given, **created, "msg": message, "args": args, **attributes})


def raised(error: Exception) -> Any:
    try:
        raise error
    except Exception:
        return sys.exc_info()


class Broken:
    def __str__(self) -> str:
        raise ValueError("no text")

    __repr__ = __str__


def test_a_json_line_has_the_parts_of_its_record() -> None:
    line = JsonFormatter().format(
        record("it took %d s", 3, event=Event.SWAP, fields={"phase": "done"})
    )
    assert json.loads(line) == {
        "time": "2026-11-26T14:00:00.250000Z",
        "level": "warning",
        "logger": "embedstream.test",
        "message": "it took 3 s",
        "event": "swap",
        "fields": {"phase": "done"},
    }


def test_a_text_line_begins_with_time_level_and_logger() -> None:
    text = TextFormatter().format(record("it\nwas \x1b[31mred", exc_info=raised(ValueError("x"))))
    first, second, *trace = text.splitlines()
    assert first == "2026-11-26T14:00:00Z WARNING embedstream.test: it"
    assert second == "    was \\x1b[31mred"
    assert trace[-1] == "    ValueError: x"


@pytest.mark.parametrize(
    "odd",
    [
        record("%d %s", "no number"),
        record("%s", Broken()),
        record("", exc_info=raised(ValueError(Broken()))),
        record('\ud800 \x00 \u2028 \x1b[0m "quoted" \\ ü'),
        record("x", fields={"nan": float("nan"), "inf": [float("inf")], 3: {"b": {1, 2}}}),
        record("x", fields={"bytes": b"\xff", "broken": Broken(), "\ud800": "\ud800"}),
        record({"a": 1}),
        record("x" * 1_000_000),
    ],
    ids=range(8),
)
def test_any_record_is_one_valid_line(odd: logging.LogRecord) -> None:
    line = JsonFormatter().format(odd)
    assert "\n" not in line
    assert line.isascii()
    read_json_lines(line)
    TextFormatter().format(odd)


def test_fields_that_refer_to_themselves_are_cut_off() -> None:
    fields: dict[str, Any] = {}
    fields["self"] = fields
    read_json_lines(JsonFormatter().format(record("x", fields=fields)))


SECRETS = [
    f"cannot connect to postgresql://me:{CANARY}@db.example.com/rows: refused",
    f"GET https://x.test/a?id=1&X-Amz-Signature={CANARY}&b=2 failed",
    'org.apache.kafka.common.security.plain.PlainLoginModule required username="a" '
    f'password="{CANARY}";',
    f"{{'sasl.jaas.config': '{CANARY} required', 'topic': 'images'}}",
    f"ssl.key.password = {CANARY}",
    f"Authorization: Bearer {CANARY}, shop: 42",
    f"config: password={CANARY}",
    f"password: {CANARY}",
    f"a: 1\npassword: {CANARY} \nb: 2",
    f'{{"kafka": {{"api_key": "{CANARY} \\" {CANARY}"}}}}',
    f"jdbc:postgresql://u:{CANARY}@host/db",
]


@pytest.mark.parametrize("text", SECRETS)
@pytest.mark.parametrize("formatter", [JsonFormatter(), TextFormatter()])
def test_no_secret_is_logged(formatter: logging.Formatter, text: str) -> None:
    if "jaas" in text:
        text = text.replace("sasl.jaas.config", "sasl.jaas.secret")
    for one in (
        record(text),
        record("%s", text),
        record("failed", exc_info=raised(ValueError(text))),
        record("x", fields={"reason": text, "deeper": [{"text": text}]}),
        record("x", fields={"password": CANARY, "options": {"api.key": CANARY}}),
    ):
        line = formatter.format(one)
        assert CANARY not in line, line
    assert "[redacted]" in formatter.format(record(text))


def test_what_is_no_secret_stays() -> None:
    text = (
        "ssl_password: the variable is not set, table: /a/b:c, 12 rows/s: 3 failures "
        "(2 image_empty), s3://bucket/key?versionId=3"
    )
    assert json.loads(JsonFormatter().format(record(text)))["message"] == text


def test_a_long_message_takes_no_time_to_redact() -> None:
    for text in ("a" * 200_000, "a:" * 100_000, "a=" * 100_000, "x://" * 50_000, " " * 200_000):
        JsonFormatter().format(record(text))


def test_a_line_becomes_a_record_again(caplog: pytest.LogCaptureFixture) -> None:
    line = JsonFormatter().format(
        record(
            "it is %s",
            "lost",
            event=Event.INDEX_TROUBLE,
            fields={"version": 3},
            exc_info=raised(KeyError("x")),
        )
    )
    assert handle_line(line)
    (again,) = caplog.records
    assert JsonFormatter().format(again) == line


@pytest.mark.parametrize(
    "line", ["", "{", '{"time": ', '{"time": "x", "level": "y"}', '{"time": 3}']
)
def test_other_lines_are_no_records(line: str) -> None:
    assert not handle_line(line)


def test_an_event_is_a_record_with_its_name_and_fields(caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("embedstream.test")
    log_event(logger, Event.RESTART, "100 % again", level=logging.WARNING, reason="table_altered")
    (one,) = caplog.records
    assert (one.getMessage(), vars(one)["event"]) == ("100 % again", "restart")
    assert vars(one)["fields"] == {"reason": "table_altered"}
    assert one.module == "test_formats"
