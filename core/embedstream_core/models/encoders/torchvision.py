"""Every classification network of torchvision.

torchvision takes as long to import as torch itself, so it is imported only for its own networks.
"""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from typing import Any

import torch

from embedstream_core.media.image.preprocessing import ImagePreprocessing
from embedstream_core.models.encoders.architecture import Encoder, PublishedWeights

__all__ = ["download_file", "find_torchvision_encoder", "list_torchvision_names"]

# With their published weights, both networks apply ImageNet's statistics themselves. Only training
# uses their auxiliary classifiers: torchvision itself drops them.
_ARGUMENTS: dict[str, dict[str, Any]] = {
    name: {"transform_input": True, "init_weights": False, "aux_logits": False}
    for name in ("googlenet", "inception_v3")
}
_AUXILIARY = re.compile(r"(^|\.)(aux[12]|AuxLogits)\.")
# The files that torchvision publishes say norm.1 for norm1.
_DENSE_LAYER = re.compile(r"(denselayer\d+\.(?:norm|conv))\.(\d)\.")

# Floats of the networks that cannot be built without memory for their weights, as measured.
_REGNET_DIMENSIONS = {
    "regnet_x_16gf": 2048,
    "regnet_x_1_6gf": 912,
    "regnet_x_32gf": 2520,
    "regnet_x_3_2gf": 1008,
    "regnet_x_400mf": 400,
    "regnet_x_800mf": 672,
    "regnet_x_8gf": 1920,
    "regnet_y_128gf": 7392,
    "regnet_y_16gf": 3024,
    "regnet_y_1_6gf": 888,
    "regnet_y_32gf": 3712,
    "regnet_y_3_2gf": 1512,
    "regnet_y_400mf": 440,
    "regnet_y_800mf": 784,
    "regnet_y_8gf": 2016,
}


def list_torchvision_names() -> list[str]:
    """Return the names of all classification networks."""
    import torchvision

    return list(torchvision.models.list_models(module=torchvision.models))


def find_torchvision_encoder(name: str) -> Encoder:
    """Return the network of that name, with all weights that torchvision publishes for it."""
    from torchvision.models import get_model_builder, get_model_weights

    def rename(tensor: str) -> str | None:
        if name in _ARGUMENTS:
            return None if _AUXILIARY.search(tensor) else tensor
        return _DENSE_LAYER.sub(r"\1\2.", tensor) if name.startswith("densenet") else tensor

    enum = get_model_weights(name)
    weights = {}
    for member in [enum.DEFAULT, *(member for member in enum if member is not enum.DEFAULT)]:
        transforms = member.transforms()
        weights[member.name] = PublishedWeights(
            name=member.name,
            preprocessing=ImagePreprocessing(
                resize_px=transforms.resize_size[0],
                crop_px=transforms.crop_size[0],
                interpolation=transforms.interpolation.value,
                mean=tuple(transforms.mean),
                std=tuple(transforms.std),
            ),
            license="CC-BY-NC-4.0" if "SWAG" in member.name else "BSD-3-Clause",
            # torchvision's file names end in the first eight or more characters of the sha256.
            sha256=Path(member.url).stem.rpartition("-")[2],
            download=partial(download_file, member.url),
            labels=partial(tuple, member.meta["categories"]),
            is_here=_locate_download(member.url).exists,
        )
    return Encoder(
        name=name,
        build=lambda: get_model_builder(name)(weights=None, **_ARGUMENTS.get(name, {})),
        weights=weights,
        rename=rename,
        plain=True,
        dimension=_REGNET_DIMENSIONS.get(name),
    )


def _locate_download(url: str) -> Path:
    return Path(torch.hub.get_dir()) / "checkpoints" / Path(url).name


def download_file(url: str) -> Path:
    """Download a file into torch's cache, unless it is there."""
    path = _locate_download(url)
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(path), progress=False)
    return path
