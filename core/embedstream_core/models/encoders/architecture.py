"""What an encoder is: an architecture, its published weights, and where its head is cut."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import torch
from torch import nn

from embedstream_core.errors import EmbedstreamError, SetupError, explain
from embedstream_core.media.image.decode import Preprocessing

__all__ = [
    "Encoder",
    "PublishedWeights",
    "build_body",
    "build_network",
    "cut_head",
    "cut_network",
    "cut_nothing",
    "imagenet_labels",
]

_Result = TypeVar("_Result")

# No tensor's name begins with it.
_NO_HEAD = "(none)"


@dataclass(frozen=True, slots=True)
class PublishedWeights:
    """Trained weights that have a name.

    `sha256` is the file's hash, or the first characters of it that the publisher states. `download`
    is None where the encoder's `build` gives them already; `preprocessing`, where the user declares
    it, and `unsupported` then names what the published one asks for that is not done here. `labels`
    names the classes of the encoder's head, in order, where it is known to have any. `load` makes
    the whole network from the downloaded file, where its tensors have names of their own.
    """

    name: str
    preprocessing: Preprocessing | None
    license: str
    sha256: str
    download: Callable[[], Path] | None
    labels: Callable[[], Sequence[str]] = tuple
    load: Callable[[Path], nn.Module] | None = None
    unsupported: str = ""


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


def cut_nothing(model: nn.Module) -> str:
    """Leave a network that gives vectors as it is."""
    return _NO_HEAD


@dataclass(frozen=True, slots=True)
class Encoder:
    """An architecture and its published weights, the default first.

    `build` makes the whole network, head included, with untrained weights unless some published
    ones say otherwise; `cut` takes its head off, in place, and returns the head's module name.
    `rename` gives the network's name for a tensor of a weights file, or None for one that only
    training uses. `plain` networks can be built without memory for their weights: all that they
    compute with is a parameter or a buffer.
    """

    name: str
    build: Callable[[], nn.Module]
    weights: Mapping[str, PublishedWeights]
    cut: Callable[[nn.Module], str] = cut_head
    rename: Callable[[str], str | None] = str
    plain: bool = False

    def whole(self) -> Encoder:
        """The same with its head on: it gives logits of classes."""
        return replace(self, cut=cut_nothing)

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
                f"{', '.join(self.weights)}, or the path of a file, and there is no such file"
            )
        return self.weights[name]


def build_network(encoder: Encoder, *, empty: bool = False) -> nn.Module:
    """Build the whole network in float32; an `empty` one may have no memory for its weights.

    Filling ResNet-50 with random numbers that are thrown away costs a quarter of a second.

    Raises:
        SetupError: the constructor raises, or returns no module.
    """
    network = _call(encoder, lambda: _build(encoder, empty=empty))
    if not isinstance(network, nn.Module):
        raise SetupError(
            f"the encoder '{encoder.name}' builds {type(network).__name__}, not a module"
        )
    return network.float()


def cut_network(encoder: Encoder, network: nn.Module) -> str:
    """Cut the head off, in place; return its module's name.

    Raises:
        SetupError: the encoder's `cut` raises.
    """
    return _call(encoder, lambda: encoder.cut(network))


def build_body(encoder: Encoder, *, empty: bool = False) -> nn.Module:
    """Build the network and cut its head off: `build_network` and `cut_network`."""
    network = build_network(encoder, empty=empty)
    cut_network(encoder, network)
    return network


def _call(encoder: Encoder, step: Callable[[], _Result]) -> _Result:
    try:
        return step()
    except EmbedstreamError:
        raise
    except Exception as error:
        # A constructor raises whatever its author chose.
        raise SetupError(
            f"the encoder '{encoder.name}' cannot be built ({explain(error)}): correct what builds "
            "it, or choose another encoder.name"
        ) from error


def _build(encoder: Encoder, *, empty: bool) -> nn.Module:
    if not (empty and encoder.plain):
        return encoder.build()
    try:
        with torch.device("meta"):
            network = encoder.build()
    except (NotImplementedError, RuntimeError):
        return encoder.build()
    # No file gives these buffers their values back.
    has_more = any(module._non_persistent_buffers_set for module in network.modules())
    return encoder.build() if has_more else network


def imagenet_labels() -> Sequence[str]:
    """The 1,000 classes of ImageNet in the usual order."""
    from torchvision.models import ResNet18_Weights

    labels: Sequence[str] = ResNet18_Weights.IMAGENET1K_V1.meta["categories"]
    return labels
