"""The last hour as a drawing: unread messages, embeddings and failures on one time axis."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta

from embedstream.monitor.page.formats import (
    format_amount,
    format_clock,
    format_compact,
    format_count,
    format_rate,
)
from embedstream.monitor.status import Point, Status

__all__ = ["HistoryDrawing", "Lane", "Slot", "Span", "draw_history"]

_HOUR_S = 3600
_SPAN_S = 300

# The tops and bottoms of the lanes in pixels of the drawing; history.html and page.css have them.
_LANES = {"lag": (22, 98), "embeddings": (130, 200), "failures": (238, 286)}


@dataclass(frozen=True, slots=True)
class Lane:
    """A curve: `path` is SVG path data, `top` the value at its upper end, `now` the newest one."""

    name: str
    title: str
    path: str
    top: str
    middle: str
    now: str


@dataclass(frozen=True, slots=True)
class Slot:
    """What a pointer over a point reads."""

    x: int
    text: str


@dataclass(frozen=True, slots=True)
class Span:
    """A row of the table that says the same as the drawing."""

    time: str
    embeddings: str
    failures: str
    lag: str


@dataclass(frozen=True, slots=True)
class HistoryDrawing:
    """The drawing is `width` wide, a unit for each point, and stretched to the page."""

    width: int
    lanes: tuple[Lane, ...]
    slots: tuple[Slot, ...]
    spans: tuple[Span, ...]
    summary: str


def draw_history(status: Status) -> HistoryDrawing | None:
    """Draw the last hour; None if nothing is known of it."""
    if not status.history:
        return None
    width = max(1, _HOUR_S // status.point_s)
    points = status.history[-width:]
    first = width - len(points)
    # Of the newest point, only a part has passed.
    passed = (status.now - points[-1].at).total_seconds()
    lasts = [float(status.point_s)] * (len(points) - 1) + [min(max(passed, 1), status.point_s)]

    def rate(name: str) -> list[float | None]:
        return [getattr(point, name) / s for point, s in zip(points, lasts, strict=True)]

    lags: list[float | None] = [point.lag for point in points]
    lanes = (
        _draw_lane("lag", "Unread messages", lags, first=first, draw=_draw_area),
        _draw_lane(
            "embeddings", "Embeddings per second", rate("embeddings"), first=first, draw=_draw_bars
        ),
        _draw_lane(
            "failures", "Failures per second", rate("failures"), first=first, draw=_draw_bars
        ),
    )
    slots = tuple(
        Slot(first + i, _describe(point, s))
        for i, (point, s) in enumerate(zip(points, lasts, strict=True))
    )
    return HistoryDrawing(
        width, lanes, slots, _list_spans(points, status.point_s), _summarize(points)
    )


def _draw_lane(
    name: str,
    title: str,
    values: Sequence[float | None],
    *,
    first: int,
    draw: Callable[[list[tuple[int, float | None]], int], str],
) -> Lane:
    top = _round_up(max((value for value in values if value is not None), default=0))
    upper, lower = _LANES[name]
    heights = [
        (first + i, None if value is None else lower - value / top * (lower - upper))
        for i, value in enumerate(values)
    ]
    newest = next((value for value in reversed(values) if value is not None), None)
    shown = "unknown" if newest is None else format_rate(newest)
    return Lane(
        name, title, draw(heights, lower), format_compact(top), format_compact(top / 2), shown
    )


def _round_up(value: float) -> float:
    """Return the next of 1, 2, 4, 6, 8 times a power of ten: its half is short, too."""
    if value <= 0:
        return 1
    power = 10.0 ** math.floor(math.log10(value))
    return next(step * power for step in (1, 2, 4, 6, 8, 10) if step * power >= value * (1 - 1e-9))


def _draw_area(heights: list[tuple[int, float | None]], lower: int) -> str:
    """Draw steps down to the lower end, with gaps where nothing is known."""
    parts = []
    is_open = False
    for x, y in heights:
        if y is None:
            parts.append(f"V{lower}Z" if is_open else "")
            is_open = False
            continue
        parts.append(f"{'' if is_open else f'M{x} {lower}'}V{y:.1f}H{x + 1}")
        is_open = True
    return "".join(parts) + (f"V{lower}Z" if is_open else "")


def _draw_bars(heights: list[tuple[int, float | None]], lower: int) -> str:
    return "".join(
        f"M{x + 0.1:.1f} {lower}V{y:.1f}h.8V{lower}Z"
        for x, y in heights
        if y is not None and y < lower
    )


def _describe(point: Point, seconds: float) -> str:
    lag = "lag unknown" if point.lag is None else f"{format_count(point.lag)} unread"
    return (
        f"{format_clock(point.at)} UTC: {lag}, {format_rate(point.embeddings / seconds)} "
        f"embeddings/s, {format_rate(point.failures / seconds)} failures/s"
    )


def _list_spans(points: Sequence[Point], seconds: int) -> tuple[Span, ...]:
    step = max(1, _SPAN_S // seconds)
    spans = []
    for end in range(len(points), 0, -step):
        part = points[max(0, end - step) : end]
        lag = next((point.lag for point in reversed(part) if point.lag is not None), None)
        until = part[-1].at + timedelta(seconds=seconds)
        spans.append(
            Span(
                f"{format_clock(part[0].at)} to {format_clock(until)}",
                format_count(sum(point.embeddings for point in part)),
                format_count(sum(point.failures for point in part)),
                "unknown" if lag is None else format_count(lag),
            )
        )
    return tuple(spans)


def _summarize(points: Sequence[Point]) -> str:
    lags = [point.lag for point in points if point.lag is not None]
    lag = f"unread messages between {min(lags):,} and {max(lags):,}" if lags else "lag unknown"
    embeddings = format_amount(sum(point.embeddings for point in points), "embedding")
    failures = format_amount(sum(point.failures for point in points), "failure")
    return f"The last hour: {embeddings}, {failures}, {lag}. The table below has the numbers."
