"""Keep the status of a running stream, from the reports of its micro-batches and its topics."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version

from embedstream.config.sections import StreamConfig
from embedstream.kafka.lag import LagClock
from embedstream.kafka.topics import TopicState
from embedstream.monitor.counts import Samples, StreamCounts
from embedstream.monitor.history import POINT_S, History, Work, convert_time
from embedstream.monitor.metrics import MODEL_LOADS
from embedstream.monitor.status import (
    STAGES,
    IndexStatus,
    ModelStatus,
    PartitionStatus,
    PublishStatus,
    State,
    Status,
    TableStatus,
)
from embedstream.stream.reports import MicroBatchReport
from embedstream_core.redaction import redact_prose

__all__ = ["LiveStream", "Probes"]

_log = logging.getLogger(__name__)

# The driver's main thread beats five times a second; in one round it may wait for a micro-batch
# that a swap lets finish, which takes up to the stop's timeout, and for storage that is slow.
_BEAT_S = 60.0
# Prometheus asks every 15 to 60 s.
_WATCHED_S = 90.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Probes:
    """What a status asks of the parts of a running stream: any time, from any thread, quickly."""

    read_models: Callable[[], tuple[ModelStatus, ...]] = tuple
    count_loads: Callable[[], int] = lambda: 0
    read_index: Callable[[], IndexStatus | None] = lambda: None
    read_publish: Callable[[], PublishStatus | None] = lambda: None
    find_loss: Callable[[], str] = lambda: ""
    """Returns why the claim is not held any more; empty while it is."""
    is_stopping: Callable[[], bool] = lambda: False
    is_listening: Callable[[], bool] = lambda: True
    """Returns whether Spark's events can reach this process."""


class LiveStream:
    """The status of a running stream; a `StatusSource`. Every method is for any thread.

    `clock` gives seconds since 1970.
    """

    def __init__(self, config: StreamConfig, *, clock: Callable[[], float] = time.time) -> None:
        self._config = config
        self._clock = clock
        self._version = version("embedstream")
        self._lock = threading.Lock()
        self._probes = Probes()
        self._state: State = "starting"
        self._reason = ""
        self._started_at = clock()
        self._beaten_at = clock()
        self._counts = StreamCounts()
        self._history = History()
        self._loads = 0
        self._last: tuple[int, float] | None = None
        self._read: dict[tuple[str, int], int] = {}
        self._topics: Mapping[str, TopicState] = {}
        self._lag = LagClock()
        self._newest_read: float | None = None
        self._asked_at = float("-inf")
        self._table = TableStatus(path=config.table.path)

    def follow(self, probes: Probes) -> None:
        """Ask these parts of the stream from now on."""
        self._probes = probes

    def note_state(self, state: State, reason: str = "") -> None:
        """Take over a state, and why it is stopped or failed."""
        with self._lock:
            self._state, self._reason = state, redact_prose(reason)

    def beat(self) -> None:
        """Note that the query runs and that the driver's main thread looks after it."""
        self._beaten_at = self._clock()
        if self._state == "starting":
            self.note_state("running")

    def add_batch(self, report: MicroBatchReport) -> None:
        """Take over a committed micro-batch."""
        end = report.committed_at or self._clock()
        latencies: dict[float, int] = {}
        for appended, count in report.appended.items():
            seconds = max(0.0, end - appended)
            latencies[seconds] = latencies.get(seconds, 0) + count
        work = Work(
            start=end - report.duration_s,
            end=end,
            embeddings=report.embeddings,
            failures=report.failures.total(),
            rows=report.rows,
            stage_seconds=report.stage_seconds,
        )
        with self._lock:
            self._last = report.batch_id, end
            self._counts.add(report, latencies)
            self._history.add(work, latencies)
            self._read.update(report.read)
            if report.appended:
                self._newest_read = max(self._newest_read or 0.0, *report.appended)
            self._note_lag()

    def set_read(self, offsets: Mapping[tuple[str, int], int]) -> None:
        """Take over the offset of each partition's next message.

        It is told where the stream starts, and after each micro-batch, also one without messages.
        """
        with self._lock:
            self._read.update(offsets)
            self._note_lag()

    def set_offsets(self, topics: Mapping[str, TopicState]) -> None:
        """Take over what Kafka holds now."""
        self._lag.add(topics, at=self._clock())
        with self._lock:
            self._topics = topics
            if self._read:
                # A partition that was added later is read from its start.
                for topic, state in topics.items():
                    for number, earliest in state.earliest.items():
                        self._read.setdefault((topic, number), earliest)
            self._note_lag()

    def note_table_version(self, number: int, committed_at: float) -> None:
        """Take over the table's newest version, and when it was committed."""
        table = TableStatus(
            path=self._config.table.path, version=number, last_commit=convert_time(committed_at)
        )
        with self._lock:
            self._table = table

    def read_status(self) -> Status:
        """Return what is known now."""
        probes, now = self._probes, self._clock()
        self._asked_at = now
        models, loss = probes.read_models(), probes.find_loss()
        index, publish = probes.read_index(), probes.read_publish()
        with self._lock:
            rates = self._history.measure_rates(now)
            last = self._last
            return Status(
                state=self._find_state(),
                reason=self._reason or loss,
                now=convert_time(now),
                started_at=convert_time(self._started_at),
                version=self._version,
                models=models,
                table=_advance(self._table, index, publish),
                index=index,
                publish=publish,
                partitions=tuple(self._list_partitions()),
                micro_batch=None if last is None else last[0],
                last_micro_batch=None if last is None else convert_time(last[1]),
                embeddings=self._counts.totals.embeddings,
                failures=dict(self._counts.totals.failures),
                deleted=self._counts.totals.deleted,
                cache_hits=self._counts.cache_hits,
                rows_per_s=rates.rows_per_s,
                stage_seconds={stage: rates.stage_seconds.get(stage, 0.0) for stage in STAGES},
                lag_s=self._measure_lag_s(now),
                append_to_commit=self._history.find_percentiles(now),
                point_s=POINT_S,
                history=self._history.list_points(now),
            )

    def read_counts(self) -> Samples:
        """Return the counters and histograms since the start."""
        loads = self._probes.count_loads()
        with self._lock:
            # While models are swapped the sum may lack some for a moment; a counter never falls.
            self._loads = max(self._loads, loads)
            return {**self._counts.build_samples(), MODEL_LOADS: {(): float(self._loads)}}

    @property
    def is_alive(self) -> bool:
        """Whether the driver's main thread makes its rounds and Spark's events reach it.

        A long micro-batch is no reason to doubt it, nor is one that a swap or a stop waits for.
        """
        if self._find_state() not in ("running", "stopping"):
            return True
        limit = _BEAT_S + self._config.trigger.stop_timeout_s
        return self._clock() - self._beaten_at <= limit and self._probes.is_listening()

    @property
    def is_ready(self) -> bool:
        """Whether the query runs and the claim is held."""
        return self._find_state() == "running" and not self._probes.find_loss()

    @property
    def is_watched(self) -> bool:
        """Whether the status was read a short while ago."""
        return self._clock() - self._asked_at < _WATCHED_S

    def _measure_lag_s(self, now: float) -> float | None:
        if not self._read:
            return None
        return self._lag.measure(self._read, now=now, newest_read=self._newest_read)

    def _find_state(self) -> State:
        is_stopping = self._state in ("starting", "running") and self._probes.is_stopping()
        return "stopping" if is_stopping else self._state

    def _note_lag(self) -> None:
        known = [one.lag for one in self._list_partitions() if one.lag is not None]
        if known:
            self._history.set_lag(self._clock(), sum(known))

    def _list_partitions(self) -> list[PartitionStatus]:
        keys = {(topic, number) for topic, state in self._topics.items() for number in state.end}
        return [self._describe_partition(*key) for key in sorted(keys | self._read.keys())]

    def _describe_partition(self, topic: str, number: int) -> PartitionStatus:
        state = self._topics.get(topic)
        earliest = None if state is None else state.earliest.get(number)
        end = None if state is None else state.end.get(number)
        read = self._read.get((topic, number))
        if read is not None and end is not None:
            # Kafka was asked earlier.
            end = max(end, read)
        return PartitionStatus(
            topic=topic,
            partition=number,
            read=read,
            end=end,
            earliest=earliest,
            lag=None if read is None or end is None else end - read,
            margin=None if read is None or earliest is None else max(0, read - earliest),
        )


def _advance(table: TableStatus, *followers: IndexStatus | PublishStatus | None) -> TableStatus:
    """Return the table with the version of those that follow it, if that was read later."""
    if table.version is None:
        return table
    found = (one.version for one in followers if one is not None and one.version is not None)
    return table.model_copy(update={"version": max((table.version, *found))})
