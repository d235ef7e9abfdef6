"""Decoding on threads of this process, within bounds on threads and pixels."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext

from embedstream_core.media.image.decode import Picture, Preprocessing, open_image
from embedstream_core.media.image.fast_jpeg import render_quickly
from embedstream_core.pipeline.watchdog import Watchdog
from embedstream_core.settings import DecodeLimits, Fidelity

__all__ = ["InProcessDecoder"]


class InProcessDecoder:
    """Decodes images for many threads at once; the counterpart of `IsolatedDecoder`.

    At most `threads` images and `pixels` pixels are decoded at a time; a larger image is decoded
    alone. `watchdog` ends the process when one image takes longer than `timeout_s`.
    """

    def __init__(
        self,
        preprocessing: Preprocessing,
        limits: DecodeLimits,
        *,
        fidelity: Fidelity,
        threads: int,
        pixels: int,
        timeout_s: float,
        watchdog: Watchdog | None,
    ) -> None:
        self._preprocessing = preprocessing
        self._limits = limits
        self._fidelity = fidelity
        self._timeout_s = timeout_s
        self._watchdog = watchdog
        self._gate = _Gate(threads=threads, pixels=pixels)
        # Of their own: malloc keeps what was freed for the thread that asked for it, so that each
        # thread that ever decoded would hold a picture's memory.
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="decode")

    def decode(self, content: bytes) -> Picture:
        """Do what `open_image` and `render` do.

        Raises:
            ItemError: the image is refused.
            MemoryError: this process has too little for it.
        """
        with self._watch("reading an image's header"):
            opened = open_image(content, self._limits)
        # Waiting for a turn is no hang, so the watch begins after it.
        turn = self._gate.admit(opened.width * opened.height)
        with turn, self._watch("decoding an image"):
            return self._threads.submit(
                render_quickly, content, opened, self._preprocessing, fidelity=self._fidelity
            ).result()

    def close(self) -> None:
        """End the threads."""
        self._threads.shutdown()

    def _watch(self, work: str) -> AbstractContextManager[None]:
        if self._watchdog is None:
            return nullcontext()
        return self._watchdog.watch(work, timeout_s=self._timeout_s)


class _Gate:
    """Admits work in the order of its arrival, while threads and pixels are within bounds.

    Each waits for a turn of its own: woken all at once, they would spend more than the decoding.
    """

    def __init__(self, *, threads: int, pixels: int) -> None:
        self._free_threads, self._free_pixels, self._all_pixels = threads, pixels, pixels
        self._waiting: deque[tuple[int, threading.Lock]] = deque()
        self._changing = threading.Lock()

    @contextmanager
    def admit(self, pixels: int) -> Iterator[None]:
        """Wait for a turn, and hold it within."""
        taken = min(pixels, self._all_pixels)
        turn = threading.Lock()
        turn.acquire()
        with self._changing:
            self._waiting.append((taken, turn))
            self._give_turns()
        turn.acquire()
        try:
            yield
        finally:
            with self._changing:
                self._free_threads += 1
                self._free_pixels += taken
                self._give_turns()

    def _give_turns(self) -> None:
        while self._waiting and self._free_threads > 0:
            taken, turn = self._waiting[0]
            if taken > self._free_pixels:
                return
            self._waiting.popleft()
            self._free_threads -= 1
            self._free_pixels -= taken
            turn.release()
