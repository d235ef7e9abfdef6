"""Values as text, for the page's templates."""

from __future__ import annotations

import unicodedata
from datetime import UTC, datetime

__all__ = [
    "format_age",
    "format_amount",
    "format_clock",
    "format_compact",
    "format_count",
    "format_duration",
    "format_name",
    "format_rate",
    "format_share",
    "format_time",
    "show_text",
]

_MINUTE, _HOUR, _DAY = 60, 3600, 86_400


def format_count(value: int) -> str:
    """Return a whole number with separators: 12,345."""
    return f"{value:,}"


def format_compact(value: float) -> str:
    """Return a number in at most five characters: 950, 12.3k, 4.56M."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(value) >= size:
            # With three digits, 999.6 would be 1e+03.
            digits = ".3g" if abs(value) < 999.5 * size else ".0f"
            return f"{value / size:{digits}}{unit}"
    return f"{value:.3g}"


def format_amount(value: int, noun: str) -> str:
    """Return a count with its noun, in the plural where it takes one: 1 message, 2 messages."""
    return f"{value:,} {noun}{'' if value == 1 else 's'}"


def format_rate(value: float) -> str:
    """Return a rate with as many digits as can be read at a glance: 0, 0.04, 3.2, 1,250."""
    if value >= 100:
        return f"{value:,.0f}"
    if value >= 1:
        return f"{value:.1f}".removesuffix(".0")
    return f"{value:.2f}".rstrip("0").rstrip(".")


def format_share(part: float, whole: float) -> str:
    """Return a share in percent; a small one is not rounded to nothing: <0.1 %."""
    if not whole or not part:
        return "0 %"
    share = 100 * part / whole
    if share < 0.1:
        return "<0.1 %"
    return f"{share:.1f} %" if share < 9.95 else f"{share:.0f} %"


def format_duration(seconds: float) -> str:
    """Return a duration in its two largest units: 0.4 s, 45 s, 12 min, 3 h 12 min, 2 d 4 h."""
    if seconds < 10:
        return f"{max(0.0, seconds):.1f} s".replace(".0 s", " s")
    if seconds < 2 * _MINUTE:
        return f"{seconds:.0f} s"
    if seconds < 2 * _HOUR:
        return f"{seconds / _MINUTE:.0f} min"
    if seconds < 2 * _DAY:
        return f"{seconds // _HOUR:.0f} h {seconds % _HOUR // _MINUTE:.0f} min"
    return f"{seconds // _DAY:,.0f} d {seconds % _DAY // _HOUR:.0f} h"


def format_name(text: str) -> str:
    """Return the end of a path, which distinguishes rows where there is little room."""
    return text.rstrip("/").rpartition("/")[2] or text


def format_age(then: datetime, now: datetime) -> str:
    """Return how long ago a time was, in whole seconds."""
    seconds = int((now - then).total_seconds())
    return "just now" if seconds < 1 else f"{format_duration(seconds)} ago"


def format_clock(time: datetime) -> str:
    """Return the time of day in UTC."""
    return f"{time.astimezone(UTC):%H:%M:%S}"


def format_time(time: datetime) -> str:
    """Return the date and time of day in UTC."""
    return f"{time.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"


def show_text(text: str, limit: int = 2000) -> str:
    """Return a user's text for display: cut, and with what cannot be seen as escapes.

    Characters that turn the direction of what follows are escaped too.
    """
    cut = text if len(text) <= limit else text[:limit] + "…"
    return "".join(map(_show_character, cut))


def _show_character(character: str) -> str:
    # Controls, formats (but the joiners that emoji and scripts need), lone surrogates.
    if character in "\n\t\u200c\u200d" or unicodedata.category(character) not in {"Cc", "Cf", "Cs"}:
        return character
    return character.encode("unicode_escape").decode()
