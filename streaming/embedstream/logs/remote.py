"""Turn the JSON of log records from other processes into records of this process."""

from __future__ import annotations

import json
import logging
from datetime import datetime
from typing import Any

__all__ = ["handle_line", "handle_object"]


def handle_line(line: str, **fields: object) -> bool:
    """Give a record to this process's logging, with more fields, if `JsonFormatter` wrote the line.

    Returns whether it did.
    """
    if not line.startswith('{"time": '):
        return False
    try:
        return handle_object(json.loads(line), **fields)
    except (ValueError, RecursionError):
        return False


def handle_object(line: dict[str, Any], **fields: object) -> bool:
    """Give a record to this process's logging, with more fields; return whether it is a record."""
    try:
        level = logging.getLevelNamesMapping()[str(line["level"]).upper()]
        attributes: dict[str, Any] = {
            "name": str(line["logger"]),
            "levelname": logging.getLevelName(level),
            "levelno": level,
            "msg": str(line["message"]),
            "created": datetime.fromisoformat(line["time"]).timestamp(),
            "exc_text": line.get("exception"),
        }
        fields = {**line.get("fields", {}), **fields}
    except (KeyError, TypeError, ValueError):
        return False
    if event := line.get("event"):
        attributes["event"] = event
    if fields:
        attributes["fields"] = fields
    logger = logging.getLogger(attributes["name"])
    if logger.isEnabledFor(level):
        logger.handle(logging.makeLogRecord(attributes))
    return True
