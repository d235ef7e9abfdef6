"""What each row of `BACKENDS` must do, on a real network."""

from __future__ import annotations

from functools import cache

import numpy as np
import numpy.typing as npt
import pytest
import torch

from embedstream_core.backends import BACKENDS, Backend
from embedstream_core.decode import DecodeLimits, Preprocessing, open_image, render
from embedstream_core.engine import Engine, Precision
from embedstream_core.errors import SetupError
from embedstream_core.weights import ModelSpec, load_prepared, prepare_model
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
        ("compile", "resnet18", "float32", 0.99999),
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
