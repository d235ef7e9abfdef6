"""The response header `Retry-After`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from embedstream_core.errors import TransientError
from embedstream_core.fetch.errors import Busy, TryAgain

__all__ = ["build_retry_error", "parse_retry_after"]

# Eight digits are three years; a server that asks for more is ignored.
_SECONDS = re.compile(r"[0-9]{1,8}")
_MAX_SECONDS = 99_999_999.0


def build_retry_error(message: str, headers: Mapping[str, str]) -> TransientError:
    """Return the error of a response that says to try again, with its `Retry-After` if valid."""
    pause_s = parse_retry_after(headers.get("retry-after", ""), headers.get("date", ""))
    return TryAgain(message) if pause_s is None else Busy(message, pause_s)


def parse_retry_after(value: str, date: str) -> float | None:
    """Return the seconds to wait that `Retry-After` asks for, or None if it is invalid.

    A point in time is measured from the response's own `Date`, because the clocks may differ.
    """
    if _SECONDS.fullmatch(value.strip()):
        return float(value)
    if (until := _parse_date(value)) is None:
        return None
    wait_s = (until - (_parse_date(date) or datetime.now(UTC))).total_seconds()
    return wait_s if 0 <= wait_s <= _MAX_SECONDS else None


def _parse_date(value: str) -> datetime | None:
    try:
        parsed = parsedate_to_datetime(value)
    # Some versions of Python raise a TypeError for a text that does not look like a date.
    except (ValueError, TypeError, OverflowError, IndexError):
        return None
    return parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC)
