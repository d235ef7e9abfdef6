"""What an exception says of the GPU: too little memory, or a failure that stays."""

from __future__ import annotations

import torch

from embedstream_core.errors import SystemicError

__all__ = ["build_gpu_failure", "is_gpu_failure", "is_out_of_memory"]

# Libraries below torch raise a plain RuntimeError, which only its text identifies.
_OUT_OF_MEMORY = ("out of memory", "ALLOC_FAILED", "can't allocate memory")
_GPU_FAILURE = ("CUDA error", "cuDNN error")


def is_out_of_memory(error: Exception) -> bool:
    """Return whether a device has too little memory: less work at a time may fit."""
    text = str(error)
    return isinstance(error, torch.OutOfMemoryError) or any(
        words in text for words in _OUT_OF_MEMORY
    )


def is_gpu_failure(error: Exception) -> bool:
    """Return whether the GPU failed: CUDA keeps such an error until the process ends."""
    text = str(error)
    return not is_out_of_memory(error) and any(words in text for words in _GPU_FAILURE)


def build_gpu_failure(error: Exception) -> SystemicError:
    """Return the error that has the batch run again, in another process."""
    return SystemicError(f"the GPU failed: {str(error).splitlines()[0]}")
