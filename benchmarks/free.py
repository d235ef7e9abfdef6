"""An encoder that costs nothing, `encoder.name: free:encoder`: what is left is embedstream's own.

Its network takes the middle pixel of each of 8x8 fields of the picture: 192 floats. Its pictures
are decoded as ResNet-50's are.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from embedstream_core.media.image.preprocessing import ImagePreprocessing
from embedstream_core.models.encoders.architecture import Encoder, PublishedWeights

__all__ = ["NAME", "encoder"]

NAME = "free:encoder"

PREPROCESSING = ImagePreprocessing(
    resize_px=256,
    crop_px=224,
    interpolation="bilinear",
    mean=(0.485, 0.456, 0.406),
    std=(0.229, 0.224, 0.225),
)


def encoder() -> Encoder:
    """What `find_encoder` calls, on the driver and on the workers."""
    weights = PublishedWeights("none", PREPROCESSING, "CC0-1.0", sha256="", download=_no_weights)
    return Encoder(NAME, _network, {weights.name: weights}, cut=_cut)


class _MiddlePixels(nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        field = images.shape[-1] // 8
        return images[:, :, field // 2 :: field, field // 2 :: field].flatten(1)


def _network() -> nn.Module:
    return _MiddlePixels()


def _cut(model: nn.Module) -> str:
    """There is no head to cut."""
    return "head"


def _no_weights() -> Path:
    raise OSError("it has none: set encoder.weights to random")
