"""Offsets go to a consumer group on a thread that delays nothing."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping

import pytest

from embedstream.kafka import group
from embedstream.kafka.group import GroupCommitter
from embedstream_core.errors import SetupError

Offsets = Mapping[tuple[str, int], int]

PATIENCE_S = 10


class Group:
    """A consumer group: each commit waits until it may end, and may fail."""

    def __init__(self, *errors: Exception | None) -> None:
        self.commits: list[dict[tuple[str, int], int]] = []
        self.began = threading.Semaphore(0)
        self.may_end = threading.Semaphore(0)
        self._errors = list(errors)

    def __call__(self, offsets: Offsets) -> None:
        self.commits.append(dict(offsets))
        self.began.release()
        assert self.may_end.acquire(timeout=PATIENCE_S)
        if self._errors and (error := self._errors.pop(0)) is not None:
            raise error


def test_offsets_that_come_during_a_commit_are_committed_together() -> None:
    found = Group()
    found.may_end.release(10)
    slow = Group()
    with GroupCommitter(slow) as committer:
        committer.put({("images", 0): 1})
        assert slow.began.acquire(timeout=PATIENCE_S)
        started = time.monotonic()
        for offset in range(2, 100):
            committer.put({("images", 0): offset, ("images", 1): offset})
        committer.put({("images", 0): 100})
        assert time.monotonic() - started < 1
        slow.may_end.release(2)
    assert slow.commits == [{("images", 0): 1}, {("images", 0): 100, ("images", 1): 99}]


def test_what_is_due_at_the_end_is_committed() -> None:
    found = Group()
    found.may_end.release(10)
    with GroupCommitter(found) as committer:
        committer.put({("images", 0): 5})
    assert found.commits == [{("images", 0): 5}]


def test_without_offsets_nothing_is_committed() -> None:
    found = Group()
    with GroupCommitter(found) as committer:
        committer.put({})
    assert found.commits == []


def test_failures_are_logged_once_and_tried_again(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(group, "_RETRY_S", 0.01)
    refused = SetupError("the consumer group 'g' has active members")
    found = Group(refused, refused, refused, None)
    with GroupCommitter(found) as committer:
        committer.put({("images", 0): 5})
        for _ in range(4):
            found.may_end.release()
            assert found.began.acquire(timeout=PATIENCE_S)
    assert found.commits == [{("images", 0): 5}] * 4
    assert caplog.messages == [
        "the consumer group's offsets are not committed, and it is tried again: "
        "the consumer group 'g' has active members",
        "the consumer group's offsets are not committed: this is over",
    ]
    assert {one.levelno for one in caplog.records} == {logging.WARNING}


def test_a_group_that_refuses_does_not_hold_up_the_end() -> None:
    found = Group(*[SetupError("no")] * 5)
    found.may_end.release(10)
    started = time.monotonic()
    with GroupCommitter(found) as committer:
        committer.put({("images", 0): 5})
        assert found.began.acquire(timeout=PATIENCE_S)
    assert time.monotonic() - started < 5
