"""The subscribed topics, read again and again while a stream runs."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from typing import Self

from embedstream.kafka.topics import TopicState
from embedstream.logs.outages import OutageLog

__all__ = ["TopicWatch"]

_log = logging.getLogger(__name__)

_WATCHED_S = 10.0
_UNWATCHED_S = 30.0
_JOIN_S = 1.0
# The most of the time that readings take, whatever the number of partitions. With 30 requests from
# Python to the JVM for each partition, 24 partitions took 185 ms on a busy Xeon, nearly all of it
# on a core; `check_topics` makes 7.
_MAX_SHARE = 0.01


class TopicWatch:
    """Reads the topics in a daemon thread, while it is open as a context manager.

    `latest` is what was read last; None before Kafka has answered. While `is_watched` returns True
    the topics are read every 10 s, otherwise every 30 s; less often where that would take more than
    1 % of the time. An outage is logged once, and the topics are read again after the same time;
    nothing is raised.
    """

    def __init__(
        self,
        read_topics: Callable[[], Mapping[str, TopicState]],
        *,
        on_read: Callable[[Mapping[str, TopicState]], object] = lambda topics: None,
        is_watched: Callable[[], bool] = lambda: False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Start nothing yet.

        Args:
            read_topics: Reads them once; may raise.
            on_read: Called with what was read, on this thread. What it raises is logged.
            is_watched: Whether someone looks at the stream now.
            clock: The present time in seconds.
        """
        self.latest: Mapping[str, TopicState] | None = None
        self._read_topics = read_topics
        self._on_read = on_read
        self._is_watched = is_watched
        self._clock = clock
        self._read_at = 0.0
        self._cost_s = 0.0
        self._outage = OutageLog(_log, "the topics cannot be read")
        self._misuse = OutageLog(_log, "the state of the topics cannot be shown")
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="topics", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closed.set()
        # A reading in progress may wait for Kafka; the thread ends with the process.
        self._thread.join(_JOIN_S)

    def read(self) -> None:
        """Read the topics once, and pass them on."""
        self._read_at = began = self._clock()
        # A session that ends raises errors of many types, and so may whoever watches.
        try:
            self.latest = self._read_topics()
        except Exception as error:
            if not self._closed.is_set():
                self._outage.begin(error)
            return
        self._outage.end()
        self._cost_s = self._clock() - began
        try:
            self._on_read(self.latest)
        except Exception as error:
            self._misuse.begin(error)

    @property
    def is_due(self) -> bool:
        """Whether it is time to read the topics again."""
        interval_s = _WATCHED_S if self._is_watched() else _UNWATCHED_S
        return self._clock() - self._read_at >= max(interval_s, self._cost_s / _MAX_SHARE)

    def _run(self) -> None:
        self.read()
        while not self._closed.wait(_WATCHED_S):
            if self.is_due:
                self.read()
