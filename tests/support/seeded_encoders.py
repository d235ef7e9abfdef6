"""Small encoders for `encoder.name`, the same in every process: `seeded_encoders:first`."""

from __future__ import annotations

import time
from pathlib import Path

import torch
from torch import nn

from embedstream_core.media.image.preprocessing import ImagePreprocessing

__all__ = ["FOLDER", "failing", "first", "second", "slow"]

FOLDER = str(Path(__file__).parent)
"""For the PYTHONPATH of drivers and workers."""

Built = tuple[nn.Module, ImagePreprocessing]

PREPROCESSING = ImagePreprocessing(32, 32, "bilinear", (0.5, 0.4, 0.3), (0.2, 0.25, 0.3))


class FailsLater(nn.Module):
    """Embeds the probe images, and fails with the first batch of a stream, which is larger."""

    def __init__(self) -> None:
        super().__init__()
        self.network = _build(seed=4)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if len(images) > 2:
            raise RuntimeError("out of registers")
        embeddings: torch.Tensor = self.network(images)
        return embeddings


def first() -> Built:
    return _build(seed=1), PREPROCESSING


def second() -> Built:
    return _build(seed=2), PREPROCESSING


def slow() -> Built:
    """Take some seconds to prepare."""
    time.sleep(3)
    return _build(seed=3), PREPROCESSING


def failing() -> Built:
    return FailsLater().eval(), PREPROCESSING


def _build(*, seed: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        body = [nn.Conv2d(3, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU()]
        return nn.Sequential(*body, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 8)).eval()
