"""Image-text models in folders: both halves equal the features that transformers gives."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from embedstream_core.errors import SetupError
from embedstream_core.media.image.preprocessing import ImagePreprocessing
from embedstream_core.media.text.modality import TEXT
from embedstream_core.media.text.preprocessing import TextPreprocessing
from embedstream_core.models.folders.folder_kinds import pack_folder, read_inputs
from embedstream_core.models.prepare import ModelSpec, prepare_model
from small_models import DECLARED, pictures
from small_text_models import (
    POSITIONS,
    SIDE,
    TEXTS,
    Vectors,
    describe_halves,
    forward_texts,
    load,
    make_tokenizer,
    save,
    save_clip,
    save_siglip,
    tokenize,
)

SAVERS = [save_clip, save_siglip]
Saver = Callable[[Path], Path]


def open_theirs(folder: Path) -> tuple[Any, Any]:
    from transformers import AutoModel, AutoProcessor

    return AutoModel.from_pretrained(folder).eval(), AutoProcessor.from_pretrained(folder)


def read_features(features: Any) -> Vectors:
    vectors: Vectors = features.pooler_output.numpy()
    return vectors


def get_branch(model: nn.Module, name: str) -> nn.Module:
    assert isinstance(model, nn.ModuleDict)
    return model[name]


def assert_same(found: Vectors, expected: Vectors) -> None:
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    # A network that gives one vector for all inputs would pass everything.
    assert np.abs(expected - expected[0]).max() > 0.01


@torch.inference_mode()
def test_the_texts_of_clip(tmp_path: Path) -> None:
    folder = save_clip(tmp_path / "clip")
    model, processor = open_theirs(folder)
    inputs = processor(
        text=[*TEXTS], padding=True, truncation=True, max_length=POSITIONS, return_tensors="pt"
    )
    ours, preprocessing = load(folder)
    found = forward_texts(get_branch(ours, "text"), preprocessing, TEXTS)
    assert found.shape == (len(TEXTS), 12)
    assert_same(found, read_features(model.get_text_features(**inputs)))


@torch.inference_mode()
def test_the_texts_of_siglip_are_padded_as_it_was_trained(tmp_path: Path) -> None:
    folder = save_siglip(tmp_path / "siglip")
    model, processor = open_theirs(folder)
    inputs = processor(
        text=[*TEXTS],
        padding="max_length",
        truncation=True,
        max_length=POSITIONS,
        return_tensors="pt",
    )
    ours, preprocessing = load(folder)
    found = forward_texts(get_branch(ours, "text"), preprocessing, TEXTS)
    assert_same(found, read_features(model.get_text_features(inputs["input_ids"])))
    truncated = [tokenize(text, preprocessing).media.truncated for text in TEXTS]
    assert truncated == [False, False, True, True]
    # The padding makes a difference, so that the test can fail.
    unpadded = processor(text=TEXTS[1], return_tensors="pt")["input_ids"]
    other = read_features(model.get_text_features(unpadded))
    assert np.abs(found[1] - other).max() > 0.01


@pytest.mark.parametrize("save", SAVERS)
@torch.inference_mode()
def test_the_images(save: Saver, tmp_path: Path) -> None:
    folder = save(tmp_path / "mine")
    model, processor = open_theirs(folder)
    images = [Image.fromarray(pixels) for pixels in pictures(4)]
    pixels = processor(images=images, return_tensors="pt")["pixel_values"]
    ours, _ = load(folder)
    found: Vectors = get_branch(ours, "image")(pixels).numpy()
    assert_same(found, read_features(model.get_image_features(pixels)))
    text = forward_texts(get_branch(ours, "text"), load(folder)[1], ["a"])
    assert text.shape[1] == found.shape[1]


@pytest.mark.parametrize("save", SAVERS)
def test_both_preprocessings_are_read(save: Saver, tmp_path: Path) -> None:
    image, text = read_inputs(save(tmp_path / "mine"))
    assert isinstance(image, ImagePreprocessing)
    assert (image.resize_px, image.crop_px) == (SIDE, SIDE)
    assert isinstance(text, TextPreprocessing)
    assert (text.max_tokens, text.prefix, text.pooling) == (POSITIONS, "", "model")


@pytest.mark.parametrize("save", SAVERS)
def test_a_model_tells_its_probes_apart(save: Saver, tmp_path: Path) -> None:
    model, preprocessing = load(save(tmp_path / "mine"))
    parts = [sample.parts[0] for sample in TEXT.make_probes(preprocessing)]
    with torch.inference_mode():
        one, other = get_branch(model, "text")(*map(torch.from_numpy, TEXT.collate(parts)))
    assert (one - other).abs().max() > 0.01


@pytest.mark.parametrize("settings", [None, {"image_processor_type": "none"}, {"size": 7}])
def test_a_declared_preprocessing_replaces_one_that_cannot_be_read(
    settings: dict[str, Any] | None, tmp_path: Path
) -> None:
    """The texts stay: a model of two modalities never becomes one of one unnoticed."""
    folder = save_clip(tmp_path / "mine")
    (_, text) = read_inputs(folder)
    path = folder / "preprocessor_config.json"
    path.unlink() if settings is None else path.write_text(json.dumps(settings))
    spec = ModelSpec("huggingface", str(folder))
    with pytest.raises(SetupError, match=r"declare (the nearest to it as )?encoder\.preprocessing"):
        prepare_model(spec)
    card = prepare_model(replace(spec, preprocessing=DECLARED)).card
    assert card.inputs == (DECLARED, text)


def test_without_a_tokenizer_it_is_a_model_of_images(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = save_clip(tmp_path / "clip")
    read_inputs(folder)
    assert not caplog.text
    (folder / "tokenizer.json").unlink()
    (image,) = read_inputs(folder)
    assert isinstance(image, ImagePreprocessing)
    assert "holds no tokenizer.json, so its model embeds images and no texts" in caplog.text


def test_a_model_without_features_is_refused(tmp_path: Path) -> None:
    """A model that answers in words has a configuration for texts and one for images, too."""
    from transformers import CLIPImageProcessor, LlavaConfig, LlavaForConditionalGeneration

    tokenizer = make_tokenizer(model_max_length=POSITIONS)
    text, vision = describe_halves(tokenizer)
    config = LlavaConfig(
        vision_config={**vision, "model_type": "clip_vision_model"},
        text_config={**text, "model_type": "llama"},
    )
    size = {"height": SIDE, "width": SIDE}
    processor = CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size=size)
    model = LlavaForConditionalGeneration(config)
    folder = save(model, tmp_path / "llava", tokenizer, processor)
    with pytest.raises(SetupError, match="LlavaModel has no get_text_features"):
        load(folder)


def test_half_of_a_model_is_refused(tmp_path: Path) -> None:
    from transformers import CLIPTextConfig, CLIPTextModel

    tokenizer = make_tokenizer(model_max_length=POSITIONS)
    text, _ = describe_halves(tokenizer)
    folder = save(CLIPTextModel(CLIPTextConfig(**text)), tmp_path / "half", tokenizer)
    with pytest.raises(SetupError, match="give the folder of the whole model"):
        load(folder)


def test_a_folder_that_lacks_weights_is_refused(tmp_path: Path) -> None:
    folder = save_clip(tmp_path / "clip")
    config = (folder / "config.json").read_text()
    old = '"num_hidden_layers": 2'
    assert old in config
    (folder / "config.json").write_text(config.replace(old, '"num_hidden_layers": 3'))
    with pytest.raises(SetupError, match="its weights lack"):
        load(folder)


def test_a_folder_packs_to_the_same_bytes(tmp_path: Path) -> None:
    folder = save_clip(tmp_path / "clip")
    first = pack_folder(folder)
    (folder / "README.md").write_text("not of the model")
    assert pack_folder(folder) == first
