"""Settings of transformers' image processors are translated, or refused by name."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torchvision
from packaging.version import Version
from PIL import Image

from embedstream_core.errors import SetupError
from embedstream_core.media.image.preprocessing import ImagePreprocessing
from embedstream_core.models.folders.image_processors import PROCESSOR_FILES, read_inputs
from embedstream_core.models.prepare import prepare_model
from pictures import encoded
from rendered import render_one
from small_models import DECLARED, SIDE, huggingface_model

HALF = (0.5, 0.5, 0.5)
CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))


def folder_with(
    folder: Path, settings: Mapping[str, object], name: str = PROCESSOR_FILES[0]
) -> Path:
    (folder / "config.json").write_text(json.dumps({"model_type": "vit"}))
    written = settings if name == PROCESSOR_FILES[0] else {"image_processor": settings}
    (folder / name).write_text(json.dumps(written))
    return folder


DONE: dict[str, tuple[dict[str, object], ImagePreprocessing]] = {
    "a class's own": (
        {"image_processor_type": "ViTImageProcessor"},
        ImagePreprocessing(224, 224, "bilinear", HALF, HALF, "squash"),
    ),
    "of another class": (
        {"image_processor_type": "CLIPImageProcessor"},
        ImagePreprocessing(224, 224, "bicubic", *CLIP),
    ),
    "an older file": (
        {"feature_extractor_type": "CLIPFeatureExtractor", "size": 256, "crop_size": 224},
        ImagePreprocessing(256, 224, "bicubic", *CLIP),
    ),
    "single numbers": (
        {"image_processor_type": "ViTImageProcessor", "image_mean": 0.4, "image_std": 0.2},
        ImagePreprocessing(224, 224, "bilinear", (0.4, 0.4, 0.4), (0.2, 0.2, 0.2), "squash"),
    ),
    "values of 0 to 2": (
        {"image_processor_type": "ViTImageProcessor", "rescale_factor": 1 / 127.5},
        ImagePreprocessing(224, 224, "bilinear", (0.25,) * 3, (0.25,) * 3, "squash"),
    ),
    "values of 0 to 255": (
        {"image_processor_type": "ViTImageProcessor", "do_rescale": False},
        ImagePreprocessing(224, 224, "bilinear", (0.5 / 255,) * 3, (0.5 / 255,) * 3, "squash"),
    ),
    "values as they are": (
        {"image_processor_type": "ViTImageProcessor", "do_normalize": False},
        ImagePreprocessing(224, 224, "bilinear", (0.0,) * 3, (1.0,) * 3, "squash"),
    ),
    "squeezed, then cut": (
        {"image_processor_type": "ViTImageProcessor", "do_center_crop": True, "crop_size": 200},
        ImagePreprocessing(224, 200, "bilinear", HALF, HALF, "squash"),
    ),
    "ConvNeXT, small": (
        {"image_processor_type": "ConvNextImageProcessor", "size": {"shortest_edge": 224}},
        ImagePreprocessing(256, 224, "bicubic", HALF, HALF),
    ),
    "ConvNeXT, large": (
        {"image_processor_type": "ConvNextImageProcessor"},
        ImagePreprocessing(384, 384, "bicubic", HALF, HALF, "squash"),
    ),
    "a crop of a margin": (
        {"image_processor_type": "PoolFormerImageProcessor", "crop_pct": 0.875},
        ImagePreprocessing(256, 224, "bicubic", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    ),
    "resample by number": (
        {"image_processor_type": "CLIPImageProcessor", "resample": 1},
        ImagePreprocessing(224, 224, "lanczos", *CLIP),
    ),
    "padding that adds nothing": (
        {"image_processor_type": "ViTImageProcessor", "do_pad": True},
        ImagePreprocessing(224, 224, "bilinear", HALF, HALF, "squash"),
    ),
    "scaled as floats": (
        {"image_processor_type": "DINOv3ViTImageProcessor"},
        ImagePreprocessing(
            224, 224, "bilinear", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), "squash"
        ),
    ),
}
# transformers passes the name on to torchvision, which accepts names since 0.28.
if Version(torchvision.__version__) >= Version("0.28"):
    DONE["resample by name"] = (
        {"image_processor_type": "ViTImageProcessor", "resample": "bicubic"},
        ImagePreprocessing(224, 224, "bicubic", HALF, HALF, "squash"),
    )


@pytest.mark.parametrize(("settings", "expected"), DONE.values(), ids=DONE.keys())
@pytest.mark.parametrize("name", PROCESSOR_FILES)
def test_settings_are_translated(
    name: str, settings: dict[str, object], expected: ImagePreprocessing, tmp_path: Path
) -> None:
    (found,) = read_inputs(folder_with(tmp_path, settings, name))

    assert found.mean == pytest.approx(expected.mean)
    assert found.std == pytest.approx(expected.std)
    expected = replace(expected, odd_margin="down")
    assert replace(found, mean=HALF, std=HALF) == replace(expected, mean=HALF, std=HALF)


@pytest.mark.parametrize("settings", [case[0] for case in DONE.values()], ids=DONE.keys())
@pytest.mark.parametrize("size", [(300, 500), (640, 399)])
def test_an_image_is_prepared_as_by_transformers(
    settings: dict[str, object], size: tuple[int, int], tmp_path: Path
) -> None:
    from transformers import AutoImageProcessor

    folder = folder_with(tmp_path, settings)
    (preprocessing,) = read_inputs(folder)
    colours = np.random.default_rng(1).integers(256, size=(5, 5, 3), dtype=np.uint8)
    image = Image.fromarray(colours).resize(size, Image.Resampling.BICUBIC)

    pixels = render_one(encoded(image, "PNG"), preprocessing).pixels

    mean, std = np.array(preprocessing.mean), np.array(preprocessing.std)
    ours = (pixels / 255 - mean) / std
    processor = AutoImageProcessor.from_pretrained(folder)
    theirs = processor(images=image, return_tensors="pt")["pixel_values"][0].permute(1, 2, 0)
    levels = np.abs(ours - theirs.numpy()) * std * 255
    # Half a level: DINOv3's is not rounded.
    assert levels.mean() < 0.5


def named(key: str, **settings: object) -> Any:
    kind = {"image_processor_type": "ViTImageProcessor"}
    return pytest.param({**kind, **settings}, key, id=key)


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        named(
            "crop_to_patches True",
            image_processor_type="GotOcr2ImageProcessor",
            crop_to_patches=True,
        ),
        named(
            "do_pan_and_scan True",
            image_processor_type="Gemma3ImageProcessor",
            do_pan_and_scan=True,
        ),
        named(
            "keep_aspect_ratio", image_processor_type="DPTImageProcessor", keep_aspect_ratio=True
        ),
        named(
            "ensure_multiple_of 32", image_processor_type="DPTImageProcessor", ensure_multiple_of=32
        ),
        named(
            "size {'max_height': 224, 'max_width': 224}", size={"max_height": 224, "max_width": 224}
        ),
        named(
            "do_color_quantize True",
            image_processor_type="ImageGPTImageProcessor",
            size={"height": 32, "width": 32},
        ),
        named("do_resize", do_resize=False),
        named("do_flip_channel_order", image_processor_type="MobileViTImageProcessor"),
        named("resample 4", resample=4),
        named("resample 5", resample=5),
        named("size {'height': 224, 'width': 112}", size={"height": 224, "width": 112}),
        named("size {'shortest_edge': 224}", size={"shortest_edge": 224}),
        named("size {'longest_edge': 224}", size={"longest_edge": 224}),
        named("size {'longest_edge': 1333", image_processor_type="DetrImageProcessor"),
        named(
            "crop_size {'height': 256, 'width': 256} of a size of 224",
            do_center_crop=True,
            crop_size=256,
        ),
        named("crop_size", do_center_crop=True, crop_size={"height": 64, "width": 32}),
        named("image_std", image_std=[0.5, 0.0, 0.5]),
        named("image_mean", image_mean=[0.5, 0.5]),
        named("rescale_factor", rescale_factor=-1.0),
        named("pad_size {'height': 300", do_pad=True, pad_size={"height": 300, "width": 300}),
        named(
            "rescale_offset", image_processor_type="EfficientNetImageProcessor", rescale_offset=True
        ),
        named(
            "crop_pct",
            image_processor_type="ConvNextImageProcessor",
            size={"shortest_edge": 64},
            crop_pct=0,
        ),
        named("13 levels off", image_processor_type="LevitImageProcessor"),
        named("(1, 1, 3, 224, 224)", image_processor_type="VideoMAEImageProcessor"),
        named("cannot be opened", image_processor_type="NoSuchProcessor", size="wide"),
    ],
)
def test_an_unsupported_setting_is_named(
    settings: dict[str, object], key: str, tmp_path: Path
) -> None:
    with pytest.raises(SetupError) as caught:
        read_inputs(folder_with(tmp_path, settings))
    assert key in str(caught.value)
    assert "declare the nearest to it as encoder.preprocessing" in str(caught.value)


def test_keys_that_the_class_does_not_read_are_ignored_as_by_transformers(tmp_path: Path) -> None:
    settings = {
        "image_processor_type": "ViTImageProcessor",
        "max_patches": 7,
        "tile_size": 100,
        "written_by": "hand",
    }
    (found,) = read_inputs(folder_with(tmp_path, settings))
    assert (found.resize_px, found.crop_mode) == (224, "squash")


def list_processors() -> list[str]:
    """The names of transformers' image processors."""
    import transformers

    return sorted(
        name
        for name in dir(transformers)
        if name.endswith("ImageProcessor") and name != "BaseImageProcessor"
    )


@pytest.mark.long
def test_every_processor_of_transformers_is_done_or_refused(tmp_path: Path) -> None:
    from transformers import AutoImageProcessor

    done = []
    for name in list_processors():
        folder = tmp_path / name
        folder.mkdir()
        try:
            (preprocessing,) = read_inputs(folder_with(folder, {"image_processor_type": name}))
        except SetupError:
            continue
        done.append(name)
        processor = AutoImageProcessor.from_pretrained(folder)
        for size in ((301, 500), (640, 399), (90, 1400), (61, 47)):
            colours = np.random.default_rng(2).integers(256, size=(7, 7, 3), dtype=np.uint8)
            image = Image.fromarray(colours).resize(size, Image.Resampling.BICUBIC)
            pixels = render_one(encoded(image, "PNG"), preprocessing).pixels
            theirs = processor(images=image, return_tensors="pt")["pixel_values"][0]
            mean, std = np.array(preprocessing.mean), np.array(preprocessing.std)
            levels = (theirs.permute(1, 2, 0).numpy() * std + mean) * 255
            assert np.abs(levels - pixels).mean() < 0.75, (name, size)
    assert len(done) > 25
    assert {"CLIPImageProcessor", "SiglipImageProcessor", "ViTImageProcessor"} <= {*done}


def test_a_folder_without_a_processor_has_no_preprocessing(tmp_path: Path) -> None:
    assert read_inputs(tmp_path) == ()
    (tmp_path / "processor_config.json").write_text('{"processor_class": "CLIPProcessor"}')
    assert read_inputs(tmp_path) == ()


def test_code_of_a_processor_is_not_run(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    (tmp_path / "mine.py").write_text(f"import os; os.mkdir({str(marker)!r})")
    settings = {"image_processor_type": "Mine", "auto_map": {"AutoImageProcessor": "mine.Mine"}}
    with pytest.raises(SetupError, match="cannot be opened"):
        read_inputs(folder_with(tmp_path, settings))
    assert not marker.exists()


def test_a_declared_preprocessing_wins_over_an_unsupported_one(tmp_path: Path) -> None:
    spec = huggingface_model(tmp_path)
    folder_of = Path(spec.weights) / PROCESSOR_FILES[0]
    folder_of.write_text(json.dumps({"do_resize": False}))
    with pytest.raises(SetupError, match="do_resize"):
        prepare_model(spec)
    assert prepare_model(replace(spec, preprocessing=DECLARED)).card.inputs == (DECLARED,)


def test_either_file_is_part_of_the_model(tmp_path: Path) -> None:
    """Two folders that prepare images differently are two models."""
    spec = huggingface_model(tmp_path)
    (Path(spec.weights) / PROCESSOR_FILES[0]).unlink()
    ids = set()
    for mean in (0.4, 0.5):
        settings = {"size": {"height": SIDE, "width": SIDE}, "image_mean": mean}
        (Path(spec.weights) / PROCESSOR_FILES[1]).write_text(
            json.dumps({"image_processor": settings})
        )
        ids.add(prepare_model(spec).card.model_id)
    assert len(ids) == 2
