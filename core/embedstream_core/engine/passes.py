"""Forward passes that are started and finished apart, and halved where memory runs out."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch

from embedstream_core.engine.backends import Forward
from embedstream_core.engine.gpu_errors import (
    build_gpu_failure,
    is_gpu_failure,
    is_out_of_memory,
)
from embedstream_core.engine.transfer import Finish
from embedstream_core.media.modality import Array, Modality
from embedstream_core.records import Vectors

__all__ = ["start_pass"]


def start_pass(forward: Forward, modality: Modality[Any, Any], parts: Sequence[Array]) -> Finish:
    """Start a forward pass over parts of one modality; finishing it returns float32 (n, dimension).

    If the device runs out of memory, here or where the pass is finished, the parts are halved, down
    to one.

    Raises:
        RuntimeError: not even one part fits, or the network itself fails; finishing raises it too.
        SystemicError: the GPU failed; finishing raises it too.
    """
    try:
        finish = forward.start(modality.collate(parts, forward.allocate))
    except RuntimeError as error:
        if not _can_halve(error, parts):
            raise
    else:
        return partial(_finish_pass, finish, forward, modality, parts)
    vectors = _embed_halves(forward, modality, parts)
    return lambda: vectors


def _finish_pass(
    finish: Finish, forward: Forward, modality: Modality[Any, Any], parts: Sequence[Array]
) -> Vectors:
    try:
        return finish()
    except RuntimeError as error:
        if not _can_halve(error, parts):
            raise
    return _embed_halves(forward, modality, parts)


def _can_halve(error: RuntimeError, parts: Sequence[Array]) -> bool:
    if is_gpu_failure(error):
        raise build_gpu_failure(error) from error
    return is_out_of_memory(error) and len(parts) > 1


def _embed_halves(
    forward: Forward, modality: Modality[Any, Any], parts: Sequence[Array]
) -> Vectors:
    """Embed halves in turn; call it outside the handler, whose error holds the pass's tensors."""
    torch.cuda.empty_cache()
    half = len(parts) // 2
    halves = parts[:half], parts[half:]
    return np.concatenate([start_pass(forward, modality, one)() for one in halves])
