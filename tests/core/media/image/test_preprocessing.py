"""Crop modes give the same pixels as timm's own transforms."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image
from timm.data import create_transform
from torchvision import transforms

from embedstream_core.media.image.opened_image import Pixels
from embedstream_core.media.image.preprocessing import CropMode, ImagePreprocessing
from pictures import encoded, exif_orientation, real_pictures
from rendered import render_one, render_one_quickly

MEAN = (0.485, 0.456, 0.406)
# Landscape, portrait, square, odd, smaller than the crop, and far from square.
SIZES = [(451, 300), (300, 451), (320, 320), (301, 452), (80, 61), (61, 80), (900, 90)]


def photo(size: tuple[int, int]) -> Image.Image:
    image = Image.open(io.BytesIO(real_pictures()["chelsea.png"])).convert("RGB")
    return image.resize(size)


def of_timm(image: Image.Image, mode: CropMode, percent: float) -> Pixels:
    transform = create_transform(
        (3, 224, 224),
        crop_pct=percent,
        crop_mode=mode,
        interpolation="bicubic",
        mean=MEAN,
        std=(1, 1, 1),
        normalize=False,
    )
    return np.asarray(transform(image).permute(1, 2, 0), np.uint8)


def prepared(mode: CropMode, percent: float) -> ImagePreprocessing:
    resize_px = int(224 / percent)
    return ImagePreprocessing(resize_px, 224, "bicubic", MEAN, (1, 1, 1), crop_mode=mode)


def assert_alike(found: Pixels, expected: Pixels) -> None:
    difference = np.abs(found.astype(int) - expected)
    # Only the crop is scaled, and it begins between two of Pillow's rounded steps: a few values
    # are off by 2.
    assert difference.max() <= 2
    assert difference.mean() < 0.3


@pytest.mark.parametrize("percent", [1.0, 0.875])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("mode", ["center", "squash", "border"])
def test_pixels_equal_timms(mode: CropMode, size: tuple[int, int], percent: float) -> None:
    image = photo(size)
    content = encoded(image)
    picture = render_one(content, prepared(mode, percent))
    assert_alike(picture.pixels, of_timm(image, mode, percent))
    assert (picture.width, picture.height) == size


@pytest.mark.parametrize("size", [(451, 300), (300, 451)])
@pytest.mark.parametrize("mode", ["squash", "border"])
def test_pixels_of_jpegs_equal_timms(mode: CropMode, size: tuple[int, int]) -> None:
    content = encoded(photo(size), "JPEG")
    picture = render_one_quickly(content, prepared(mode, 0.875))
    decoded = Image.open(io.BytesIO(content)).convert("RGB")
    assert_alike(picture.pixels, of_timm(decoded, mode, 0.875))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("mode", ["center", "squash", "border"])
def test_the_displayed_image_is_prepared(mode: CropMode, orientation: int) -> None:
    # The margin of border is odd: 224 - 149.
    exif = exif_orientation(3, orientation.to_bytes(2, "little"))
    content = encoded(photo((453, 302)), exif=exif)
    with Image.open(io.BytesIO(content)) as image:
        upright = image.transpose(TRANSPOSED[orientation]) if orientation > 1 else image.copy()
    picture = render_one(content, prepared(mode, 1.0))
    assert_alike(picture.pixels, of_timm(upright, mode, 1.0))


TRANSPOSED = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@pytest.mark.parametrize("resize_px", [200, 199])
@pytest.mark.parametrize("size", [(451, 300), (300, 451), (200, 200)])
def test_a_crop_larger_than_the_image_is_padded_as_by_torchvision(
    size: tuple[int, int], resize_px: int
) -> None:
    image = photo(size)
    steps = [transforms.Resize(resize_px, antialias=True), transforms.CenterCrop(224)]
    expected = np.asarray(transforms.Compose(steps)(image))
    content = encoded(image)
    wanted = ImagePreprocessing(resize_px, 224, "bilinear", MEAN, (1, 1, 1))
    pixels = render_one_quickly(content, wanted).pixels
    assert_alike(pixels, expected)
    assert (expected[0] == 0).all() or (expected[:, 0] == 0).all()


@pytest.mark.parametrize("size", [(1, 3000), (3000, 1)])
@pytest.mark.parametrize("mode", ["squash", "border"])
def test_extreme_shapes_work(mode: CropMode, size: tuple[int, int]) -> None:
    content = encoded(Image.new("RGB", size, (10, 20, 30)))
    pixels = render_one(content, prepared(mode, 1.0)).pixels
    assert pixels.shape == (224, 224, 3)
    assert (pixels == (10, 20, 30)).all(axis=-1).any()
