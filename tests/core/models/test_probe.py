"""The two images that every encoder must distinguish, and the errors of one that does not."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from embedstream_core.engine.engine import Engine
from embedstream_core.errors import SetupError, SystemicError
from embedstream_core.media.image.modality import make_probe_images
from embedstream_core.media.image.preprocessing import ImagePreprocessing
from embedstream_core.model_id import Precision
from embedstream_core.models.probe import embed_probes, find_flaw
from engines import start_engine

PREPROCESSING = ImagePreprocessing(32, 32, "bilinear", mean=(0, 0, 0), std=(1, 1, 1))


class Colour(nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.mean((2, 3))


class Dead(Colour):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return 0 * super().forward(images) + 0.5


class Overflow(Colour):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return torch.exp(1000 * super().forward(images))


def engine(model: nn.Module, precision: Precision = "float32", batch_size: int = 16) -> Engine:
    return start_engine(model, PREPROCESSING, precision=precision, batch_size=batch_size)


@pytest.mark.parametrize("side_px", [1, 8, 224])
def test_the_probe_images_are_always_the_same(side_px: int) -> None:
    pictures = make_probe_images(side_px)

    assert pictures.shape == (2, side_px, side_px, 3)
    assert pictures.dtype == np.uint8
    assert (pictures[0] != pictures[1]).any()
    np.testing.assert_array_equal(pictures, make_probe_images(side_px))


@pytest.mark.parametrize(
    ("vectors", "expected"),
    [
        ([[1.0, 2.0], [1.0, 2.1]], None),
        ([[0.0, 0.0], [0.0, 1e-20]], None),
        ([[1.0, 2.0], [1.0, 2.0]], "the same vector for different images"),
        ([[1.0, 2.0], [1.0, 2.0000001]], "the same vector for different images"),
        ([[0.0, 0.0], [0.0, 0.0]], "the same vector for different images"),
        ([[1.0, 2.0], [1.0, np.inf]], "numbers that are not finite"),
        ([[np.nan, 2.0], [np.nan, 2.0]], "numbers that are not finite"),
    ],
)
def test_a_flaw_is_named(vectors: list[list[float]], expected: str | None) -> None:
    assert find_flaw(np.array(vectors, np.float32), "image") == expected


@pytest.mark.parametrize("batch_size", [1, 16])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_an_engine_that_distinguishes_images_passes(precision: Precision, batch_size: int) -> None:
    engine(Colour(), precision, batch_size).check()


@pytest.mark.parametrize(
    ("model", "message"), [(Dead(), "the same vector for different"), (Overflow(), "not finite")]
)
def test_an_engine_that_does_not_raises_a_systemic_error(model: nn.Module, message: str) -> None:
    with pytest.raises(SystemicError, match=message):
        engine(model).check()


class Length(Colour):
    """Vectors of one direction, with lengths that differ."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return super().forward(images).sum(1, keepdim=True) * torch.tensor([[1.0, 2.0]])


def test_vectors_that_differ_in_length_alone_cannot_be_normalized() -> None:
    """Else the model would be refused where it is loaded, in every task of a stream."""
    assert embed_probes(Length(), PREPROCESSING).shape == (2, 2)
    message = "same vector for different images once each is divided by its length.*to none"
    with pytest.raises(SetupError, match=message):
        embed_probes(Length(), PREPROCESSING, normalize="l2")
    embed_probes(Colour(), PREPROCESSING, normalize="l2")
    with pytest.raises(SystemicError, match="the same vector for different images"):
        replace(engine(Length()), normalize="l2").check()
