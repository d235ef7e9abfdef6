"""The blocks of an encoder's body that a training changes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import nn

from embedstream_core.engine.backends import Normalize
from embedstream_core.errors import SetupError
from embedstream_core.media.image.modality import make_probe_images
from embedstream_core.media.image.preprocessing import ImagePreprocessing
from embedstream_core.training.settings import TrainingSettings

__all__ = ["select_blocks"]


def select_blocks(
    body: nn.Module, preprocessing: ImagePreprocessing, settings: TrainingSettings
) -> list[str]:
    """Select the modules to train and freeze all other parameters of the body.

    Returns the modules' names; an empty name is the body itself. A block is a child module with
    parameters that the output depends on. A child that holds more than half of them all is not one
    block: its own children are. ResNet-18 ends in `layer3`, `layer4.0` and `layer4.1`.

    Raises:
        SetupError: the output depends on no parameter that can be trained.
    """
    if settings.trainable == "head":
        body.requires_grad_(False)
        return []
    body.eval().requires_grad_(True)
    device = next((one.device for one in body.parameters()), torch.device("cpu"))
    pixels = torch.from_numpy(make_probe_images(preprocessing.crop_px)).to(device)
    output: torch.Tensor = body(Normalize(preprocessing).to(device)(pixels))
    if output.requires_grad:
        output.square().sum().backward()  # type: ignore[no-untyped-call]
    # Some networks have heads that only their first training used; those get no gradient.
    sizes = {name: one.numel() for name, one in body.named_parameters() if one.grad is not None}
    body.zero_grad(set_to_none=True)
    if not sizes:
        raise SetupError(
            f"{type(body).__name__} has no parameter that can be trained; choose trainable 'head' "
            "or another encoder"
        )
    names = [""]
    if settings.trainable == "last_blocks":
        names = [*_find_blocks(body, "", sizes)][-settings.blocks :]
    trained = {id(one) for name in names for one in body.get_submodule(name).parameters()}
    for name, parameter in body.named_parameters():
        parameter.requires_grad_(name in sizes and id(parameter) in trained)
    return names


def _find_blocks(module: nn.Module, prefix: str, sizes: Mapping[str, int]) -> Iterator[str]:
    half = sum(sizes.values()) / 2
    for child_name, child in module.named_children():
        path = f"{prefix}{child_name}"
        size = sum(count for name, count in sizes.items() if name.startswith(f"{path}."))
        if size > half and any(True for _ in child.children()):
            yield from _find_blocks(child, f"{path}.", sizes)
        elif size:
            yield path
