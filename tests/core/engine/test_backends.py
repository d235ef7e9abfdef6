"""Each backend of `BACKENDS` gives the same vectors, on real networks."""

from __future__ import annotations

import logging
from functools import cache

import numpy as np
import numpy.typing as npt
import pytest
import torch

from embedstream_core.engine.backends import BACKENDS, find_graph_obstacle, find_obstacle
from embedstream_core.engine.engine import Engine
from embedstream_core.errors import SetupError
from embedstream_core.media.image.preprocessing import ImagePreprocessing
from embedstream_core.model_id import Precision
from embedstream_core.models.prepare import ModelSpec, load_prepared, prepare_model
from embedstream_core.settings import Backend, ModalityName
from engines import embed_pixels, start_engine
from pictures import real_pictures
from rendered import render_one

CPU = torch.device("cpu")
BATCH_SIZE = 3

Vectors = npt.NDArray[np.float32]


@cache
def pictures(preprocessing: ImagePreprocessing) -> list[npt.NDArray[np.uint8]]:
    contents = list(real_pictures().values())[: 2 * BATCH_SIZE + 2]
    return [render_one(content, preprocessing).pixels for content in contents]


def embed(encoder: str, backend: Backend, precision: Precision = "float32") -> Vectors:
    weights = "default" if encoder == "efficientnet_lite0" else "random"
    prepared = prepare_model(ModelSpec(encoder, weights))
    engine = Engine.start(
        load_prepared(prepared),
        device=CPU,
        precision=precision,
        backend=backend,
        batch_size=BATCH_SIZE,
        cpu_threads=1,
    )
    return embed_pixels(engine, pictures(prepared.card.image))


@cache
def reference(encoder: str) -> Vectors:
    return embed(encoder, "torch")


def least_cosine(left: Vectors, right: Vectors) -> float:
    norms = np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1)
    return float(((left * right).sum(axis=1) / norms).min())


# In each case the last model batch is not full, and is padded where the shape is compiled.
@pytest.mark.parametrize(
    ("backend", "encoder", "precision", "least"),
    [
        pytest.param("openvino", "efficientnet_lite0", "float32", 0.99999, marks=pytest.mark.slow),
        pytest.param("openvino", "efficientnet_lite0", "bfloat16", 0.999, marks=pytest.mark.slow),
        pytest.param("openvino", "resnet18", "bfloat16", 0.999, marks=pytest.mark.slow),
        pytest.param("compile", "resnet18", "float32", 0.99999, marks=pytest.mark.long),
    ],
)
def test_backends_give_the_same_vectors(
    backend: Backend, encoder: str, precision: Precision, least: float
) -> None:
    expected = reference(encoder)

    vectors = embed(encoder, backend, precision)

    assert vectors.shape == expected.shape
    assert vectors.dtype == np.float32
    assert least_cosine(vectors, expected) >= least


def test_every_backend_is_compared() -> None:
    assert set(BACKENDS) == {"torch", "openvino", "compile"}


@pytest.mark.parametrize(
    ("backend", "modalities", "fixed", "reason"),
    [
        ("torch", ["image"], True, "the encoder is a program, which runs as it is"),
        ("compile", ["image"], False, "the backend is compile"),
        ("torch", ["text"], False, "they are for encoders of images alone"),
        ("torch", ["image"], False, None),
        ("torch", ["image", "text"], False, None),
    ],
)
def test_graphs_are_for_networks_of_images(
    backend: Backend, modalities: list[ModalityName], fixed: bool, reason: str | None
) -> None:
    assert find_graph_obstacle(backend, modalities=modalities, fixed=fixed) == reason


def test_openvino_does_not_run_on_a_gpu() -> None:
    assert find_obstacle("openvino", torch.device("cuda")) == "it runs on CPUs, not on cuda"


def test_openvino_names_a_network_that_it_cannot_convert() -> None:
    class Strange(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> list[str]:
            return [str(images.shape)]

    root = logging.getLogger()
    before = root.level, [*root.filters], [*root.handlers]
    with pytest.raises(SetupError, match=r"cannot convert Strange; set encoder\.backend to torch"):
        start_engine(
            Strange(),
            ImagePreprocessing(8, 8, "bilinear", (0, 0, 0), (1, 1, 1)),
            backend="openvino",
        )
    # Else no warning of any later engine would be seen.
    assert (root.level, root.filters, root.handlers) == before
