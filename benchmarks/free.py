"""An encoder that costs nothing, `encoder.name: free:encoder`: what is left is embedstream's own.

Its network is the mean of each of 8x8 fields of the picture: 192 floats. Its pictures are decoded
as ResNet-50's are.
"""

from __future__ import annotations

from pathlib import Path

from torch import nn

from embedstream_core.decode import Preprocessing
from embedstream_core.encoders import Encoder, PublishedWeights

__all__ = ["NAME", "encoder"]

NAME = "free:encoder"

PREPROCESSING = Preprocessing(
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


def _network() -> nn.Module:
    return nn.Sequential(nn.AdaptiveAvgPool2d(8), nn.Flatten())


def _cut(model: nn.Module) -> str:
    """There is no head to cut."""
    return "head"


def _no_weights() -> Path:
    raise OSError("it has none: set encoder.weights to random")
