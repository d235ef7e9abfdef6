"""A query that fails while it is being stopped is reported, not taken for one that has finished."""

from __future__ import annotations

from threading import Event
from types import SimpleNamespace
from typing import Any

import pytest
from pyspark.errors import StreamingQueryException

from embedstream.stream.job import stop_stream
from embedstream.stream.queries import run_queries


class Query:
    """A query whose micro-batch in flight fails; as in Spark, `stop` does not raise that."""

    def __init__(self) -> None:
        self.isActive = True
        self.lastProgress: Any = None

    @property
    def status(self) -> dict[str, bool]:
        self.isActive = False
        return {"isTriggerActive": True}

    def stop(self) -> None:
        self.isActive = False

    def awaitTermination(self) -> None:  # noqa: N802
        raise StreamingQueryException("the disk is full")


def test_a_query_that_fails_while_it_is_stopped_raises_its_error() -> None:
    query: Any = Query()
    with pytest.raises(StreamingQueryException, match="the disk is full"):
        stop_stream(query, timeout_s=10)


def test_the_command_ends_with_the_error_of_a_query_that_fails_while_it_is_stopped() -> None:
    config: Any = SimpleNamespace(trigger=SimpleNamespace(stop_timeout_s=10.0))
    stream: Any = SimpleNamespace(query=Query())
    desk: Any = SimpleNamespace(start=lambda: stream, can_go_back=False)
    unused: Any = SimpleNamespace()
    stop = Event()
    stop.set()
    with pytest.raises(StreamingQueryException, match="the disk is full"):
        run_queries(unused, config, desk, stop, unused)
