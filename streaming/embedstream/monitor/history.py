"""The last hour of a stream, in memory of a fixed size: points, rates and percentiles."""

from __future__ import annotations

import math
from collections import Counter, defaultdict, deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import NamedTuple

from embedstream.monitor.status import Percentiles, Point
from embedstream_core.pipeline.work_record import WorkStage

__all__ = ["POINT_S", "History", "Rates", "Work", "convert_time"]

POINT_S = 30
_POINTS = 3600 // POINT_S
_MINUTE_S = 60.0
# A stream of micro-batches of 50 ms has no more of them in a minute.
_MAX_WORKS = 1200
# Each class of seconds is a tenth wider than the one before: percentiles are within 5 %.
_STEP = math.log(1.1)
_LEAST_S = 0.01


class Work(NamedTuple):
    """A committed micro-batch: from when to when it ran, in seconds since 1970, and what it did."""

    start: float
    end: float
    embeddings: int
    failures: int
    rows: int
    stage_seconds: Mapping[WorkStage, float]


class Rates(NamedTuple):
    """Rows, and seconds of all threads in each stage, per second of the last minute."""

    rows_per_s: float = 0.0
    stage_seconds: Mapping[WorkStage, float] = {}


@dataclass(slots=True)
class _Slot:
    embeddings: int = 0
    failures: int = 0
    lag: int | None = None
    latencies: Counter[int] = field(default_factory=Counter)


class History:
    """What micro-batches did in the last hour. Times are in seconds since 1970. Takes no lock."""

    def __init__(self) -> None:
        self._slots: dict[int, _Slot] = {}
        self._works: deque[Work] = deque(maxlen=_MAX_WORKS)

    def add(self, work: Work, latencies: Mapping[float, int]) -> None:
        """Add a micro-batch, and how many of its messages took how many seconds to their commit.

        Its rows are spread evenly over the time that it took, so that long micro-batches make no
        spikes.
        """
        self._works.append(work)
        slot = self._get_slot(work.end)
        for seconds, count in latencies.items():
            slot.latencies[_find_class(seconds)] += count
        first = max(work.start, (work.end // POINT_S - _POINTS) * POINT_S)
        done = _Share()
        for number in range(int(first // POINT_S), int(work.end // POINT_S) + 1):
            until = min(work.end, (number + 1) * POINT_S)
            share = (until - first) / (work.end - first) if work.end > first else 1.0
            upto = _Share(round(work.embeddings * share), round(work.failures * share))
            slot = self._get_slot(number * POINT_S)
            slot.embeddings += upto.embeddings - done.embeddings
            slot.failures += upto.failures - done.failures
            done = upto

    def set_lag(self, now: float, lag: int | None) -> None:
        """Set the messages that are not committed at a time."""
        self._get_slot(now).lag = lag

    def list_points(self, now: float) -> tuple[Point, ...]:
        """Return the points of the last hour, from the first one that is known, without gaps."""
        last = int(now // POINT_S)
        first = max(last - _POINTS + 1, min(self._slots, default=last))
        empty = _Slot()
        points = []
        for number in range(first, last + 1):
            slot = self._slots.get(number, empty)
            at = convert_time(number * POINT_S)
            points.append(
                Point(at=at, embeddings=slot.embeddings, failures=slot.failures, lag=slot.lag)
            )
        return tuple(points)

    def find_percentiles(self, now: float) -> Percentiles | None:
        """Return percentiles of the seconds to the commit; None without messages."""
        oldest = int(now // POINT_S) - _POINTS + 1
        classes: Counter[int] = Counter()
        for number, slot in self._slots.items():
            if number >= oldest:
                classes.update(slot.latencies)
        if not classes:
            return None
        ordered, total = sorted(classes.items()), classes.total()

        def find(share: float) -> float:
            seen = 0
            for one, count in ordered:
                seen += count
                if seen >= share * total:
                    return _get_middle(one)
            return _get_middle(ordered[-1][0])

        return Percentiles(p50=find(0.5), p95=find(0.95), p99=find(0.99))

    def measure_rates(self, now: float) -> Rates:
        """Return the rates of the last minute.

        Until a micro-batch that takes as long as the last one would be overdue, the minute before
        the last commit counts: what the one in flight has done is not known.
        """
        if not self._works:
            return Rates()
        last = self._works[-1]
        end = last.end if now - last.end <= 1.5 * (last.end - last.start) else now
        start = max(end - _MINUTE_S, self._works[0].start)
        seconds = max(end - start, 1.0)
        rows = 0.0
        stages: dict[WorkStage, float] = defaultdict(float)
        for work in reversed(self._works):
            if work.end <= start:
                break
            share = 1.0 if work.start >= start else (work.end - start) / (work.end - work.start)
            rows += share * work.rows
            for stage, spent in work.stage_seconds.items():
                stages[stage] += share * spent
        return Rates(rows / seconds, {stage: spent / seconds for stage, spent in stages.items()})

    def _get_slot(self, at: float) -> _Slot:
        """Return the slot of a time; forget those that are older than an hour."""
        number = int(at // POINT_S)
        if number not in self._slots:
            self._slots[number] = _Slot()
            newest = max(self._slots)
            for old in [one for one in self._slots if one <= newest - _POINTS]:
                del self._slots[old]
            return self._slots.get(number, _Slot())
        return self._slots[number]


def convert_time(seconds: float) -> datetime:
    """Return the time in UTC of so many seconds since 1970."""
    return datetime.fromtimestamp(seconds, UTC)


class _Share(NamedTuple):
    embeddings: int = 0
    failures: int = 0


def _find_class(seconds: float) -> int:
    return math.ceil(math.log(max(seconds, _LEAST_S) / _LEAST_S) / _STEP)


def _get_middle(number: int) -> float:
    return _LEAST_S * math.exp((number - 0.5) * _STEP) if number else _LEAST_S
