"""What embedstream logs on the workers, brought to the driver's log by an accumulator."""

from __future__ import annotations

import json
import logging
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from pyspark import Accumulator, AccumulatorParam, TaskContext
from pyspark.sql import SparkSession

from embedstream.logs.events import OWN_LOGGERS
from embedstream.logs.formats import JsonFormatter
from embedstream.logs.remote import handle_object
from embedstream.spark.connect import is_connect

__all__ = ["MAX_CHARACTERS", "MAX_RECORDS", "WorkerLog"]

MAX_RECORDS = 20
"""The records of a task that reach the driver."""

MAX_CHARACTERS = 8_000
"""The length of a message or a traceback there; of a traceback the end is kept."""

_log = logging.getLogger(__name__)

_Records = tuple[dict[str, Any], ...]


class _DriversLog(tuple[dict[str, Any], ...]):
    """The accumulator's value on the driver: it stays empty, as records go to the log at once."""

    __slots__ = ()


class _Forward(AccumulatorParam[_Records]):
    def zero(self, value: _Records) -> _Records:
        return ()

    def addInPlace(self, value1: _Records, value2: _Records) -> _Records:  # noqa: N802
        if not isinstance(value1, _DriversLog):
            return (*value1, *value2)
        for record in value2:
            handle_object(record)
        return value1


@dataclass(frozen=True)
class WorkerLog:
    """Collects records of warnings and errors on the workers; the driver logs them again.

    It gets those of each task that succeeds, once. The executor's standard error has all of them.
    """

    _records: Accumulator[_Records]

    @classmethod
    def start(cls, spark: SparkSession) -> WorkerLog | None:
        """Return a log; None over Spark Connect, which has no accumulators."""
        if is_connect(spark):
            return None
        return cls(spark.sparkContext.accumulator(_DriversLog(), _Forward()))

    @contextmanager
    def collect(self) -> Iterator[None]:
        """Collect this task's records while the context lasts; called on the task's own thread."""
        handler = _Collector()
        loggers = [logging.getLogger(name) for name in OWN_LOGGERS]
        for logger in loggers:
            logger.addHandler(handler)
        try:
            yield
        finally:
            for logger in loggers:
                logger.removeHandler(handler)
            if handler.left_out:
                handler.add_note(f"{handler.left_out} more records are in this executor's log")
            self._records.add(tuple(handler.lines))


class _Collector(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.setFormatter(JsonFormatter())
        self.lines: list[dict[str, Any]] = []
        self.left_out = 0
        self._origin = _describe_task()

    def emit(self, record: logging.LogRecord) -> None:
        try:
            # Spark has set up no handler here, and this one would keep the last resort away.
            if logging.lastResort is not None and not logging.getLogger().handlers:
                logging.lastResort.handle(record)
            if len(self.lines) < MAX_RECORDS:
                self._add(record)
            else:
                self.left_out += 1
        except Exception:
            self.handleError(record)

    def add_note(self, text: str) -> None:
        """Add a warning of this module."""
        self._add(_log.makeRecord(_log.name, logging.WARNING, __file__, 0, text, (), None))

    def _add(self, record: logging.LogRecord) -> None:
        line = json.loads(self.format(record))
        line["message"] = line["message"][:MAX_CHARACTERS]
        if "exception" in line:
            line["exception"] = line["exception"][-MAX_CHARACTERS:]
        fields = line.get("fields", {})
        line["fields"] = {name: _shorten(one) for name, one in fields.items()} | self._origin
        self.lines.append(line)


def _shorten(value: object) -> object:
    return value[:MAX_CHARACTERS] if isinstance(value, str) else value


def _describe_task() -> dict[str, object]:
    task = TaskContext.get()
    origin: dict[str, object] = {"host": socket.gethostname()}
    if task is not None:
        origin |= {
            "stage": task.stageId(),
            "partition": task.partitionId(),
            "attempt": task.attemptNumber(),
        }
    return origin
