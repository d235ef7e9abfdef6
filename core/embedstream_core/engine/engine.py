"""An encoder on a device: uint8 pictures in, float32 vectors out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import assert_never

import numpy as np
import torch
from torch import nn

from embedstream_core.engine.backends import BACKENDS, Forward, Placement, obstacle
from embedstream_core.errors import SetupError, SystemicError
from embedstream_core.media.image.decode import Pixels, Preprocessing
from embedstream_core.model_id import Precision
from embedstream_core.models.files.file_formats import FixedModule
from embedstream_core.models.probe import flaw, probe_pictures
from embedstream_core.records import Vectors
from embedstream_core.settings import Backend, Device

__all__ = [
    "Engine",
    "choose_batch_size",
    "find_device",
]

# Measured with ResNet-50: on a CPU 64 is slower than 16, whose activations stay in the cache.
_CPU_BATCH_SIZE = 16
_CUDA_BATCH_SIZE = 128

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}

# Libraries below torch say it in words of their own, in a plain RuntimeError.
_OUT_OF_MEMORY = ("out of memory", "ALLOC_FAILED", "can't allocate memory")


@dataclass(frozen=True, slots=True)
class Engine:
    """A model ready to embed. Called from one thread at a time.

    `batch_size` is the largest number of pictures in one forward pass.
    """

    forward: Forward
    batch_size: int
    device: torch.device

    @classmethod
    def start(
        cls,
        model: nn.Module,
        preprocessing: Preprocessing,
        *,
        device: torch.device,
        precision: Precision = "float32",
        backend: Backend = "torch",
        batch_size: int | None = None,
        cpu_threads: int | None = None,
    ) -> Engine:
        """Move a model to its device and precision; the model is used up.

        `cpu_threads` bounds the threads of one forward pass on a CPU, for the whole process.

        Raises:
            SetupError: the backend cannot be used here, or cannot run the model.
        """
        fixed = isinstance(model, FixedModule)
        if reason := obstacle(backend, device, fixed=fixed):
            raise SetupError(f"backend '{backend}' cannot be used: {reason}")
        placement = Placement(
            device=device,
            dtype=_DTYPES[precision],
            batch_size=batch_size or choose_batch_size(device),
            cpu_threads=cpu_threads,
        )
        forward = BACKENDS[backend](model, preprocessing, placement)
        return cls(forward, placement.batch_size, device)

    def embed(self, pictures: Sequence[Pixels]) -> Vectors:
        """Embed pictures of shape (crop_px, crop_px, 3), uint8.

        Returns float32 of shape (number of pictures, dimension), in order. Where the device runs
        out of memory the batch is halved, down to one picture.

        Raises:
            RuntimeError: not even one picture fits, or the network itself fails.
            SystemicError: the GPU failed. Every later call in this process would fail too: CUDA
                keeps such an error until the process ends.
        """
        if len(pictures) > self.batch_size:
            return self._in_parts(pictures, self.batch_size)
        try:
            return self.forward(np.stack(pictures))
        except RuntimeError as error:
            if _is_device_failure(error):
                raise SystemicError(f"the GPU failed: {str(error).splitlines()[0]}") from error
            if len(pictures) == 1 or not _is_out_of_memory(error):
                raise
        torch.cuda.empty_cache()
        return self._in_parts(pictures, len(pictures) // 2)

    def check(self, preprocessing: Preprocessing) -> None:
        """Embed two pictures that every encoder tells apart.

        Raises:
            SystemicError: the model or the device is broken.
        """
        if found := flaw(self.embed([*probe_pictures(preprocessing.crop_px)])):
            raise SystemicError(
                f"the encoder gives {found} on this device, though not where it was prepared; try "
                "encoder.precision float32, or encoder.backend torch"
            )

    def _in_parts(self, pictures: Sequence[Pixels], size: int) -> Vectors:
        starts = range(0, len(pictures), size)
        return np.concatenate([self.embed(pictures[start : start + size]) for start in starts])


def _is_out_of_memory(error: RuntimeError) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or any(
        words in str(error) for words in _OUT_OF_MEMORY
    )


def _is_device_failure(error: RuntimeError) -> bool:
    of_device = "CUDA error" in str(error) or "cuDNN error" in str(error)
    return of_device and not _is_out_of_memory(error)


def find_device(device: Device, *, cuda_index: int = 0) -> torch.device:
    """Choose the device; `auto` is CUDA where there is one.

    Raises:
        SetupError: CUDA was asked for and is not there.
    """
    match device:
        case "cpu":
            return torch.device("cpu")
        case "auto":
            use_cuda = torch.cuda.is_available()
            return torch.device("cuda", cuda_index) if use_cuda else torch.device("cpu")
        case "cuda":
            if cuda_index >= torch.cuda.device_count():
                raise SetupError(
                    f"device 'cuda' was asked for, but GPU {cuda_index} of "
                    f"{torch.cuda.device_count()} is not visible; grant the executor one "
                    "(spark.executor.resource.gpu.amount) or set encoder.device to auto or cpu"
                )
            return torch.device("cuda", cuda_index)
        case _:
            assert_never(device)


def choose_batch_size(device: torch.device) -> int:
    """How many pictures one forward pass takes by default."""
    return _CUDA_BATCH_SIZE if device.type == "cuda" else _CPU_BATCH_SIZE
