"""A saved model is read as it was, whatever its modalities."""

from __future__ import annotations

from pathlib import Path

import pytest

from embedstream_core.errors import SetupError
from embedstream_core.media.audio.preprocessing import AudioPreprocessing
from embedstream_core.media.image.preprocessing import ImagePreprocessing
from embedstream_core.media.modalities import Preprocessing
from embedstream_core.media.text.preprocessing import TextPreprocessing
from embedstream_core.models.card import ModelCard, PreparedModel, read_prepared, save_prepared

IMAGE = ImagePreprocessing(40, 32, "bicubic", (0.5, 0.4, 0.3), (0.2, 0.25, 0.3), "border")
TEXT = TextPreprocessing(256, prefix="passage: ", query_prefix="query: ", pooling="cls")
AUDIO = AudioPreprocessing(16_000, 32_000, 16_000, 400)


def card(*inputs: Preprocessing) -> ModelCard:
    return ModelCard("mine", "mine/own/0123456789ab+l2", 8, inputs, "MIT", "ab", normalize="l2")


@pytest.mark.parametrize(
    "inputs", [(IMAGE,), (TEXT,), (AUDIO,), (IMAGE, TEXT), (TEXT, IMAGE, AUDIO)], ids=str
)
def test_a_saved_model_is_read_as_it_was(inputs: tuple[Preprocessing, ...], tmp_path: Path) -> None:
    model = PreparedModel(card(*inputs), b"tensors")

    save_prepared(model, tmp_path / "model")

    assert read_prepared(tmp_path / "model") == model
    assert model.card.modalities == tuple(one.modality for one in inputs)


def test_a_card_has_the_preprocessing_of_images() -> None:
    assert card(TEXT, IMAGE).image == IMAGE
    with pytest.raises(SetupError, match="'mine' embeds text and audio, not image"):
        _ = card(TEXT, AUDIO).image
