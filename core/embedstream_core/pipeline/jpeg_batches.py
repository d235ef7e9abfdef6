"""JPEGs of many threads, decoded in batches on a GPU by one thread."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager
from dataclasses import KW_ONLY, dataclass
from queue import Empty, SimpleQueue
from typing import Final, TypeAlias

import torch

from embedstream_core.engine.gpu_errors import build_gpu_failure, is_gpu_failure, is_out_of_memory
from embedstream_core.errors import EmbedstreamError, SetupError
from embedstream_core.media.image.gpu_jpeg import BatchDecoder, CheckedJpeg, open_gpu_decoder
from embedstream_core.media.image.opened_image import Pixels
from embedstream_core.settings import DecodeSettings

__all__ = ["WAITING", "JpegBatches", "open_batch_decoder"]

_log = logging.getLogger(__name__)

# Not measured: torchvision's own figures for an A100 are 7,700 images/s in batches of 100, and
# 7,800 in batches of 1,000 (pytorch/vision#8496).
_BATCH_SIZE = 64

WAITING: Final = 2 * _BATCH_SIZE
"""The number of callers that fill a batch while another one is decoded."""

_Request: TypeAlias = tuple[CheckedJpeg, "Future[list[Pixels] | None]"]


def open_batch_decoder(
    settings: DecodeSettings, devices: Sequence[torch.device]
) -> BatchDecoder | None:
    """Return the decoder on the GPU of the first engine that has one; None if the CPU decodes.

    Raises:
        SetupError: no engine runs on a GPU, or it cannot decode.
    """
    if settings.device == "cpu":
        return None
    for device in devices:
        if device.type == "cuda":
            return open_gpu_decoder(device)
    raise SetupError(
        "decode.device is cuda, but no encoder runs on a GPU; set encoder.device to cuda, or "
        "decode.device to cpu"
    )


@dataclass(eq=False)
class JpegBatches:
    """Decodes what many threads wait for; memory is bounded by what these hand over at a time.

    A batch is whatever waits when the GPU is free, so that no image waits for others to come.
    `watch` and `measure` enclose each call of the decoder.
    """

    decoder: BatchDecoder
    _: KW_ONLY
    watch: Callable[[], AbstractContextManager[None]]
    measure: Callable[[], AbstractContextManager[object]]

    def __post_init__(self) -> None:
        self._requests: SimpleQueue[_Request | None] = SimpleQueue()
        self._has_warned = False
        self._thread = threading.Thread(target=self._answer_all, name="decode-batches", daemon=True)
        self._thread.start()

    def submit(self, jpeg: CheckedJpeg) -> Future[list[Pixels] | None]:
        """Return the future crops of a JPEG, or None if the GPU does not decode it.

        Raises, from the future:
            SystemicError: the GPU failed. Every later call in this process would fail too.
            MemoryError: this process has too little.
        """
        result: Future[list[Pixels] | None] = Future()
        self._requests.put((jpeg, result))
        return result

    def close(self) -> None:
        """End the thread; no caller may wait for it any more."""
        self._requests.put(None)
        self._thread.join()

    def _answer_all(self) -> None:
        while (first := self._requests.get()) is not None:
            batch = [first]
            while len(batch) < _BATCH_SIZE:
                try:
                    request = self._requests.get_nowait()
                except Empty:
                    break
                if request is None:
                    self._requests.put(None)
                    break
                batch.append(request)
            try:
                rendered = self._decode([jpeg for jpeg, _ in batch])
            except BaseException as error:
                # Whatever it is, the callers must not wait forever.
                for _, result in batch:
                    result.set_exception(error)
            else:
                for (_, result), crops in zip(batch, rendered, strict=True):
                    result.set_result(crops)

    def _decode(self, jpegs: Sequence[CheckedJpeg]) -> list[list[Pixels] | None]:
        """Decode a batch; halve it where that fails, down to one image, which is refused."""
        try:
            with self.watch(), self.measure():
                return self.decoder.decode(jpegs)
        except (EmbedstreamError, MemoryError):
            raise
        except Exception as error:
            self._check(error)
        if len(jpegs) == 1:
            return [None]
        half = len(jpegs) // 2
        return [*self._decode(jpegs[:half]), *self._decode(jpegs[half:])]

    def _check(self, error: Exception) -> None:
        """Raise SystemicError if the GPU itself has failed: its decoder's errors do not say so."""
        if is_gpu_failure(error):
            raise build_gpu_failure(error) from error
        try:
            with self.watch():
                self.decoder.check()
        except Exception as failure:
            raise build_gpu_failure(failure) from error
        if is_out_of_memory(error):
            torch.cuda.empty_cache()
        if not self._has_warned:
            self._has_warned = True
            _log.warning(
                "the GPU refused a batch of JPEGs; the CPU decodes those that fail alone: %s",
                error,
            )
