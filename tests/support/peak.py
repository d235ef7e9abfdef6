"""How many threads are in the same block at once."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["Peak"]


class Peak:
    """Counts the threads between entering and leaving; `most` is the largest number so far."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = self.most = 0

    @contextmanager
    def enter(self) -> Iterator[None]:
        with self._lock:
            self._inside += 1
            self.most = max(self.most, self._inside)
        try:
            yield
        finally:
            with self._lock:
                self._inside -= 1
