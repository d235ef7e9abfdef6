"""Decode on threads of this process, within bounds on threads and memory."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

from embedstream_core.media.image.fast_jpeg import render_quickly
from embedstream_core.media.image.modality import ImageModality
from embedstream_core.media.modalities import MODALITIES, Inputs
from embedstream_core.media.modality import Header, Modality, Sample
from embedstream_core.pipeline.watchdog import Watchdog
from embedstream_core.settings import DecodeSettings, ModalityName, PipelineLimits

__all__ = ["InProcessDecoder"]

_MODALITIES: Mapping[ModalityName, Modality[Any, Any]] = {
    **MODALITIES,
    "image": ImageModality(render_quickly),
}

# The hop to another thread takes 0.1 ms, which is more than tokenizing a short text; what is
# decoded of so little leaves no memory behind that matters.
_SMALL_ELEMENTS = 100_000


@dataclass(kw_only=True)
class InProcessDecoder:
    """Decodes in this process; many threads may share it.

    At most `threads` contents and `limits.pixels` pixels or samples are decoded at a time; a larger
    content is decoded alone. `watchdog` limits the time of each to `limits.decode_timeout_s`.
    `measure` encloses the work on a content, without the wait for a turn.
    """

    inputs: Inputs
    settings: DecodeSettings
    limits: PipelineLimits
    threads: int
    watchdog: Watchdog
    measure: Callable[[], AbstractContextManager[object]] = nullcontext

    def __post_init__(self) -> None:
        # Threads of its own: malloc keeps freed memory for the thread that allocated it, so each
        # thread that ever decoded would hold the memory of one image.
        self._threads = ThreadPoolExecutor(self.threads, thread_name_prefix="decode")
        self._free = self.limits.pixels
        self._freed = threading.Condition()
        self._first_in_line = threading.Lock()

    def decode(self, content: bytes, modality: ModalityName) -> list[Sample]:
        """Decode for each preprocessing of the modality; raise ItemError or MemoryError."""
        timeout_s = self.limits.decode_timeout_s
        work = f"reading a header of {modality}"
        with self.watchdog.watch(work, timeout_s=timeout_s), self.measure():
            header = _MODALITIES[modality].identify(content, self.settings)
        if modality == "text" and header.elements <= _SMALL_ELEMENTS:
            return self._decode_opened(content, modality, header)
        return self._threads.submit(self._decode_in_turn, content, modality, header).result()

    def _decode_in_turn(
        self, content: bytes, modality: ModalityName, header: Header
    ) -> list[Sample]:
        elements = min(header.elements, self.limits.pixels)
        # One thread at a time waits for memory, so that smaller contents do not overtake a large
        # one.
        with self._first_in_line, self._freed:
            self._freed.wait_for(lambda: self._free >= elements)
            self._free -= elements
        try:
            return self._decode_opened(content, modality, header)
        finally:
            with self._freed:
                self._free += elements
                self._freed.notify()

    def _decode_opened(
        self, content: bytes, modality: ModalityName, header: Header
    ) -> list[Sample]:
        # The time limit begins after the wait, which is not a hang.
        timeout_s = self.limits.decode_timeout_s
        with self.watchdog.watch(f"decoding {modality}", timeout_s=timeout_s), self.measure():
            return _MODALITIES[modality].decode(
                content, header, self.inputs[modality], self.settings
            )

    def close(self) -> None:
        """End the threads."""
        self._threads.shutdown()
