"""The topics are read again and again, whatever Kafka does."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from embedstream.kafka.topic_watch import TopicWatch
from embedstream.kafka.topics import TopicState
from embedstream_core.errors import SetupError


@dataclass
class Kafka:
    """A topic whose end moves on with each request."""

    requests: int = 0
    error: Exception | None = None
    asked: threading.Event = field(default_factory=threading.Event)

    def __call__(self) -> dict[str, TopicState]:
        self.requests += 1
        self.asked.set()
        if self.error is not None:
            raise self.error
        return {"images": TopicState("id", {0: 0}, {0: self.requests})}


def test_the_topics_are_read_at_once_in_a_thread_that_ends() -> None:
    kafka, seen = Kafka(), threading.Event()
    watch = TopicWatch(kafka, on_read=lambda topics: seen.set())
    assert watch.latest is None
    with watch:
        assert seen.wait(10)
        assert watch.latest == {"images": TopicState("id", {0: 0}, {0: 1})}
        (thread,) = (one for one in threading.enumerate() if one.name == "topics")
        assert thread.daemon
    assert not thread.is_alive()


@pytest.mark.parametrize(("watched", "due"), [(True, [10, 20]), (False, [30])])
def test_topics_are_read_more_often_while_someone_looks(watched: bool, due: list[int]) -> None:
    now = 0.0
    watch = TopicWatch(Kafka(), is_watched=lambda: watched, clock=lambda: now)
    watch.read()
    found = []
    for second in range(1, 22 if watched else 31):
        now = float(second)
        if watch.is_due:
            found.append(second)
            watch.read()
    assert found == due


def test_readings_that_take_long_are_fewer() -> None:
    now = 0.0

    def read_slowly() -> dict[str, TopicState]:
        nonlocal now
        now += 0.2
        return {}

    watch = TopicWatch(read_slowly, is_watched=lambda: True, clock=lambda: now)
    watch.read()
    now = 19.9
    assert not watch.is_due
    now = 20.0
    assert watch.is_due


def fail_to_show(topics: object) -> None:
    raise RuntimeError("no page")


@pytest.mark.parametrize(
    ("error", "on_read", "begun", "ended"),
    [
        (
            SetupError("no Kafka broker answers"),
            lambda topics: None,
            "the topics cannot be read, and it is tried again: no Kafka broker answers",
            "the topics cannot be read: this is over",
        ),
        (
            None,
            fail_to_show,
            "the state of the topics cannot be shown, and it is tried again: no page",
            "the state of the topics cannot be shown, and it is tried again: no page",
        ),
    ],
    ids=["kafka", "observer"],
)
def test_trouble_is_logged_once(
    error: Exception | None,
    on_read: Callable[[object], None],
    begun: str,
    ended: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "embedstream")
    kafka = Kafka(error=error)
    watch = TopicWatch(kafka, on_read=on_read)
    for _ in range(3):
        watch.read()
    assert caplog.messages == [begun]
    kafka.error = None
    watch.read()
    assert caplog.messages[-1] == ended
    assert watch.latest is not None
