"""Every network of timm; needs the extra `timm`."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from embedstream_core.errors import SetupError
from embedstream_core.extras import require_extra
from embedstream_core.media.image.preprocessing import ImagePreprocessing
from embedstream_core.models.encoders.architecture import (
    Encoder,
    PublishedWeights,
    cut_nothing,
    list_imagenet_labels,
)
from embedstream_core.models.encoders.torchvision import download_file

__all__ = ["find_timm_encoder"]

_IMAGENET_CLASSES = 1000

# What timm's evaluation reads of a description of weights. The rest describes the network.
_PREPROCESSING = {"input_size", "interpolation", "mean", "std", "crop_pct", "crop_mode"}


def find_timm_encoder(name: str) -> Encoder:
    """Return the network named `timm/<model>` or `timm/<model>.<tag>`.

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
        # timm may know the model, but not this tag.
        pretrained = None
    if pretrained is None:
        known = timm.list_models(pretrained="." in model_name)
        nearest = difflib.get_close_matches(model_name, known, n=5) or known[:5]
        raise SetupError(f"unknown timm model '{model_name}'; nearest: {', '.join(nearest)}")
    model = _Model(model_name, pretrained)
    preprocessing, unsupported = model.read_preprocessing()
    weights = PublishedWeights(
        name=pretrained.tag or "default",
        preprocessing=preprocessing,
        license=pretrained.license or "unknown",
        sha256="",
        download=model.download,
        labels=list_imagenet_labels if pretrained.num_classes == _IMAGENET_CLASSES else tuple,
        load=model.load,
        unsupported=unsupported,
    )
    return Encoder(
        name=name,
        build=lambda: timm.create_model(model_name, pretrained=False),
        weights={weights.name: weights},
        cut=_cut_head,
        plain=True,
    )


def _cut_head(model: Any) -> str:
    classifier = model.default_cfg.get("classifier")
    # Image encoders of vision-language models have no head.
    if classifier is None or not hasattr(model, "reset_classifier"):
        return cut_nothing(model)
    model.reset_classifier(0)
    # A distilled network has two classifiers; the first stands for both.
    return str(classifier if isinstance(classifier, str) else classifier[0])


class _Model(NamedTuple):
    """A model and timm's description of its published weights."""

    name: str
    pretrained: Any

    def read_preprocessing(self) -> tuple[ImagePreprocessing | None, str]:
        """Return the preprocessing of timm's evaluation, or None and the unsupported setting."""
        import timm.data

        # Of timm's evaluation; `test_input_size` and `test_crop_pct` are for larger images.
        data = timm.data.resolve_data_config(pretrained_cfg=self.pretrained.to_dict())
        if unknown := data.keys() - _PREPROCESSING:
            return None, ", ".join(f"{key} {data[key]}" for key in sorted(unknown))
        channels, height, width = data["input_size"]
        if channels != 3 or height != width:
            return None, f"input_size {data['input_size']}"
        preprocessing = ImagePreprocessing(
            resize_px=int(height / data["crop_pct"]),
            crop_px=height,
            interpolation=data["interpolation"],
            mean=tuple(data["mean"]),
            std=tuple(data["std"]),
            crop_mode=data["crop_mode"],
        )
        problem = preprocessing.find_problem()
        return (None, problem) if problem else (preprocessing, "")

    def download(self) -> Path:
        """Download the published weights, or find them in the hub's or torch's cache."""
        if self.pretrained.hf_hub_id:
            from huggingface_hub import hf_hub_download

            repository, _, revision = self.pretrained.hf_hub_id.partition("@")
            name = self.pretrained.hf_hub_filename or "model.safetensors"
            return Path(hf_hub_download(repository, name, revision=revision or None))
        if self.pretrained.url:
            return download_file(self.pretrained.url)
        raise SetupError(
            f"timm publishes no weights for '{self.name}'; give a file of yours as "
            "encoder.weights, or choose another model"
        )

    def load(self, path: Path) -> nn.Module:
        """Build the network with its published weights, whose tensors timm renames and converts."""
        import timm

        # A local file takes precedence over the addresses that timm knows: nothing is downloaded.
        # `custom_load` selects the model's own loader, which reads JAX arrays and no file of the
        # hub, even if timm's configuration of that file sets it.
        source = {"file": str(path), "custom_load": path.suffix == ".npz"}
        model: nn.Module = timm.create_model(
            self.name, pretrained=True, pretrained_cfg_overlay=source
        )
        return model
