"""What each row of `BACKENDS` must do, on a real network."""

from __future__ import annotations

from functools import cache

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import nn

from embedstream_core.engine.backends import BACKENDS
from embedstream_core.engine.engine import Engine
from embedstream_core.engine.rewrite import fold_batch_norms
from embedstream_core.errors import SetupError
from embedstream_core.media.image.decode import DecodeLimits, Preprocessing, open_image, render
from embedstream_core.model_id import Precision
from embedstream_core.models.prepare import ModelSpec, load_prepared, prepare_model
from embedstream_core.settings import Backend
from pictures import real_pictures

CPU = torch.device("cpu")
BATCH_SIZE = 3

Vectors = npt.NDArray[np.float32]


@cache
def pictures(preprocessing: Preprocessing) -> list[npt.NDArray[np.uint8]]:
    contents = list(real_pictures().values())[: 2 * BATCH_SIZE + 1]
    return [
        render(open_image(content, DecodeLimits()), preprocessing).pixels for content in contents
    ]


def embedded(encoder: str, backend: Backend, precision: Precision = "float32") -> Vectors:
    weights = "default" if encoder == "efficientnet_lite0" else "random"
    prepared = prepare_model(ModelSpec(encoder, weights))
    preprocessing = prepared.card.preprocessing
    engine = Engine.start(
        load_prepared(prepared),
        preprocessing,
        device=CPU,
        precision=precision,
        backend=backend,
        batch_size=BATCH_SIZE,
        cpu_threads=1,
    )
    return engine.embed(pictures(preprocessing))


@cache
def reference(encoder: str) -> Vectors:
    return embedded(encoder, "torch")


def least_cosine(left: Vectors, right: Vectors) -> float:
    norms = np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1)
    return float(((left * right).sum(axis=1) / norms).min())


# Each has a last batch that is not full.
@pytest.mark.parametrize(
    ("backend", "encoder", "precision", "least"),
    [
        ("openvino", "efficientnet_lite0", "float32", 0.99999),
        ("openvino", "efficientnet_lite0", "bfloat16", 0.999),
        ("openvino", "resnet18", "bfloat16", 0.999),
        pytest.param("compile", "resnet18", "float32", 0.99999, marks=pytest.mark.long),
    ],
)
def test_backends_give_the_same_vectors(
    backend: Backend, encoder: str, precision: Precision, least: float
) -> None:
    expected = reference(encoder)

    vectors = embedded(encoder, backend, precision)

    assert vectors.shape == expected.shape
    assert vectors.dtype == np.float32
    assert least_cosine(vectors, expected) >= least


@torch.inference_mode()
def test_batch_norms_fold_into_convolutions_that_pad_by_themselves() -> None:
    """EfficientNet-Lite0's convolutions are classes of its own."""
    prepared = prepare_model(ModelSpec("efficientnet_lite0"))
    images = torch.rand(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    apart = load_prepared(prepared)(images)

    folded = fold_batch_norms(load_prepared(prepared))

    assert not [layer for layer in folded.modules() if isinstance(layer, nn.BatchNorm2d)]
    assert torch.allclose(folded(images), apart, rtol=1e-3, atol=1e-4)


@torch.inference_mode()
def test_a_convolution_that_normalizes_its_weights_keeps_its_batch_norm() -> None:
    """It would undo what was folded into them."""

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


def test_every_backend_is_held_to_that() -> None:
    assert set(BACKENDS) == {"torch", "openvino", "compile"}


def test_openvino_refuses_a_gpu() -> None:
    prepared = prepare_model(ModelSpec("resnet18", weights="random"))

    with pytest.raises(SetupError, match="it runs on CPUs, not on cuda"):
        Engine.start(
            load_prepared(prepared),
            prepared.card.preprocessing,
            device=torch.device("cuda"),
            precision="float32",
            backend="openvino",
        )


def test_openvino_names_what_it_cannot_convert() -> None:
    class Strange(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> list[str]:
            return [str(images.shape)]

    with pytest.raises(SetupError, match=r"cannot convert Strange; set encoder\.backend to torch"):
        Engine.start(
            Strange(),
            Preprocessing(8, 8, "bilinear", (0, 0, 0), (1, 1, 1)),
            device=CPU,
            precision="float32",
            backend="openvino",
        )
