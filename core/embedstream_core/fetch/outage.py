"""Tells an outage, which is no reference's fault, from references that fail one by one."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from embedstream_core.errors import Code, ItemError, SystemicError, TransientError

__all__ = ["Outage"]


class Outage:
    """Counts the fetches that failed in a row for passing reasons; shared by threads.

    Any answer ends the row, be it a refusal: somebody is there. `limit` of them are an outage;
    None knows none.
    """

    def __init__(self, limit: int | None) -> None:
        self._limit = limit
        self._in_a_row = 0
        self._lock = threading.Lock()

    @contextmanager
    def watched(self) -> Iterator[None]:
        """One fetch, with its retries.

        Raises SystemicError in the place of a TransientError while there is an outage.
        """
        try:
            yield
        except TransientError as error:
            self._count(error)
            raise
        except ItemError as error:
            # What the policy denies was not asked for.
            if error.code is not Code.REFERENCE_DENIED:
                self._end()
            raise
        self._end()

    def _count(self, error: TransientError) -> None:
        with self._lock:
            self._in_a_row += 1
            count = self._in_a_row
        if self._limit is not None and count >= self._limit:
            # Not chained: what botocore and httpcore say may hold the whole reference.
            raise SystemicError(
                f"an outage: {count} references in a row could not be fetched, the last since "
                f"{error.message}; they are tried again, and none becomes a failure row, while "
                f"references.outage_after is {self._limit}"
            ) from None

    def _end(self) -> None:
        with self._lock:
            self._in_a_row = 0
