"""Signals that a command waits for."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

__all__ = ["catch_reload_signal", "catch_stop_signals"]


@contextmanager
def catch_stop_signals() -> Iterator[threading.Event]:
    """Yield an event that SIGINT and SIGTERM set; a second signal acts as usual."""
    stop = threading.Event()
    previous = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def restore() -> None:
        for number, handler in previous.items():
            signal.signal(number, handler)

    def request_stop(number: int, frame: FrameType | None) -> None:
        stop.set()
        restore()

    for number in previous:
        signal.signal(number, request_stop)
    try:
        yield stop
    finally:
        restore()


@contextmanager
def catch_reload_signal() -> Iterator[threading.Event]:
    """Yield an event that SIGHUP sets, each time that it comes."""
    reload = threading.Event()
    previous = signal.signal(signal.SIGHUP, lambda number, frame: reload.set())
    try:
        yield reload
    finally:
        signal.signal(signal.SIGHUP, previous)
