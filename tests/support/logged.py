"""What the code logs, as a test sees it."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["collect_events", "read_json_lines"]


class _Lines(logging.Handler):
    def __init__(self, prefix: str) -> None:
        super().__init__()
        self.prefix = prefix
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if str(getattr(record, "event", "")).startswith(self.prefix):
            self.lines.append(record.getMessage())


@contextmanager
def collect_events(prefix: str) -> Iterator[list[str]]:
    """The messages of the events whose names begin so, as they come."""
    handler, logger = _Lines(prefix), logging.getLogger("embedstream")
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield handler.lines
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


def read_json_lines(text: str, *, keep: Callable[[dict[str, Any]], bool] = bool) -> list[Any]:
    """The objects of an output that has nothing but JSON lines."""
    lines = [json.loads(line, parse_constant=_refuse) for line in text.splitlines()]
    assert all(isinstance(line, dict) for line in lines)
    return [line for line in lines if keep(line)]


def _refuse(name: str) -> None:
    raise AssertionError(f"{name} is not JSON")
