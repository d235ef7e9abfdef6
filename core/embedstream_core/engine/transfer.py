"""How the arrays of a forward pass reach the model's device, and how its vectors come back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from embedstream_core.media.modality import Array, Arrays
from embedstream_core.records import Vectors

__all__ = ["DirectTransfer", "Finish", "PinnedTransfer", "Transfer"]

Finish: TypeAlias = Callable[[], Vectors]
"""Waits for a forward pass that was started, and returns its vectors; called at most once.

A pass may be dropped unfinished. Errors of the device may come here as well as at the start.
"""


class Transfer(Protocol):
    """Copies between the memory of this process and a device."""

    def allocate(self, shape: tuple[int, ...], dtype: npt.DTypeLike) -> Array:
        """Return memory to collate into; its values are undefined."""

    def upload(self, arrays: Arrays) -> Sequence[torch.Tensor]:
        """Return the arrays on the device; the caller may drop them at once, but not change them.

        What the current stream computes from now on sees the copies complete.
        """

    def download(self, vectors: torch.Tensor) -> Finish:
        """Begin to copy vectors back, float32 of shape (n, dimension).

        Later passes may overwrite the memory of `vectors` on the device: their work is queued
        behind this copy.
        """


@dataclass(frozen=True, slots=True)
class DirectTransfer:
    """Copies and waits in turn, from ordinary memory; on a CPU nothing is copied."""

    device: torch.device

    def allocate(self, shape: tuple[int, ...], dtype: npt.DTypeLike) -> Array:
        """Return ordinary memory."""
        return np.empty(shape, dtype)

    def upload(self, arrays: Arrays) -> Sequence[torch.Tensor]:
        """Copy, and wait."""
        return [torch.from_numpy(one).to(self.device) for one in arrays]

    def download(self, vectors: torch.Tensor) -> Finish:
        """Copy, and wait."""
        downloaded = vectors.cpu().numpy()
        return lambda: downloaded


@dataclass(frozen=True, slots=True)
class PinnedTransfer:
    """Copies from and to page-locked memory of a CUDA device, while it computes.

    Uploads have a stream of their own. Downloads are queued behind the computation: they are small.

    torch keeps freed page-locked memory for the next pass, and hands it out only after the copies
    from and to it are complete, also if their tensors were dropped before. So there is no pool of
    buffers here, and a pass that was dropped leaves nothing behind.
    """

    device: torch.device
    copies: torch.cuda.Stream = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "copies", torch.cuda.Stream(self.device))  # type: ignore[no-untyped-call]

    def allocate(self, shape: tuple[int, ...], dtype: npt.DTypeLike) -> Array:
        """Return page-locked memory."""
        kind = torch.from_numpy(np.empty(0, dtype)).dtype
        memory: Array = torch.empty(shape, dtype=kind, pin_memory=True).numpy()
        return memory

    def upload(self, arrays: Arrays) -> Sequence[torch.Tensor]:
        """Queue copies on the stream for them, and let the current stream wait for them."""
        compute = torch.cuda.current_stream(self.device)
        with torch.cuda.stream(self.copies):
            inputs = [torch.from_numpy(one).to(self.device, non_blocking=True) for one in arrays]
        compute.wait_stream(self.copies)
        for one in inputs:
            # Otherwise the next upload could reuse its memory before the model has read it.
            one.record_stream(compute)
        return inputs

    def download(self, vectors: torch.Tensor) -> Finish:
        """Queue the copy; finishing sleeps until it is complete."""
        # torch allocates page-locked memory for such a copy.
        downloaded = vectors.to("cpu", non_blocking=True)
        # Without `blocking` the wait would spin on a core that decoding threads need.
        complete = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
        complete.record(torch.cuda.current_stream(self.device))

        def finish() -> Vectors:
            complete.synchronize()
            return downloaded.numpy()

        return finish
