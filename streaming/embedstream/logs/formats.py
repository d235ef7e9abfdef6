"""Log records as lines: for people, and as JSON. Both leave out secrets."""

from __future__ import annotations

import json
import logging
import math
import traceback
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from embedstream_core.redaction import REDACTED, names_secret, redact_prose

__all__ = ["JsonFormatter", "TextFormatter", "describe_exception", "read_message"]

# Terminals obey control characters; messages quote what strangers have sent.
_CONTROLS = {
    code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160)) if chr(code) not in "\n\t"
}
_DEPTH = 8


class JsonFormatter(logging.Formatter):
    """Writes one JSON object in ASCII on one line.

    It has `time` in RFC 3339 and UTC, `level`, `logger` and `message`, and where there are such
    `event`, `fields`, and `exception`, the traceback as a text.
    """

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        line: dict[str, Any] = {
            "time": _format_time(record, "microseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": read_message(record),
        }
        if event := getattr(record, "event", None):
            line["event"] = str(event)
        if fields := getattr(record, "fields", None):
            line["fields"] = _clean(fields)
        if text := describe_exception(record):
            line["exception"] = text
        return json.dumps(line, allow_nan=False)


class TextFormatter(logging.Formatter):
    """Writes time, level, logger and message, then the traceback; later lines are indented."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, or lines."""
        text = read_message(record)
        fields = getattr(record, "fields", None)
        if fields and not hasattr(record, "event"):
            named = ", ".join(f"{name} {value}" for name, value in _clean(fields).items())
            text = f"{text} ({named})"
        if exception := describe_exception(record):
            text = f"{text}\n{exception}"
        head = f"{_format_time(record, 'seconds')} {record.levelname} {record.name}: "
        return head + text.translate(_CONTROLS).replace("\n", "\n    ")


def read_message(record: logging.LogRecord) -> str:
    """Return a record's message without secrets, even if its arguments do not fit."""
    try:
        text = record.getMessage()
    except Exception:
        text = f"{_to_text(record.msg)} {_to_text(record.args)}"
    return _redact(text)


def describe_exception(record: logging.LogRecord) -> str:
    """Return a record's traceback without secrets; empty if there is none."""
    if record.exc_info and record.exc_info[0] is not None:
        try:
            text = "".join(traceback.format_exception(*record.exc_info))
        except Exception:
            text = f"{record.exc_info[0].__name__}, whose text cannot be read"
    else:
        text = record.exc_text or ""
    if record.stack_info:
        text = f"{text}\n{record.stack_info}"
    return _redact(text).strip()


def _format_time(record: logging.LogRecord, precision: str) -> str:
    time = datetime.fromtimestamp(record.created, UTC)
    return time.isoformat(timespec=precision).replace("+00:00", "Z")


def _redact(text: str) -> str:
    # A lone surrogate, as in a file's name, is not UTF-8.
    return redact_prose(text.encode("utf-8", "replace").decode("utf-8"))


def _to_text(value: object) -> str:
    try:
        return str(value)
    except Exception:
        return f"a {type(value).__name__} whose text cannot be read"


def _clean(value: Any, depth: int = 0) -> Any:
    """Return a value that JSON has, without secrets."""
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if depth < _DEPTH:
        if isinstance(value, Mapping):
            named = [(_redact(_to_text(name)), one) for name, one in value.items()]
            return {
                name: REDACTED if names_secret(name) else _clean(one, depth + 1)
                for name, one in named
            }
        if isinstance(value, list | tuple | set | frozenset):
            return [_clean(one, depth + 1) for one in value]
    return _redact(_to_text(value))
