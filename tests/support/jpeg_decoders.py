"""Batch decoders of JPEGs for tests: torchvision's on each device, and ones that fail."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import pytest
import torch

from embedstream_core.media.image.gpu_jpeg import CheckedJpeg, TorchvisionDecoder
from embedstream_core.media.image.opened_image import Pixels

__all__ = ["CPU", "DEVICES", "Fail", "FailingDecoder", "RecordingDecoder"]

Fail: TypeAlias = Callable[[Sequence[CheckedJpeg]], Exception | None]
"""Returns what a batch raises, or None."""

CPU = torch.device("cpu")

DEVICES = [
    pytest.param(CPU, id="cpu"),
    pytest.param(
        torch.device("cuda", 0),
        id="cuda",
        marks=[
            pytest.mark.gpu,
            pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU"),
        ],
    ),
]


class RecordingDecoder:
    """Decodes on the CPU, and records the sizes of its batches."""

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.checks = 0
        self._decoder = TorchvisionDecoder(CPU)

    def decode(self, jpegs: Sequence[CheckedJpeg]) -> list[list[Pixels] | None]:
        self.sizes.append(len(jpegs))
        return self._decoder.decode(jpegs)

    def check(self) -> None:
        self.checks += 1


class FailingDecoder(RecordingDecoder):
    """Raises what `fail` returns for a batch, and what `check_error` is."""

    def __init__(
        self,
        fail: Fail,
        check_error: Exception | None = None,
    ) -> None:
        super().__init__()
        self.refused = 0
        self._fail = fail
        self._check_error = check_error

    def decode(self, jpegs: Sequence[CheckedJpeg]) -> list[list[Pixels] | None]:
        if error := self._fail(jpegs):
            self.sizes.append(len(jpegs))
            self.refused += 1
            raise error
        return super().decode(jpegs)

    def check(self) -> None:
        super().check()
        if self._check_error is not None:
            raise self._check_error
