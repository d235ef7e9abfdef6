"""What two headers of an answer mean: `Content-Encoding` and `Retry-After`."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Final

from embedstream_core.fetch import verdicts

__all__ = ["check_encoding", "parse_retry_after"]

# Names for bytes that are as they are: `aws-chunked` stays on objects that an SDK uploaded in
# chunks; the others, character sets and media types too, are written there by upload tools.
_PLAIN: Final = re.compile(
    r"|identity|none|null|aws-chunked|binary|raw|[78]bit"
    r"|utf-?8|(us-)?ascii|iso-8859-1|latin1|windows-1252|[^/]+/[^/]+"
)
_COMPRESSED: Final = re.compile(r"(x-)?(gzip|compress)|deflate|br|zstd|dcb|dcz")
# Three years; more is no answer to wait for.
_SECONDS = re.compile(r"[0-9]{1,8}")
_MOST_S = 99_999_999.0


def check_encoding(value: str) -> None:
    """Raise REFERENCE_UNREADABLE unless this Content-Encoding means the bytes as they are."""
    for coding in (name.strip().lower() for name in value.split(",")):
        if _COMPRESSED.fullmatch(coding):
            raise verdicts.unreadable(
                f"the answer is compressed (Content-Encoding: {coding}); serve it without"
            )
        if not _PLAIN.fullmatch(coding):
            raise verdicts.unreadable(
                f"unknown Content-Encoding {coding[:20]!r}; serve the image without it"
            )


def parse_retry_after(value: str | None, date: str | None) -> float | None:
    """Return the seconds to wait that `Retry-After` asks for; None for none, or for nonsense.

    A point in time is measured from the answer's own `Date`, for the clocks may differ.
    """
    if value is None:
        return None
    value = value.strip()
    if _SECONDS.fullmatch(value):
        return float(value)
    until = _parse_date(value)
    if until is None:
        return None
    wait_s = (until - (_parse_date(date or "") or datetime.now(UTC))).total_seconds()
    return wait_s if 0 <= wait_s <= _MOST_S else None


def _parse_date(value: str) -> datetime | None:
    try:
        parsed = parsedate_to_datetime(value)
    # What does not look like a date at all is a TypeError in some versions.
    except (ValueError, TypeError, OverflowError, IndexError):
        return None
    return parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC)
