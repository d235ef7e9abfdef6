"""Every network of timm; needs the extra `timm`."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any, get_args

from torch import nn

from embedstream_core.errors import SetupError
from embedstream_core.extras import require_extra
from embedstream_core.media.image.decode import Preprocessing
from embedstream_core.media.image.preprocessing import CropMode, Interpolation
from embedstream_core.models.encoders.architecture import (
    Encoder,
    PublishedWeights,
    cut_nothing,
    imagenet_labels,
)
from embedstream_core.models.encoders.torchvision import download_file

__all__ = ["find_timm_encoder"]

_IMAGENET_CLASSES = 1000


def find_timm_encoder(name: str) -> Encoder:
    """The network named `timm/<model>` or `timm/<model>.<tag>`.

    Raises:
        SetupError: timm has none of that name; the message lists the nearest ones.
        MissingExtra: timm is not installed.
    """
    with require_extra("timm", feature=f"encoder '{name}'"):
        import timm
    model_name = name.removeprefix("timm/")
    try:
        pretrained = timm.get_pretrained_cfg(model_name)
    except RuntimeError:
        # The model may be known, with other tags.
        pretrained = None
    if pretrained is None:
        known = timm.list_models(pretrained="." in model_name)
        nearest = difflib.get_close_matches(model_name, known, n=5) or known[:5]
        raise SetupError(f"unknown timm model '{model_name}'; nearest: {', '.join(nearest)}")
    weights = _weights(model_name, pretrained)
    return Encoder(
        name=name,
        build=lambda: timm.create_model(model_name, pretrained=False),
        weights={weights.name: weights},
        cut=_cut,
        plain=True,
    )


def _cut(model: Any) -> str:
    classifier = model.default_cfg.get("classifier")
    # Encoders of language models have no head.
    if classifier is None or not hasattr(model, "reset_classifier"):
        return cut_nothing(model)
    model.reset_classifier(0)
    # A distilled network has two, of which the first stands for both.
    return str(classifier if isinstance(classifier, str) else classifier[0])


def _weights(model_name: str, pretrained: Any) -> PublishedWeights:
    preprocessing, unsupported = _preprocessing(pretrained)
    return PublishedWeights(
        name=pretrained.tag or "default",
        preprocessing=preprocessing,
        license=pretrained.license or "unknown",
        sha256="",
        download=lambda: _download(model_name, pretrained),
        labels=imagenet_labels if pretrained.num_classes == _IMAGENET_CLASSES else tuple,
        load=lambda path: _load(model_name, path),
        unsupported=unsupported,
    )


def _preprocessing(pretrained: Any) -> tuple[Preprocessing | None, str]:
    """What timm's own evaluation does, or what it asks for that is not done here."""
    import timm.data

    data = timm.data.resolve_data_config(pretrained_cfg=pretrained.to_dict())
    channels, height, width = data["input_size"]
    if channels != 3 or height != width:
        return None, f"input_size {data['input_size']}"
    for key, known in (("interpolation", Interpolation), ("crop_mode", CropMode)):
        if data[key] not in get_args(known):
            return None, f"{key} '{data[key]}'"
    preprocessing = Preprocessing(
        resize_px=int(height / data["crop_pct"]),
        crop_px=height,
        interpolation=data["interpolation"],
        mean=tuple(data["mean"]),
        std=tuple(data["std"]),
        crop_mode=data["crop_mode"],
    )
    return preprocessing, ""


def _download(model_name: str, pretrained: Any) -> Path:
    if pretrained.hf_hub_id:
        from huggingface_hub import hf_hub_download

        repository, _, revision = pretrained.hf_hub_id.partition("@")
        name = pretrained.hf_hub_filename or "model.safetensors"
        return Path(hf_hub_download(repository, name, revision=revision or None))
    if pretrained.url:
        return download_file(pretrained.url)
    raise SetupError(
        f"timm publishes no weights for '{model_name}'; give a file of yours as encoder.weights, "
        "or choose another model"
    )


def _load(model_name: str, path: Path) -> nn.Module:
    """The network with published weights: timm renames and converts their tensors for many."""
    import timm

    # The file goes before the addresses that timm knows, so nothing is downloaded. Arrays of JAX
    # are for the loader of the model itself; a file of the hub is not, whatever timm says of it.
    source = {"file": str(path), "custom_load": path.suffix == ".npz"}
    model: nn.Module = timm.create_model(model_name, pretrained=True, pretrained_cfg_overlay=source)
    return model
