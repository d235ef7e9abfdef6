"""Decode on threads of this process, within bounds on threads and pixels."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from embedstream_core.media.image.decode import open_image
from embedstream_core.media.image.fast_jpeg import render_quickly
from embedstream_core.media.image.opened_image import OpenedImage, Picture
from embedstream_core.media.image.preprocessing import ImagePreprocessing
from embedstream_core.pipeline.watchdog import Watchdog
from embedstream_core.settings import DecodeSettings, Fidelity, PipelineLimits

__all__ = ["InProcessDecoder"]


@dataclass(kw_only=True)
class InProcessDecoder:
    """Decodes images in this process; many threads may share it.

    At most `threads` images and `limits.pixels` pixels are decoded at a time; a larger image is
    decoded alone. `watchdog` limits the time of each image to `limits.decode_timeout_s`.
    """

    preprocessing: ImagePreprocessing
    decode_limits: DecodeSettings
    fidelity: Fidelity
    limits: PipelineLimits
    threads: int
    watchdog: Watchdog

    def __post_init__(self) -> None:
        # Threads of its own: malloc keeps freed memory for the thread that allocated it, so each
        # thread that ever decoded would hold the memory of one image.
        self._threads = ThreadPoolExecutor(self.threads, thread_name_prefix="decode")
        self._free_pixels = self.limits.pixels
        self._freed = threading.Condition()
        self._first_in_line = threading.Lock()

    def decode(self, content: bytes) -> Picture:
        """Run `open_image` and `render_quickly`, which raise ItemError or MemoryError."""
        timeout_s = self.limits.decode_timeout_s
        with self.watchdog.watch("reading an image's header", timeout_s=timeout_s):
            opened = open_image(content, self.decode_limits)
        return self._threads.submit(self._render, content, opened).result()

    def _render(self, content: bytes, opened: OpenedImage) -> Picture:
        pixels = min(opened.width * opened.height, self.limits.pixels)
        # One thread at a time waits for pixels, so that smaller images do not overtake a large one.
        with self._first_in_line, self._freed:
            self._freed.wait_for(lambda: self._free_pixels >= pixels)
            self._free_pixels -= pixels
        try:
            # The time limit begins after the wait, which is not a hang.
            with self.watchdog.watch("decoding an image", timeout_s=self.limits.decode_timeout_s):
                return render_quickly(content, opened, self.preprocessing, fidelity=self.fidelity)
        finally:
            with self._freed:
                self._free_pixels += pixels
                self._freed.notify()

    def close(self) -> None:
        """End the threads."""
        self._threads.shutdown()
