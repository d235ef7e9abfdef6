"""Writing and parsing a `model_id`."""

from __future__ import annotations

import pytest

from embedstream_core.errors import SetupError
from embedstream_core.model_id import ModelId


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        (
            "resnet50/IMAGENET1K_V2/11ad3fa6f4b5",
            ModelId("resnet50", "IMAGENET1K_V2", "11ad3fa6f4b5"),
        ),
        (
            "timm/vit_base_patch16_224.augreg/augreg/0123456789ab@bfloat16",
            ModelId(
                "timm/vit_base_patch16_224.augreg", "augreg", "0123456789ab", precision="bfloat16"
            ),
        ),
        (
            "shop.shoes:encoder/own/0123456789ab-5d41c3",
            ModelId("shop.shoes:encoder", "own", "0123456789ab", "5d41c3"),
        ),
        (
            "onnx/a-name@home/0123456789ab-5d41c3@bfloat16",
            ModelId("onnx", "a-name@home", "0123456789ab", "5d41c3", precision="bfloat16"),
        ),
        (
            "minilm/own+l2/0123456789ab+l2",
            ModelId("minilm", "own+l2", "0123456789ab", normalize="l2"),
        ),
        (
            "resnet50/IMAGENET1K_V2/11ad3fa6f4b5-5d41c3+l2@bfloat16",
            ModelId("resnet50", "IMAGENET1K_V2", "11ad3fa6f4b5", "5d41c3", "l2", "bfloat16"),
        ),
        ("mlflow/shoes/7/0123456789ab", ModelId("mlflow", "shoes/7", "0123456789ab")),
        ("mlflow/m-123/0123456789ab", ModelId("mlflow", "m-123", "0123456789ab")),
    ],
)
def test_a_text_is_parsed_and_written(text: str, parts: ModelId) -> None:
    assert ModelId.parse(text) == parts
    assert str(parts) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "resnet50",
        "resnet50/11ad3fa6f4b5",
        "resnet50/IMAGENET1K_V2/not a hash",
        "resnet50/IMAGENET1K_V2/11ad3fa6f4b5@float16",
        "resnet50/IMAGENET1K_V2/11ad3fa6f4b5-5d41",
        "resnet50/IMAGENET1K_V2/11ad3fa6f4b5+none",
        "resnet50/IMAGENET1K_V2/11ad3fa6f4b5@bfloat16+l2",
    ],
)
def test_an_invalid_text_is_refused_with_the_form(text: str) -> None:
    with pytest.raises(SetupError, match="<encoder>/<weights>/<start of the sha256>"):
        ModelId.parse(text)


def test_each_precision_has_its_own_id() -> None:
    exact = ModelId("resnet50", "IMAGENET1K_V2", "11ad3fa6f4b5")

    rounded = exact.in_precision("bfloat16")

    assert str(rounded) == f"{exact}@bfloat16"
    assert rounded.in_precision("float32") == exact
