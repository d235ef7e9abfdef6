"""Encoders that fail once in a stream, like a GPU. Spark sends this file to its workers."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import torch
from pyspark import SparkFiles, TaskContext
from torch import nn

from embedstream_core.media.image.preprocessing import ImagePreprocessing
from embedstream_core.models.encoders.architecture import Encoder, PublishedWeights

__all__ = ["hang", "sticky_error"]


class FailsOnce(nn.Module):
    """Fails in one worker of a stream, from its second forward pass on.

    The first pass embeds the probe images. A file holds the process id of the worker that failed.
    """

    def __init__(self, name: str, fail: Callable[[], None]) -> None:
        super().__init__()
        self.name = name
        self.fail = fail
        self.passes = 0
        self.broken = False
        self.layer = nn.Linear(3, 8)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        # The driver also runs it, and traces it with symbols; it must not fail there.
        if isinstance(images, torch.Tensor) and TaskContext.get() is not None:
            self.passes += 1
            self.broken = self.broken or (self.passes > 1 and _is_first(self.name))
            if self.broken:
                self.fail()
        vectors: torch.Tensor = self.layer(images.mean((2, 3)))
        return vectors


def _is_first(name: str) -> bool:
    try:
        with (Path(SparkFiles.getRootDirectory()) / f"{name}.pid").open("x") as file:
            file.write(str(os.getpid()))
    except FileExistsError:
        return False
    return True


def _raise() -> None:
    raise RuntimeError("CUDA error: device-side assert triggered\nCompile with TORCH_USE_CUDA_DSA")


def _encoder(name: str, fail: Callable[[], None]) -> Encoder:
    preprocessing = ImagePreprocessing(32, 32, "bilinear", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    weights = PublishedWeights("none", preprocessing, "none", "", lambda: Path())
    return Encoder(name, lambda: FailsOnce(name, fail), {"none": weights}, cut=lambda model: "head")


def sticky_error() -> Encoder:
    """Return an encoder with an error that CUDA keeps until the process ends."""
    return _encoder("sticky_error", _raise)


def hang() -> Encoder:
    """Return an encoder that does not return."""
    return _encoder("hang", lambda: time.sleep(600))
