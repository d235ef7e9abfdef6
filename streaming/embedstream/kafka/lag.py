"""How long the oldest unread message has waited, from what is known of offsets alone."""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass, field

from embedstream.kafka.topics import TopicState

__all__ = ["LagClock"]

# At one reading in 5 s, the last 10 minutes are as exact as the readings are; see `_Line.add`.
_MAX_POINTS = 240


@dataclass(slots=True)
class _Line:
    """The end offset of a partition over time, as points to be joined by straight lines."""

    ends: list[int] = field(default_factory=list)
    times: list[float] = field(default_factory=list)

    def add(self, end: int, at: float) -> None:
        if self.ends and end < self.ends[-1]:
            # The topic was created again.
            self.ends.clear()
            self.times.clear()
        if self.ends[-2:] == [end, end]:
            # While nothing is appended, only the newest point moves on.
            self.times[-1] = at
            return
        self.ends.append(end)
        self.times.append(at)
        if len(self.ends) > _MAX_POINTS:
            # Of the older half every second point goes: the first one stays, so that what is
            # known reaches back as far as before, and only gets coarser.
            half = _MAX_POINTS // 2
            self.ends[1:half] = self.ends[2:half:2]
            self.times[1:half] = self.times[2:half:2]

    def find_time(self, offset: int) -> float | None:
        """Return when the end passed an offset; None if that was before the first point."""
        right = bisect_right(self.ends, offset)
        if right == 0:
            return None
        if right == len(self.ends):
            return self.times[-1]
        first, last = self.ends[right - 1], self.ends[right]
        began, ended = self.times[right - 1], self.times[right]
        return began + (ended - began) * (offset - first) / (last - first)


class LagClock:
    """Finds the time at which the oldest unread message was appended.

    A message was appended when the end offset of its partition passed its own offset. Between two
    readings of the end offsets, messages are taken to have come evenly; this is the interpolation
    of kafka-lag-exporter (github.com/seglo/kafka-lag-exporter, LookupTable.scala). The error is at
    most the time between two readings, longer for messages older than some minutes. At most 240
    points are kept of each partition. Threads may share it.
    """

    def __init__(self) -> None:
        self._lines: dict[tuple[str, int], _Line] = {}
        self._lock = threading.Lock()

    def add(self, topics: Mapping[str, TopicState], *, at: float) -> None:
        """Take the end offsets as they were at a time, in seconds since 1970."""
        ends = {
            (name, number): end for name, one in topics.items() for number, end in one.end.items()
        }
        with self._lock:
            self._lines = {key: self._lines.get(key, _Line()) for key in ends}
            for key, end in ends.items():
                self._lines[key].add(end, at)

    def measure(
        self, read: Mapping[tuple[str, int], int], *, now: float, newest_read: float | None = None
    ) -> float | None:
        """Return the seconds since the oldest unread message was appended; 0 if all are read.

        None before the end offsets are known, and while the messages were appended before they
        were known and `newest_read` is None.

        Args:
            read: The offset of the next message to be read, by topic and partition; a partition
                that is missing has not been read.
            now: The present time, in seconds since 1970.
            newest_read: When the newest message that was read was appended, in seconds since 1970:
                the answer for a message that was appended before the end offsets were known.
        """
        with self._lock:
            if not self._lines:
                return None
            unread = [
                (line, offset)
                for key, line in self._lines.items()
                if (offset := read.get(key, 0)) < line.ends[-1]
            ]
            times = [line.find_time(offset) for line, offset in unread]
            starts = [line.times[0] for line, _ in unread]
        if not times:
            return 0.0
        known = [one for one in times if one is not None]
        if len(known) < len(times):
            if newest_read is None:
                return None
            # It was there at the first reading, whatever a producer's clock said.
            known.append(min(newest_read, *starts))
        return max(0.0, now - min(known))
