"""Ends a process whose work hangs, for nothing else stops a call that does not return."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Self

__all__ = ["Watchdog", "end_process"]

_INTERVAL_S = 0.25


def end_process(work: str) -> None:
    """Say why on standard error, then end this process at once."""
    print(f"embedstream: {work}: this worker is ended, its task is done again", file=sys.stderr)
    sys.stderr.flush()
    os.kill(os.getpid(), signal.SIGKILL)


class Watchdog:
    """Watches over pieces of work on any thread, while it is open.

    `on_hang` is called once, from a thread of its own, with a sentence about the work that took
    longer than its `timeout_s`.
    """

    def __init__(self, on_hang: Callable[[str], None] = end_process) -> None:
        self._on_hang = on_hang
        self._watched: dict[object, tuple[float, str]] = {}
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="watchdog", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    @contextmanager
    def watch(self, work: str, *, timeout_s: float) -> Iterator[None]:
        """Watch over what is done within."""
        piece = object()
        # Setting and removing one key needs no lock: the thread looks at a copy.
        self._watched[piece] = (time.monotonic() + timeout_s, f"{work} took over {timeout_s:g} s")
        try:
            yield
        finally:
            del self._watched[piece]

    def _run(self) -> None:
        with self._changed:
            while not self._closed:
                now = time.monotonic()
                late = [work for end, work in list(self._watched.values()) if end < now]
                if late:
                    self._on_hang(late[0])
                    return
                self._changed.wait(_INTERVAL_S)
