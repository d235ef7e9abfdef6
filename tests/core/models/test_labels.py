"""Encoders with their heads on: they label images."""

from __future__ import annotations

import pytest
import torch

from embedstream_core.engine.engine import Engine
from embedstream_core.errors import SetupError
from embedstream_core.models.prepare import ModelSpec, load_prepared, prepare_model
from embedstream_core.pipeline.pipeline import Pipeline
from embedstream_core.records import Embedding, Item
from engines import run_only
from pictures import real_pictures


@pytest.mark.parametrize(
    ("name", "weights"),
    [("efficientnet_lite0", "default"), ("resnet18", "random"), ("timm/resnet18", "random")],
)
def test_classes_of_imagenet_are_named(name: str, weights: str) -> None:
    card = prepare_model(ModelSpec(name, weights=weights, head="kept")).card

    assert card.dimension == len(card.labels) == 1000
    assert card.labels[0] == "tench"
    assert card.labels[985] == "daisy"


def test_an_embedding_has_no_labels() -> None:
    assert prepare_model(ModelSpec("resnet18", weights="random")).card.labels == ()


def test_real_weights_label_real_images() -> None:
    model = prepare_model(ModelSpec("efficientnet_lite0", head="kept"))
    engine = Engine.start(load_prepared(model), device=torch.device("cpu"))
    pipeline = Pipeline([engine], fetch=lambda uri: b"")
    contents = [real_pictures()[name] for name in ("chelsea.png", "coffee.png")]

    (outcomes,) = run_only(pipeline, [[Item("", content=content) for content in contents]])

    vectors = [one.vector for one in outcomes if isinstance(one, Embedding)]
    cat, coffee = (model.card.labels[int(vector.argmax())] for vector in vectors)
    assert cat in ("tabby", "tiger cat", "Egyptian cat")
    assert coffee in ("espresso", "cup", "coffee mug")


def test_an_encoder_without_class_names_is_refused() -> None:
    with pytest.raises(SetupError, match="names 0 classes for its"):
        prepare_model(ModelSpec("small_models:network_and_preprocessing", head="kept"))
