"""The limits of one fetch: its deadline, and its size while reading."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager
from itertools import chain
from threading import Semaphore
from typing import TypeVar

from embedstream_core.errors import Code, ItemError, Stage
from embedstream_core.fetch.encodings import decode_body
from embedstream_core.fetch.errors import TimedOut

__all__ = ["Clock", "Deadline", "read_within"]

Clock = Callable[[], float]
Result = TypeVar("Result")


class Deadline:
    """The end of one item's time; the methods raise REFERENCE_TIMEOUT when it has passed."""

    def __init__(self, timeout_s: float, clock: Clock = time.monotonic) -> None:
        self._clock = clock
        self._ends_at = clock() + timeout_s
        self._message = f"not complete after {timeout_s:g} s"

    @property
    def left_s(self) -> float:
        """The seconds left; negative after the deadline."""
        return self._ends_at - self._clock()

    def require_time_s(self) -> float:
        """Return the seconds left, which are positive."""
        if (left_s := self.left_s) > 0:
            return left_s
        raise TimedOut(self._message)

    def wait_for(self, future: Future[Result]) -> Result:
        """Return the result of `future`; cancel it at the deadline."""
        done, _ = wait((future,), timeout=self.require_time_s())
        if done:
            return future.result()
        future.cancel()
        raise TimedOut(self._message)

    @contextmanager
    def hold(self, semaphore: Semaphore) -> Iterator[None]:
        """Hold `semaphore`, after waiting for it."""
        if not semaphore.acquire(timeout=self.require_time_s()):
            raise TimedOut(self._message)
        try:
            yield
        finally:
            semaphore.release()


def read_within(
    chunks: Iterable[bytes],
    *,
    encoding: str = "",
    declared_bytes: int = 0,
    max_bytes: int,
    deadline: Deadline,
) -> bytes:
    """Return all bytes of `chunks`, decompressed as the Content-Encoding `encoding` says.

    The size and the deadline are checked after each chunk. `max_bytes` limits the body as it came,
    of `declared_bytes`, and what it is decompressed to.

    Raises:
        ItemError: REFERENCE_TOO_LARGE; nothing is read if `declared_bytes` is too large.
            REFERENCE_UNREADABLE: there is no reader for the encoding, or it is not the body's.
        TransientError: REFERENCE_TIMEOUT; REFERENCE_UNREADABLE if a compressed body is cut short.
    """

    def limit(parts: Iterable[bytes]) -> Iterator[bytes]:
        size = 0
        for part in chain((b"",), parts):
            size += len(part)
            if max(declared_bytes, size) > max_bytes:
                raise ItemError(
                    Code.REFERENCE_TOO_LARGE, Stage.FETCH, f"more than {max_bytes} bytes"
                )
            deadline.require_time_s()
            yield part

    return b"".join(limit(decode_body(limit(chunks), encoding)))
