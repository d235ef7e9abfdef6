"""Embeddings compared with plain torchvision, for every real image."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image
from torch import nn
from torchvision import transforms

from embedstream_core.engine.engine import Engine
from embedstream_core.media.image.preprocessing import ImagePreprocessing
from embedstream_core.model_id import Precision
from embedstream_core.models.card import PreparedModel
from embedstream_core.models.encoders.catalog import find_encoder
from embedstream_core.models.prepare import ModelSpec, load_prepared, prepare_model
from embedstream_core.pipeline.pipeline import Pipeline
from embedstream_core.records import Embedding, Item
from engines import embed_pixels, run_only, start_engine
from pictures import real_pictures
from rendered import render_one

CPU = torch.device("cpu")
SPECS = [ModelSpec("efficientnet_lite0"), ModelSpec("resnet18", weights="random")]


class Case(NamedTuple):
    prepared: PreparedModel
    reference: npt.NDArray[np.float32]


def convert_to_rgb(content: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(content))
    if not image.has_transparency_data:
        return image.convert("RGB")
    layer = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")


def torchvision_transform(preprocessing: ImagePreprocessing) -> transforms.Compose:
    mode = transforms.InterpolationMode(preprocessing.interpolation)
    return transforms.Compose(
        [
            transforms.Resize(preprocessing.resize_px, mode, antialias=True),
            transforms.CenterCrop(preprocessing.crop_px),
            transforms.ToTensor(),
            transforms.Normalize(preprocessing.mean, preprocessing.std),
        ]
    )


@torch.inference_mode()
def reference_vectors(
    model: nn.Module, preprocessing: ImagePreprocessing, contents: Sequence[bytes]
) -> npt.NDArray[np.float32]:
    """Embed one image at a time, as in torchvision's documentation."""
    transform = torchvision_transform(preprocessing)
    rows = [model(transform(convert_to_rgb(content)).unsqueeze(0)) for content in contents]
    return torch.cat(rows).numpy()


@pytest.fixture(scope="module", params=SPECS, ids=lambda spec: spec.encoder)
def case(request: pytest.FixtureRequest) -> Case:
    prepared = prepare_model(request.param)
    contents = list(real_pictures().values())
    model = load_prepared(prepared).network
    return Case(prepared, reference_vectors(model, prepared.card.image, contents))


def refuse_fetch(uri: str) -> bytes:
    raise AssertionError(uri)


def embeddings(prepared: PreparedModel, precision: Precision) -> npt.NDArray[np.float32]:
    loaded = load_prepared(prepared)
    engine = Engine.start(loaded, device=CPU, precision=precision, batch_size=8)
    items = [Item(name, content=content) for name, content in real_pictures().items()]
    (outcomes,) = run_only(Pipeline([engine], fetch=refuse_fetch), [items])
    vectors = [outcome.vector for outcome in outcomes if isinstance(outcome, Embedding)]
    assert len(vectors) == len(items)
    return np.stack(vectors)


def cosines(
    left: npt.NDArray[np.float32], right: npt.NDArray[np.float32]
) -> npt.NDArray[np.float32]:
    product: npt.NDArray[np.float32] = (left * right).sum(axis=1)
    norms: npt.NDArray[np.float32] = np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1)
    return np.divide(product, norms)


LEAST: dict[Precision, float] = {"float32": 0.9999, "bfloat16": 0.999}


@pytest.mark.parametrize("precision", ["float32", pytest.param("bfloat16", marks=pytest.mark.slow)])
def test_embeddings_equal_those_of_torchvision(case: Case, precision: Precision) -> None:
    similarity = cosines(embeddings(case.prepared, precision), case.reference)
    lowest = list(real_pictures())[int(similarity.argmin())]
    assert similarity.min() >= LEAST[precision], lowest


@pytest.fixture(scope="module")
def classifier() -> Engine:
    """The whole network, head included, with its published weights."""
    encoder = find_encoder("efficientnet_lite0")
    model = encoder.build()
    published = encoder.default_weights
    assert published.download is not None
    assert published.preprocessing is not None
    model.load_state_dict(torch.load(published.download(), weights_only=True), strict=True)
    return start_engine(model.eval(), published.preprocessing)


@pytest.mark.parametrize(
    ("name", "classes"),
    # ImageNet: five kinds of cat; coffee mug, espresso, cup.
    [("chelsea.png", range(281, 286)), ("coffee.png", (504, 967, 968))],
)
def test_the_network_recognizes_the_image(
    name: str, classes: Sequence[int], classifier: Engine
) -> None:
    preprocessing = find_encoder("efficientnet_lite0").default_weights.preprocessing
    assert preprocessing is not None
    picture = render_one(real_pictures()[name], preprocessing)
    (scores,) = embed_pixels(classifier, [picture.pixels])
    assert int(scores.argmax()) in classes
