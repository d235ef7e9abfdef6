"""The limits of one fetch: its deadline, and its size while reading."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future, wait
from typing import TypeVar

from embedstream_core.errors import TransientError
from embedstream_core.fetch import verdicts

__all__ = ["Clock", "Deadline", "read_within"]

Clock = Callable[[], float]
Result = TypeVar("Result")


class Deadline:
    """The end of one item's time, in seconds of a monotonic clock."""

    __slots__ = ("_clock", "_ends_at", "_timeout_s")

    def __init__(self, timeout_s: float, clock: Clock = time.monotonic) -> None:
        self._clock = clock
        self._timeout_s = timeout_s
        self._ends_at = clock() + timeout_s

    def left_s(self) -> float:
        """Seconds left, negative once it has passed."""
        return self._ends_at - self._clock()

    def remaining_s(self) -> float:
        """Seconds left, always positive; raises REFERENCE_TIMEOUT once there are none."""
        left_s = self.left_s()
        if left_s <= 0:
            raise self.error()
        return left_s

    def wait_for(self, future: Future[Result]) -> Result:
        """The result of `future`; REFERENCE_TIMEOUT, and the future left to itself, when late."""
        done, _ = wait((future,), timeout=self.remaining_s())
        if not done:
            future.cancel()
            raise self.error()
        return future.result()

    def error(self) -> TransientError:
        """REFERENCE_TIMEOUT, to raise."""
        return verdicts.timed_out(f"not complete after {self._timeout_s:g} s")


def read_within(chunks: Iterable[bytes], *, max_bytes: int, deadline: Deadline) -> bytes:
    """All bytes of `chunks`.

    Raises IMAGE_TOO_LARGE at the first chunk beyond `max_bytes`, and REFERENCE_TIMEOUT at the
    first one after the deadline.
    """
    content = bytearray()
    for chunk in chunks:
        content += chunk
        if len(content) > max_bytes:
            raise verdicts.too_large(max_bytes)
        deadline.remaining_s()
    return bytes(content)
