"""A bound on the samples that are decoded ahead of the engines."""

from __future__ import annotations

import threading

__all__ = ["DecodedBudget"]


class DecodedBudget:
    """Bounds the bytes of samples that were decoded and not yet taken.

    An entry's samples may be far larger than its content: 600 s of silence are some kilobytes of
    FLAC and 38 MB of samples. Entries have positions, counted from 0, and are taken in this order.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._held = 0
        self._taken = 0
        self._changed = threading.Condition()

    def reserve(self, position: int, size: int) -> None:
        """Wait until there is room for an entry's samples, or until the entry is the next one."""
        with self._changed:
            # The next entry never waits, because nothing would make room for it.
            self._changed.wait_for(
                lambda: self._held + size <= self._limit or position <= self._taken
            )
            self._held += size

    def release(self, size: int) -> None:
        """Take the next entry."""
        with self._changed:
            self._held -= size
            self._taken += 1
            self._changed.notify_all()

    def close(self) -> None:
        """Let every thread go on: the run has ended."""
        with self._changed:
            self._taken = 2**63
            self._changed.notify_all()
