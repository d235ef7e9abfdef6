"""An encoder is an architecture, its published weights, and a head to cut off."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from embedstream_core.errors import SetupError
from embedstream_core.media.image.preprocessing import ImagePreprocessing
from embedstream_core.models.failures import convert_errors

__all__ = [
    "Encoder",
    "PublishedWeights",
    "build_body",
    "cut_head",
    "cut_nothing",
    "find_head",
    "list_imagenet_labels",
]


@dataclass(frozen=True, slots=True)
class PublishedWeights:
    """Trained weights that have a name.

    `sha256` is the file's hash, or the first characters of it that the publisher states. `download`
    is None if the encoder's `build` already gives these weights. `preprocessing` is None if the
    user must declare it; `unsupported` then names the published setting that is not implemented
    here. `labels` returns the names of the head's classes, in order, if they are known. `load`
    builds the whole network from the downloaded file, if the tensors have other names there.
    `is_here` returns whether the file is on this machine already.
    """

    name: str
    preprocessing: ImagePreprocessing | None
    license: str
    sha256: str
    download: Callable[[], Path] | None
    labels: Callable[[], Sequence[str]] = tuple
    load: Callable[[Path], nn.Module] | None = None
    unsupported: str = ""
    is_here: Callable[[], bool] = lambda: True


def find_head(model: nn.Module) -> str:
    """Return the name of the classifier: the module that `cut_head` replaces.

    It is the last linear layer, or the last convolution if there is no linear layer (SqueezeNet:
    the layers after its convolution then pool the features). Raises SetupError for a network
    without either.
    """
    for layer_type in (nn.Linear, nn.Conv2d):
        names = [name for name, module in model.named_modules() if type(module) is layer_type]
        if names:
            return str(names[-1])
    raise SetupError(f"{type(model).__name__} has no classification head to cut")


def cut_head(model: nn.Module) -> str:
    """Replace the classifier by an identity, in place; return the name of the module cut."""
    head = find_head(model)
    model.set_submodule(head, nn.Identity())
    return head


def cut_nothing(model: nn.Module) -> str:
    """Leave a network that gives vectors as it is; return a name that no module has."""
    return "(none)"


@dataclass(frozen=True, slots=True)
class Encoder:
    """An architecture and its published weights, the default first.

    `build` makes the whole network, head included; its weights are untrained unless the `download`
    of some published weights is None. `cut` removes the head, in place, and returns the name of
    the head's module. `rename` returns the network's name for a tensor of a weights file, or None
    for a tensor that only training uses. `plain` networks can be built without memory for their
    weights: they compute with parameters and buffers only. `dimension` is stated for networks whose
    constructor computes with values, so that their size is not known without building them.
    """

    name: str
    build: Callable[[], nn.Module]
    weights: Mapping[str, PublishedWeights]
    cut: Callable[[nn.Module], str] = cut_head
    rename: Callable[[str], str | None] = str
    plain: bool = False
    dimension: int | None = None

    def keep_head(self) -> Encoder:
        """Return the same encoder with its head on, which gives logits of classes."""
        return replace(self, cut=cut_nothing)

    @property
    def default_weights(self) -> PublishedWeights:
        """The first published weights."""
        return next(iter(self.weights.values()))

    def find_weights(self, name: str) -> PublishedWeights:
        """Return the weights of that name, or the `default`; raise SetupError without any."""
        if name == "default":
            return self.default_weights
        if name not in self.weights:
            raise SetupError(
                f"unknown weights '{name}' for encoder '{self.name}'; known: default, random, "
                f"{', '.join(self.weights)}, or the path of a file, and there is no such file"
            )
        return self.weights[name]


def build_body(encoder: Encoder, *, empty: bool = False) -> tuple[nn.Module, set[str]]:
    """Build the network in float32 and cut its head off.

    An `empty` network may have no memory for its weights: random weights for a ResNet-50 that are
    then overwritten would cost a quarter of a second.

    Returns:
        The network, and the names of the head's top-level modules.

    Raises:
        SetupError: the constructor or the cut raises, or the constructor returns no module.
    """
    network = None
    # The caller's random numbers stay as they are, unless the constructor is the user's own.
    keep_seed = torch.random.fork_rng(devices=[]) if encoder.plain else nullcontext()
    with (
        keep_seed,
        convert_errors(
            f"the encoder '{encoder.name}' cannot be built",
            "correct what builds it, or choose another encoder.name",
        ),
    ):
        if empty and encoder.plain:
            with suppress(NotImplementedError, RuntimeError), torch.device("meta"):
                network = encoder.build()
        # No weights file restores non-persistent buffers.
        if network is None or any(one._non_persistent_buffers_set for one in network.modules()):
            network = encoder.build()
        if not isinstance(network, nn.Module):
            raise SetupError(
                f"the encoder '{encoder.name}' builds {type(network).__name__}, not a module"
            )
        network = network.float()
        whole = network.state_dict().keys()
        head = encoder.cut(network)
    removed = whole - network.state_dict().keys()
    return network, {head, *(name.partition(".")[0] for name in removed)}


def list_imagenet_labels() -> Sequence[str]:
    """Return the 1,000 classes of ImageNet in the usual order."""
    from torchvision.models import ResNet18_Weights

    labels: Sequence[str] = ResNet18_Weights.IMAGENET1K_V1.meta["categories"]
    return labels
