"""A call that hangs is reported once; a call that ends in time is left alone."""

from __future__ import annotations

import subprocess
import sys
import threading
import time

from embedstream_core.pipeline.watchdog import Watchdog

HANGS = """
import time
from embedstream_core.pipeline.watchdog import Watchdog
with Watchdog() as watchdog, watchdog.watch("decoding an image", timeout_s=0.5):
    time.sleep(60)
"""


def test_a_hang_is_reported_once() -> None:
    reported: list[str] = []
    hung = threading.Event()

    def on_hang(work: str) -> None:
        reported.append(work)
        hung.set()

    with Watchdog(on_hang) as watchdog, watchdog.watch("a forward pass", timeout_s=0.1):
        assert hung.wait(10)
        time.sleep(0.6)

    assert reported == ["a forward pass took over 0.1 s"]


def test_a_call_that_ends_in_time_is_left_alone() -> None:
    reported: list[str] = []

    with Watchdog(reported.append) as watchdog:
        for _ in range(50):
            with watchdog.watch("decoding an image", timeout_s=0.3):
                time.sleep(0.02)

    assert reported == []


def test_a_process_that_hangs_is_killed_with_a_message() -> None:
    process = subprocess.run(
        [sys.executable, "-c", HANGS], capture_output=True, text=True, timeout=30, check=False
    )

    assert process.returncode == -9
    assert "decoding an image took over 0.5 s: this worker is killed" in process.stderr
