"""Every classification network of torchvision.

torchvision takes as long to import as torch itself, so only its own networks pay for it.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from embedstream_core.media.image.decode import Preprocessing
from embedstream_core.models.encoders.architecture import Encoder, PublishedWeights

__all__ = ["download_file", "find_torchvision_encoder", "list_torchvision_names"]

# Both apply ImageNet's statistics within the network when their published weights are used. Their
# auxiliary classifiers take part in training alone: torchvision itself drops them.
_ARGUMENTS: dict[str, dict[str, Any]] = {
    "googlenet": {"transform_input": True, "init_weights": False, "aux_logits": False},
    "inception_v3": {"transform_input": True, "init_weights": False, "aux_logits": False},
}

_AUXILIARY = re.compile(r"(^|\.)(aux[12]|AuxLogits)\.")
# The files that torchvision publishes say norm.1 for norm1.
_DENSE_LAYER = re.compile(r"(denselayer\d+\.(?:norm|conv))\.(\d)\.")


def list_torchvision_names() -> list[str]:
    """The names of all classification networks."""
    import torchvision

    return list(torchvision.models.list_models(module=torchvision.models))


def find_torchvision_encoder(name: str) -> Encoder:
    """The network of that name, with all weights that torchvision publishes for it."""
    from torchvision.models import get_model_builder, get_model_weights

    enum = get_model_weights(name)
    ordered = [enum.DEFAULT, *(member for member in enum if member is not enum.DEFAULT)]
    return Encoder(
        name=name,
        build=lambda: get_model_builder(name)(weights=None, **_ARGUMENTS.get(name, {})),
        weights={member.name: _weights(member) for member in ordered},
        rename=_rename_of(name),
        plain=True,
    )


def _rename_of(name: str) -> Callable[[str], str | None]:
    if name in _ARGUMENTS:
        return lambda tensor: None if _AUXILIARY.search(tensor) else tensor
    if name.startswith("densenet"):
        return lambda tensor: _DENSE_LAYER.sub(r"\1\2.", tensor)
    return str


def _weights(member: Any) -> PublishedWeights:
    url: str = member.url
    transforms = member.transforms()
    return PublishedWeights(
        name=member.name,
        preprocessing=Preprocessing(
            resize_px=transforms.resize_size[0],
            crop_px=transforms.crop_size[0],
            interpolation=transforms.interpolation.value,
            mean=tuple(transforms.mean),
            std=tuple(transforms.std),
        ),
        license="CC-BY-NC-4.0" if "SWAG" in member.name else "BSD-3-Clause",
        # torchvision's file names end in the first characters of the file's sha256, eight or more.
        sha256=Path(url).stem.rpartition("-")[2],
        download=lambda: download_file(url),
        labels=lambda: member.meta["categories"],
    )


def download_file(url: str) -> Path:
    """Download a file into torch's cache, unless it is there."""
    path = Path(torch.hub.get_dir()) / "checkpoints" / Path(url).name
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(path), progress=False)
    return path
