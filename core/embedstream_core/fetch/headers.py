"""What two headers of an answer mean: `Content-Encoding` and `Retry-After`."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Final

from embedstream_core.fetch import verdicts

__all__ = ["check_encoding", "parse_retry_after"]

# IANA's codings that change the bytes, and other compressions. The rest leaves them as they are:
# `aws-chunked` stays on objects that an SDK uploaded in chunks, and upload tools write `base64`,
# character sets and media types there. Whether the bytes are an image is for the decoder to say.
_CHANGED: Final = re.compile(
    r"\b(gzip|compress|deflate|br|brotli|zstd|dcb|dcz|aes128gcm|exi|bzip2|lzma|xz|lz4|snappy)\b"
)
# Three years; more is no answer to wait for.
_SECONDS = re.compile(r"[0-9]{1,8}")
_MOST_S = 99_999_999.0


def check_encoding(value: str) -> None:
    """Raise REFERENCE_UNREADABLE for a Content-Encoding that changes the bytes."""
    if found := _CHANGED.search(value.lower()):
        name = f"Content-Encoding: {found[0]}"
        raise verdicts.unreadable(f"the answer is compressed or encrypted ({name}); serve it plain")


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
