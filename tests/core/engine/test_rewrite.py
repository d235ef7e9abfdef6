"""Rewriting a network for speed leaves its embeddings as they were."""

from __future__ import annotations

from typing import cast

import pytest
import torch
from torch import nn

from embedstream_core.engine.rewrite import fold_batch_norms, rewrite_model
from embedstream_core.models.prepare import ModelSpec, load_prepared, prepare_model

SIDE = 8


class Depthwise(nn.Module):
    """A depthwise and a pointwise convolution, which record the type of their input."""

    def __init__(self) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(3, 3, 3, groups=3)
        self.pointwise = nn.Conv2d(3, 4, 1)
        self.dtypes: list[torch.dtype] = []
        for layer in (self.depthwise, self.pointwise):
            layer.register_forward_hook(lambda _, given, __: self.dtypes.append(given[0].dtype))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return cast("torch.Tensor", self.pointwise(self.depthwise(images))).mean((2, 3))


def test_bfloat16_keeps_depthwise_convolutions_in_float32() -> None:
    model = Depthwise()

    vectors = rewrite_model(model, torch.bfloat16)(torch.zeros(1, 3, SIDE, SIDE))

    assert vectors.dtype == torch.float32
    assert model.dtypes == [torch.float32, torch.bfloat16]


def test_bfloat16_rounds_every_layer_of_a_model_without_depthwise_convolutions() -> None:
    model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Linear(6, 2))

    rewritten = rewrite_model(model.eval(), torch.bfloat16)

    assert {parameter.dtype for parameter in rewritten.parameters()} == {torch.bfloat16}


def test_folding_batch_norms_keeps_the_output() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten())
    with torch.no_grad():
        model(torch.rand(32, 3, SIDE, SIDE))
    model.eval()
    images = torch.rand(2, 3, SIDE, SIDE)
    expected = model(images)

    folded = fold_batch_norms(model)

    assert not [layer for layer in folded.modules() if isinstance(layer, nn.BatchNorm2d)]
    torch.testing.assert_close(folded(images), expected)


class Shared(nn.Module):
    """One convolution before a batch norm in one place, and alone in another."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, 3, 1)
        self.norm = nn.BatchNorm2d(3)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        first = self.norm(self.convolution(images))
        return cast("torch.Tensor", self.convolution(first))


class Branching(nn.Module):
    """Branches on values, so that torch.fx cannot trace it."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return cast("torch.Tensor", self.inner(images) if images.sum() > 0 else images)


@pytest.mark.parametrize("model", [Shared(), Branching()], ids=["shared", "branching"])
def test_a_network_that_cannot_be_folded_stays_unchanged(model: nn.Module) -> None:
    model.eval()
    images = torch.rand(2, 3, SIDE, SIDE)
    expected = model(images)

    torch.testing.assert_close(fold_batch_norms(model)(images), expected)


@torch.inference_mode()
def test_batch_norms_fold_into_subclasses_of_convolutions() -> None:
    """EfficientNet-Lite0 has convolutions with padding of their own."""
    prepared = prepare_model(ModelSpec("efficientnet_lite0"))
    images = torch.rand(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    apart = load_prepared(prepared).network(images)

    folded = fold_batch_norms(load_prepared(prepared).network)

    assert not [layer for layer in folded.modules() if isinstance(layer, nn.BatchNorm2d)]
    assert torch.allclose(folded(images), apart, rtol=1e-3, atol=1e-4)


@torch.inference_mode()
def test_a_convolution_that_normalizes_its_weights_keeps_its_batch_norm() -> None:
    """The normalization would undo the folding."""

    class Standardized(nn.Conv2d):
        def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002
            normalized = self.weight / self.weight.norm()
            return nn.functional.conv2d(input, normalized, self.bias)

    torch.manual_seed(0)
    norm = nn.BatchNorm2d(4)
    norm.running_var = torch.full((4,), 9.0)
    model = nn.Sequential(Standardized(3, 4, 3), norm).eval()
    images = torch.rand(2, 3, 16, 16)
    apart = model(images)

    folded = fold_batch_norms(model)

    assert isinstance(folded.get_submodule("1"), nn.BatchNorm2d)
    assert torch.equal(folded(images), apart)
