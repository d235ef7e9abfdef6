"""The values that servers write into Retry-After."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

from embedstream_core.fetch.headers import parse_retry_after

DATE = "Wed, 21 Oct 2026 07:28:00 GMT"


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("2", 2),
        (" 120 ", 120),
        ("0", 0),
        ("Wed, 21 Oct 2026 07:28:02 GMT", 2),
        ("Wednesday, 21-Oct-26 07:29:00 GMT", 60),
        ("Wed Oct 21 07:28:05 2026", 5),
        (DATE, 0),
    ],
)
def test_seconds_and_dates(value: str, seconds: float) -> None:
    assert parse_retry_after(value, DATE) == seconds


@pytest.mark.parametrize(
    "value",
    [
        *[
            "",
            "-1",
            "+5",
            "1.5",
            "1e3",
            "0x10",
            "\u0662",
            "9" * 9,
            "9" * 5000,
            "soon",
            "2 s",
            "inf",
        ],
        *["Wed, 21 Oct 2026 07:27:59 GMT", "Wed, 21 Oct 9999 07:28:00 GMT", "Wed, 99 Oct 2026"],
        *["\x00", "Wed, 21 Oct 2026 07:28:02 +9999", "1, 2", "Wed, 21 Oct 99999 07:28:00 GMT"],
    ],
)
def test_nonsense_and_the_past_are_ignored(value: str) -> None:
    assert parse_retry_after(value, DATE) is None


@pytest.mark.parametrize("date", ["", "nonsense"])
def test_without_a_date_our_clock_counts(date: str) -> None:
    soon = format_datetime(datetime.now(UTC) + timedelta(seconds=60), usegmt=True)
    seconds = parse_retry_after(soon, date)
    assert seconds is not None
    assert 55 < seconds <= 60
