from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from embedstream.monitor.page.formats import (
    format_age,
    format_compact,
    format_duration,
    format_name,
    format_rate,
    format_share,
    show_text,
)
from embedstream.monitor.page.meanings import find_meaning
from embedstream_core.errors import Code


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (0.42, "0.4 s"),
        (9.96, "10 s"),
        (119.4, "119 s"),
        (720, "12 min"),
        (3 * 3600 + 12 * 60 + 59, "3 h 12 min"),
        (50 * 3600, "2 d 2 h"),
        (-1, "0 s"),
    ],
)
def test_a_duration_has_its_two_largest_units(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (950, "950"), (12_300, "12.3k"), (999_700, "1000k"), (4_560_000, "4.56M")],
)
def test_a_compact_number_has_three_digits(value: float, text: str) -> None:
    assert format_compact(value) == text


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0"), (0.04, "0.04"), (3.0, "3"), (31.62, "31.6"), (1250.4, "1,250")]
)
def test_a_rate(value: float, text: str) -> None:
    assert format_rate(value) == text


def test_a_small_share_is_not_rounded_to_nothing() -> None:
    assert format_share(1, 100_000) == "<0.1 %"
    assert format_share(0, 100) == "0 %"
    assert format_share(1, 0) == "0 %"
    assert format_share(999, 1000) == "100 %"


def test_an_age_of_a_clock_that_is_ahead_is_now() -> None:
    now = datetime(2026, 1, 1, tzinfo=UTC)

    assert format_age(now + timedelta(seconds=3), now) == "just now"
    assert format_age(now - timedelta(seconds=3.9), now) == "3 s ago"


@pytest.mark.parametrize(
    ("text", "name"), [("data/a b/cat.jpg", "cat.jpg"), ("id", "id"), ("a/b/", "b"), ("/", "/")]
)
def test_a_name_is_the_end_of_a_path(text: str, name: str) -> None:
    assert format_name(text) == name


def test_what_cannot_be_seen_is_shown_as_an_escape() -> None:
    assert show_text("a\x00b\u202ec\ud800") == "a\\x00b\\u202ec\\ud800"
    assert show_text("two\nlines, עברית, 👩\u200d🚀") == "two\nlines, עברית, 👩\u200d🚀"
    assert show_text("long" * 9, 4) == "long…"


@pytest.mark.parametrize("code", Code)
def test_each_code_has_a_meaning(code: Code) -> None:
    assert find_meaning(code).endswith(".")
