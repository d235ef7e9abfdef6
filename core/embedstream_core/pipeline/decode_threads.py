"""Decode on threads of this process, within bounds on threads and memory."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

from embedstream_core.media.image.decode import apply_orientation
from embedstream_core.media.image.fast_jpeg import Crop, find_crops, render_quickly
from embedstream_core.media.image.gpu_jpeg import BatchDecoder, CheckedJpeg, check_jpeg
from embedstream_core.media.image.modality import ImageModality
from embedstream_core.media.image.opened_image import OpenedImage
from embedstream_core.media.image.preprocessing import ImagePreprocessing
from embedstream_core.media.modalities import MODALITIES, Inputs
from embedstream_core.media.modality import Header, Modality, Sample
from embedstream_core.pipeline.jpeg_batches import WAITING, JpegBatches
from embedstream_core.pipeline.watchdog import Watchdog
from embedstream_core.settings import DecodeSettings, ModalityName, PipelineLimits

__all__ = ["InProcessDecoder"]

_IMAGE = ImageModality(render_quickly)
_MODALITIES: Mapping[ModalityName, Modality[Any, Any]] = {**MODALITIES, "image": _IMAGE}

# The hop to another thread takes 0.1 ms, which is more than tokenizing a short text; what is
# decoded of so little leaves no memory behind that matters.
_SMALL_ELEMENTS = 100_000


@dataclass(kw_only=True)
class InProcessDecoder:
    """Decodes in this process; many threads may share it.

    At most `threads` contents and `limits.pixels` pixels or samples are decoded at a time; a larger
    content is decoded alone. `watchdog` limits the time of each to `limits.decode_timeout_s`.
    `measure` encloses the work on a content, without the wait for a turn. `batch_decoder` gets the
    common JPEGs, in batches; those that it refuses are decoded like everything else.
    """

    inputs: Inputs
    settings: DecodeSettings
    limits: PipelineLimits
    threads: int
    watchdog: Watchdog
    measure: Callable[[], AbstractContextManager[object]] = nullcontext
    batch_decoder: BatchDecoder | None = None

    def __post_init__(self) -> None:
        # Threads of its own: malloc keeps freed memory for the thread that allocated it, so each
        # thread that ever decoded would hold the memory of one image.
        self._threads = ThreadPoolExecutor(self.threads, thread_name_prefix="decode")
        self._free = self.limits.pixels
        self._freed = threading.Condition()
        self._first_in_line = threading.Lock()
        self._batches: JpegBatches | None = None
        if self.batch_decoder is not None:
            watch = partial(self._watch, "decoding a batch of JPEGs")
            self._batches = JpegBatches(self.batch_decoder, watch=watch, measure=self.measure)

    @property
    def waiting(self) -> int:
        """How many threads may wait in `decode` for a batch, besides those that decode."""
        return WAITING if self._batches else 0

    def decode(self, content: bytes, modality: ModalityName) -> list[Sample]:
        """Decode for each preprocessing of the modality; raise ItemError or MemoryError."""
        with self._watch(f"reading a header of {modality}"), self.measure():
            header = _MODALITIES[modality].identify(content, self.settings)
        if modality == "text" and header.elements <= _SMALL_ELEMENTS:
            return self._decode_opened(content, modality, header)
        if self._batches and modality == "image":
            samples = self._decode_in_batch(self._batches, content, header)
            if samples is not None:
                return samples
        return self._threads.submit(self._decode_in_turn, content, modality, header).result()

    def _decode_in_batch(
        self, batches: JpegBatches, content: bytes, opened: OpenedImage
    ) -> list[Sample] | None:
        """Decode an image on the GPU, unless it is for the CPU."""
        preprocessings = cast("Sequence[ImagePreprocessing]", self.inputs["image"])
        crops = find_crops(opened, preprocessings, self.settings.fidelity)
        if crops is None:
            return None
        # Before it takes its share of memory: a decoding thread may wait for that.
        jpeg = self._threads.submit(self._check, content, opened, crops).result()
        if jpeg is None:
            return None
        with self._take_memory(opened.elements):
            rendered = batches.submit(jpeg).result()
            if rendered is None:
                return None
            # The pixels of one image must not keep those of its batch in memory.
            copies = [apply_orientation(one.copy(), opened.orientation) for one in rendered]
        media = _IMAGE.describe(opened)
        return [Sample((pixels,), media) for pixels in copies]

    def _check(
        self, content: bytes, opened: OpenedImage, crops: Sequence[Crop]
    ) -> CheckedJpeg | None:
        with self._watch("checking a JPEG"), self.measure():
            return check_jpeg(content, opened, crops)

    def _decode_in_turn(
        self, content: bytes, modality: ModalityName, header: Header
    ) -> list[Sample]:
        with self._take_memory(header.elements):
            return self._decode_opened(content, modality, header)

    @contextmanager
    def _take_memory(self, elements: int) -> Iterator[None]:
        """Wait for a content's share of `limits.pixels`, and hold it in the `with` block."""
        elements = min(elements, self.limits.pixels)
        # One thread at a time waits for memory, so that smaller contents do not overtake a large
        # one.
        with self._first_in_line, self._freed:
            self._freed.wait_for(lambda: self._free >= elements)
            self._free -= elements
        try:
            yield
        finally:
            with self._freed:
                self._free += elements
                self._freed.notify()

    def _decode_opened(
        self, content: bytes, modality: ModalityName, header: Header
    ) -> list[Sample]:
        # The time limit begins after the wait, which is not a hang.
        with self._watch(f"decoding {modality}"), self.measure():
            return _MODALITIES[modality].decode(
                content, header, self.inputs[modality], self.settings
            )

    def _watch(self, work: str) -> AbstractContextManager[None]:
        return self.watchdog.watch(work, timeout_s=self.limits.decode_timeout_s)

    def close(self) -> None:
        """End the threads."""
        self._threads.shutdown()
        if self._batches:
            self._batches.close()
