"""A clock that stands still while a benchmark's driver has this process stopped.

CLOCK_MONOTONIC, and so `time.perf_counter`, goes on while a process is stopped by SIGSTOP. The
driver writes the sum of the pauses to a file before it sends SIGCONT, and the process subtracts it.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

__all__ = ["PAUSED_FILE", "read_active_s", "write_paused_s"]

PAUSED_FILE = "BENCHMARK_PAUSED"
"""The environment variable with the file's path; without it no pause is subtracted."""


def read_active_s() -> float:
    """Return seconds since some fixed time, without the pauses."""
    path = os.getenv(PAUSED_FILE)
    if path is None:
        return time.perf_counter()
    while True:
        paused_s = _read_paused_s(Path(path))
        now = time.perf_counter()
        # Otherwise a pause came between the two.
        if _read_paused_s(Path(path)) == paused_s:
            return now - paused_s


def write_paused_s(path: Path, seconds: float) -> None:
    """Set the sum of the pauses; the process must be stopped, or not yet started."""
    path.write_text(repr(seconds))


def _read_paused_s(path: Path) -> float:
    return float(path.read_text())
