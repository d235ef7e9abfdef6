"""Kill a process whose work hangs: nothing else stops a call that does not return."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Self

__all__ = ["Watchdog", "kill_process"]

_log = logging.getLogger(__name__)

_INTERVAL_S = 0.25


def kill_process(reason: str) -> None:
    """Log the reason, then kill this process at once."""
    _log.critical("embedstream: %s: this worker is killed and its task is retried", reason)
    os.kill(os.getpid(), signal.SIGKILL)


class Watchdog(threading.Thread):
    """Limits the time of calls on any thread, while it is open as a context manager.

    When a call exceeds its `timeout_s`, this thread calls `on_hang` once, with a sentence about the
    call, and ends.
    """

    def __init__(self, on_hang: Callable[[str], None] = kill_process) -> None:
        super().__init__(name="watchdog", daemon=True)
        self._on_hang = on_hang
        self._deadlines: dict[object, tuple[float, str]] = {}
        self._closed = threading.Event()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closed.set()
        self.join()

    @contextmanager
    def watch(self, work: str, *, timeout_s: float) -> Iterator[None]:
        """Limit the time of the `with` block; `work` names it, as in "decoding an image"."""
        key = object()
        # Setting and removing one key needs no lock: the thread reads a copy.
        self._deadlines[key] = (time.monotonic() + timeout_s, f"{work} took over {timeout_s:g} s")
        try:
            yield
        finally:
            del self._deadlines[key]

    def run(self) -> None:
        """Check the deadlines until one is exceeded, or the watchdog is closed."""
        while not self._closed.wait(_INTERVAL_S):
            now = time.monotonic()
            for deadline, reason in list(self._deadlines.values()):
                if deadline < now:
                    self._on_hang(reason)
                    return
