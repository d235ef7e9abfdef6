"""Describe in words how a stream is doing: a state, and a sentence for each trouble."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from embedstream.monitor.page.formats import format_amount, format_duration, format_share
from embedstream.monitor.status import Point, Status

__all__ = ["Health", "Tone", "assess"]

Tone = Literal["good", "idle", "busy", "warn", "bad", "off"]
"""What colour and shape a state has."""

# What counts as trouble; docs/page.md lists the same limits. A micro-batch is seldom longer than a
# minute.
_WITHOUT_COMMIT_S = 180
_WINDOW_S = 600
_GROWTH = 1.5
_STILL_HIGH = 0.9
_LAG_S = 60
_FAILURE_RATIO = 0.1
_ROWS = 20
_VERSIONS_BEHIND = 20
_MARGIN_SHARE = 0.05


@dataclass(frozen=True, slots=True)
class Health:
    """The state in a word, and what is wrong, the worst first."""

    word: str
    tone: Tone
    troubles: tuple[str, ...] = ()


def assess(status: Status) -> Health:
    """Return how the stream is doing."""
    reasons = (status.reason,) if status.reason else ()
    match status.state:
        case "failed":
            return Health("Failed", "bad", reasons)
        case "stopped":
            return Health("Stopped", "off", reasons)
        case "stopping":
            return Health("Stopping", "busy", reasons)
        case "starting":
            return Health("Starting", "busy", reasons)
        case "unwatched":
            return Health("Table only", "off", (*reasons, *_check_index(status)))
    troubles = (
        *reasons,
        *_check_commits(status),
        *_check_lag(status),
        *_check_margin(status),
        *_check_failures(status),
        *_check_index(status),
        *_check_publish(status),
    )
    if troubles:
        return Health("In trouble", "warn", troubles)
    if status.lag == 0 and not status.rows_per_s:
        return Health("Idle", "idle")
    return Health("Running", "good")


def _check_commits(status: Status) -> tuple[str, ...]:
    since = status.last_micro_batch or status.started_at
    if since is None or not status.lag:
        return ()
    seconds = (status.now - since).total_seconds()
    if seconds < _WITHOUT_COMMIT_S:
        return ()
    waiting = format_amount(status.lag, "message")
    return (f"No commit for {format_duration(seconds)}, while {waiting} wait.",)


def _select_window(status: Status) -> list[Point]:
    return list(status.history[-max(2, _WINDOW_S // status.point_s) :])


def _check_lag(status: Status) -> tuple[str, ...]:
    lags = [point.lag for point in status.history if point.lag is not None]
    if len(lags) < 2 or (status.lag_s or 0) < _LAG_S:
        return ()
    half = len(lags) // 2
    before, after = sum(lags[:half]) / half, sum(lags[half:]) / (len(lags) - half)
    newest = max(point.lag or 0 for point in _select_window(status))
    # After a burst the lag has grown too, but it is falling already.
    if after < _GROWTH * before or lags[-1] < _STILL_HIGH * newest:
        return ()
    return (
        f"The lag grows: {format_amount(lags[-1], 'message')} unread, and the oldest was "
        f"appended {format_duration(status.lag_s or 0)} ago.",
    )


def _check_margin(status: Status) -> tuple[str, ...]:
    for one in status.partitions:
        if not one.lag or one.margin is None or one.end is None or not one.earliest:
            # A topic that still has its first message has lost none.
            continue
        if one.margin < _MARGIN_SHARE * (one.end - one.earliest):
            return (
                f"Kafka's retention is close: {format_amount(one.margin, 'message')} of "
                f"{one.topic}, partition {one.partition}, are left before it deletes unread ones.",
            )
    return ()


def _check_failures(status: Status) -> tuple[str, ...]:
    window = _select_window(status)
    failures = sum(point.failures for point in window)
    rows = failures + sum(point.embeddings for point in window)
    if rows < _ROWS or failures < _FAILURE_RATIO * rows:
        return ()
    return (
        f"{format_share(failures, rows)} of the last {format_amount(rows, 'row')} are failures.",
    )


def _check_index(status: Status) -> tuple[str, ...]:
    if status.index is not None and status.index.trouble:
        return (f"The index is in trouble: {status.index.trouble}",)
    behind = status.index_behind
    if behind is None or behind < _VERSIONS_BEHIND:
        return ()
    return (f"The index is {format_amount(behind, 'version')} behind the table.",)


def _check_publish(status: Status) -> tuple[str, ...]:
    if status.publish is not None and status.publish.trouble:
        return (f"The outcomes cannot be published: {status.publish.trouble}",)
    behind = status.publish_behind
    if behind is None or behind < _VERSIONS_BEHIND:
        return ()
    return (f"The published outcomes are {format_amount(behind, 'version')} behind the table.",)
