"""Distinguish an outage of a server or the network from single references that fail."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from embedstream_core.errors import Code, ItemError, SystemicError, TransientError

__all__ = ["Outage"]


class Outage:
    """Counts the consecutive fetches that failed with a TransientError; shared by threads.

    Any response, even an error, resets the counter. At `limit` failures there is an outage; None
    disables the check.
    """

    def __init__(self, limit: int | None) -> None:
        self._limit = limit
        self._failures = 0
        self._lock = threading.Lock()

    @contextmanager
    def watch(self) -> Iterator[None]:
        """Enclose one fetch with its retries; raise SystemicError if it fails in an outage."""
        try:
            yield
        except TransientError as error:
            failures = self._count(failed=True)
            if self._limit is None or failures < self._limit:
                raise
            # Not chained: the texts of botocore and httpcore may hold the whole reference.
            raise SystemicError(
                f"an outage: {failures} references in a row could not be fetched, the last since "
                f"{error.message}; they are tried again, and none becomes a failure row, while "
                f"references.outage_after is {self._limit}"
            ) from None
        except ItemError as error:
            # For a denied reference nothing was contacted.
            if error.code is not Code.REFERENCE_DENIED:
                self._count(failed=False)
            raise
        self._count(failed=False)

    def _count(self, *, failed: bool) -> int:
        with self._lock:
            self._failures = self._failures + 1 if failed else 0
            return self._failures
