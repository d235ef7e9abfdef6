"""An encoder on a device: uint8 images in, float32 vectors out."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from embedstream_core.engine.backends import BACKENDS, Forward, Placement, find_obstacle
from embedstream_core.errors import SetupError, SystemicError
from embedstream_core.media.image.opened_image import Pixels
from embedstream_core.media.image.preprocessing import ImagePreprocessing
from embedstream_core.model_id import Precision
from embedstream_core.models.files.file_formats import FixedModule
from embedstream_core.models.probe import find_flaw, make_probe_images
from embedstream_core.records import Vectors
from embedstream_core.settings import Backend, Device

__all__ = ["Engine", "choose_batch_size", "find_device"]

_log = logging.getLogger(__name__)

# Measured with ResNet-50: on a CPU 64 is slower than 16, whose activations stay in the cache.
_CPU_BATCH_SIZE = 16
_CUDA_BATCH_SIZE = 128

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}

# Libraries below torch raise a plain RuntimeError, which only its text identifies.
_OUT_OF_MEMORY = ("out of memory", "ALLOC_FAILED", "can't allocate memory")
_GPU_FAILURE = ("CUDA error", "cuDNN error")


@dataclass(frozen=True, slots=True)
class Engine:
    """A model ready to embed. Called from one thread at a time.

    `batch_size` is the largest number of images in one forward pass.
    """

    forward: Forward
    batch_size: int
    device: torch.device

    @classmethod
    def start(
        cls,
        model: nn.Module,
        preprocessing: ImagePreprocessing,
        *,
        device: torch.device,
        precision: Precision = "float32",
        backend: Backend = "torch",
        batch_size: int | None = None,
        cpu_threads: int | None = None,
    ) -> Engine:
        """Move a model to its device and precision, changing the model in place.

        torch replaces a backend that this device cannot use. `cpu_threads` bounds the threads of
        one forward pass on a CPU, for the whole process.

        Raises:
            SetupError: the backend cannot run the model.
        """
        if reason := find_obstacle(backend, device, fixed=isinstance(model, FixedModule)):
            _log.warning("torch replaces the backend %s: %s", backend, reason)
            backend = "torch"
        placement = Placement(
            device=device,
            dtype=_DTYPES[precision],
            batch_size=batch_size or choose_batch_size(device),
            cpu_threads=cpu_threads,
        )
        forward = BACKENDS[backend](model, preprocessing, placement)
        return cls(forward, placement.batch_size, device)

    def embed(self, images: Sequence[Pixels]) -> Vectors:
        """Embed images of shape (crop_px, crop_px, 3), uint8.

        Returns float32 of shape (number of images, dimension), in order. If the device runs out of
        memory, the model batch is halved, down to one image.

        Raises:
            RuntimeError: not even one image fits, or the network itself fails.
            SystemicError: the GPU failed. Every later call in this process would fail too: CUDA
                keeps such an error until the process ends.
        """
        size = self.batch_size
        if len(images) <= size:
            try:
                return self.forward(np.stack(images))
            except RuntimeError as error:
                text = str(error)
                is_out_of_memory = isinstance(error, torch.OutOfMemoryError) or any(
                    words in text for words in _OUT_OF_MEMORY
                )
                if not is_out_of_memory and any(words in text for words in _GPU_FAILURE):
                    raise SystemicError(f"the GPU failed: {text.splitlines()[0]}") from error
                if len(images) == 1 or not is_out_of_memory:
                    raise
            torch.cuda.empty_cache()
            size = len(images) // 2
        starts = range(0, len(images), size)
        return np.concatenate([self.embed(images[start : start + size]) for start in starts])

    def check(self, preprocessing: ImagePreprocessing) -> None:
        """Embed two images that every encoder must distinguish.

        Raises:
            SystemicError: the model or the device is broken.
        """
        if flaw := find_flaw(self.embed([*make_probe_images(preprocessing.crop_px)])):
            raise SystemicError(
                f"the encoder gives {flaw} on this device, though not where it was prepared; try "
                "encoder.precision float32, or encoder.backend torch"
            )


def find_device(device: Device, *, cuda_index: int = 0) -> torch.device:
    """Return the torch device; `auto` is CUDA if there is a GPU, else the CPU.

    Raises:
        SetupError: the device is `cuda`, and that GPU is not visible.
    """
    if device == "cpu" or (device == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if device == "cuda" and cuda_index >= torch.cuda.device_count():
        raise SetupError(
            f"device is 'cuda', but GPU {cuda_index} of {torch.cuda.device_count()} is not "
            "visible; grant the executor one (spark.executor.resource.gpu.amount) or set "
            "encoder.device to auto or cpu"
        )
    return torch.device("cuda", cuda_index)


def choose_batch_size(device: torch.device) -> int:
    """Return the default number of images in one forward pass."""
    return _CUDA_BATCH_SIZE if device.type == "cuda" else _CPU_BATCH_SIZE
