"""Pixels compared with expectations that are computed without embedstream's decoder."""

from __future__ import annotations

import io
import random
import time
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image
from torchvision import transforms

from embedstream_core.errors import Code, ItemError, Stage
from embedstream_core.media.image.opened_image import Pixels
from embedstream_core.media.image.preprocessing import ImagePreprocessing, Interpolation
from embedstream_core.settings import DecodeSettings
from pictures import encoded, mutated, png_of, real_pictures
from rendered import render_one

SIDE = 8
PHOTO = ImagePreprocessing(256, 224, "bilinear", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


def unscaled(side: int) -> ImagePreprocessing:
    return ImagePreprocessing(side, side, "nearest", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


def noise(channels: int, side: int = SIDE) -> Pixels:
    shape = (side, side, channels) if channels > 1 else (side, side)
    return np.random.default_rng(channels).integers(0, 256, shape, dtype=np.uint8)


def three_channels(grey: Pixels) -> Pixels:
    return np.stack([grey] * 3, axis=-1)


def over_white(colour: Pixels, alpha: Pixels) -> npt.NDArray[np.float64]:
    share = alpha[..., np.newaxis].astype(np.float64) / 255
    return colour * share + 255 * (1 - share)


def assert_pixels(content: bytes, expected: npt.NDArray[Any], *, tolerance: float = 0) -> None:
    picture = render_one(content, unscaled(len(expected)))
    assert picture.pixels.shape == expected.shape
    assert picture.pixels.dtype == np.uint8
    assert np.abs(picture.pixels - expected.astype(np.float64)).max() <= tolerance


def failure(content: bytes, *, settings: DecodeSettings | None = None) -> ItemError:
    with pytest.raises(ItemError) as caught:
        render_one(content, PHOTO, settings=settings)
    assert caught.value.stage == Stage.DECODE
    return caught.value


def bomb(side: int) -> bytes:
    """Return a PNG of one bit a pixel, all of them black."""
    return png_of([bytes((side + 7) // 8)] * side, side, depth=1, colour_type=0)


# Modes.


@pytest.mark.parametrize("format_", ["PNG", "BMP"])
def test_rgb_is_itself(format_: str) -> None:
    colours = noise(3)
    assert_pixels(encoded(Image.fromarray(colours), format_), colours)


def test_lossless_webp_is_itself() -> None:
    colours = noise(3)
    assert_pixels(encoded(Image.fromarray(colours), "WEBP", lossless=True), colours)


def test_grey_fills_three_channels() -> None:
    grey = noise(1)
    assert_pixels(encoded(Image.fromarray(grey)), three_channels(grey))


def test_one_bit_is_black_and_white() -> None:
    bits = noise(1) > 127
    expected = three_channels(np.where(bits, 255, 0).astype(np.uint8))
    assert_pixels(encoded(Image.fromarray(bits)), expected)


def palette_picture() -> tuple[Image.Image, Pixels, Pixels]:
    """Return an image with a palette, its indices and its colours."""
    indices = noise(1) % 4
    colours = np.array([[250, 10, 20], [30, 240, 50], [60, 70, 230], [80, 90, 100]], np.uint8)
    image = Image.fromarray(indices, "L")
    palette = Image.new("P", image.size)
    palette.putdata(indices.ravel().tolist())
    palette.putpalette(colours.ravel().tolist())
    return palette, indices, colours


@pytest.mark.parametrize("format_", ["PNG", "GIF", "BMP"])
def test_palette_is_its_colours(format_: str) -> None:
    image, indices, colours = palette_picture()
    assert_pixels(encoded(image, format_), colours[indices])


@pytest.mark.parametrize("format_", ["PNG", "GIF"])
def test_a_transparent_palette_colour_is_white(format_: str) -> None:
    image, indices, colours = palette_picture()
    expected = np.where((indices == 1)[..., np.newaxis], 255, colours[indices])
    assert_pixels(encoded(image, format_, transparency=1), expected)


def test_palette_with_alpha_lies_over_white() -> None:
    image, indices, colours = palette_picture()
    alpha = np.array([0, 85, 170, 255], np.uint8)
    content = encoded(image, transparency=alpha.tobytes())
    assert_pixels(content, over_white(colours[indices], alpha[indices]), tolerance=1)


def test_a_transparent_rgb_colour_is_white() -> None:
    colours = noise(3)
    colours[2, 3] = (1, 2, 3)
    expected = colours.copy()
    expected[2, 3] = 255
    assert_pixels(encoded(Image.fromarray(colours), transparency=(1, 2, 3)), expected)


def test_grey_with_alpha_lies_over_white() -> None:
    grey_alpha = noise(2)
    expected = over_white(three_channels(grey_alpha[..., 0]), grey_alpha[..., 1])
    assert_pixels(encoded(Image.fromarray(grey_alpha, "LA")), expected, tolerance=1)


@pytest.mark.parametrize("format_", ["PNG", "WEBP"])
def test_rgba_lies_over_white(format_: str) -> None:
    rgba = noise(4)
    options = {"lossless": True, "exact": True} if format_ == "WEBP" else {}
    content = encoded(Image.fromarray(rgba), format_, **options)
    assert_pixels(content, over_white(rgba[..., :3], rgba[..., 3]), tolerance=1)


def test_cmyk_jpeg_is_pillows_conversion() -> None:
    content = encoded(Image.fromarray(noise(4), "CMYK"), "JPEG")
    image = Image.open(io.BytesIO(content))
    assert image.mode == "CMYK"
    assert_pixels(content, np.asarray(image.convert("RGB")))


def test_sixteen_bit_grey_is_its_high_byte() -> None:
    values = np.random.default_rng(0).integers(0, 2**16, (SIDE, SIDE), dtype=np.uint16)
    content = encoded(Image.fromarray(values))
    assert content[24] == 16, "IHDR's bit depth"
    assert_pixels(content, three_channels((values >> 8).astype(np.uint8)))


@pytest.mark.parametrize(("format_", "options"), [("GIF", {}), ("WEBP", {"lossless": True})])
def test_an_animation_is_its_first_frame(format_: str, options: dict[str, Any]) -> None:
    frames = [Image.new("RGB", (SIDE, SIDE), colour) for colour in ("red", "lime", "blue")]
    content = encoded(frames[0], format_, save_all=True, append_images=frames[1:], **options)
    assert getattr(Image.open(io.BytesIO(content)), "n_frames", 1) == 3
    assert_pixels(content, np.full((SIDE, SIDE, 3), (255, 0, 0)))


# EXIF.

# How the upright image is stored under each orientation (EXIF 2.3, tag 0x0112).
STORED: dict[int, Any] = {
    1: lambda upright: upright,
    2: lambda upright: upright[:, ::-1],
    3: lambda upright: upright[::-1, ::-1],
    4: lambda upright: upright[::-1],
    5: lambda upright: upright.swapaxes(0, 1),
    6: lambda upright: np.rot90(upright, 1),
    7: lambda upright: upright[::-1, ::-1].swapaxes(0, 1),
    8: lambda upright: np.rot90(upright, -1),
}


def with_orientation(upright: Pixels, orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = np.ascontiguousarray(STORED[orientation](upright))
    return encoded(Image.fromarray(stored), exif=exif)


@pytest.mark.parametrize("orientation", STORED)
def test_orientation_is_undone(orientation: int) -> None:
    upright = noise(3)
    assert_pixels(with_orientation(upright, orientation), upright)


@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize("size", [(300, 451), (451, 300), (300, 452), (452, 300)])
def test_an_oriented_image_is_scaled_like_the_upright_one(
    orientation: int, size: tuple[int, int]
) -> None:
    photo = Image.open(io.BytesIO(real_pictures()["chelsea.png"])).resize(size)
    upright = np.asarray(photo)
    picture = render_one(with_orientation(upright, orientation), PHOTO)
    expected = render_one(encoded(Image.fromarray(upright)), PHOTO)
    assert (picture.width, picture.height) == size
    assert np.abs(picture.pixels.astype(int) - expected.pixels).max() <= 1


@pytest.mark.parametrize(
    "exif",
    [
        b"Exif\0\0",
        b"Exif\0\0II*\0\xff\xff\xff\xff",
        b"Exif\0\0MM\0*\0\0\0\x08\xff\xff\x01",
        b"junk",
    ],
)
def test_broken_exif_does_not_matter(exif: bytes) -> None:
    image = Image.fromarray(noise(3))
    plain = render_one(encoded(image, "JPEG"), unscaled(SIDE))
    broken = render_one(encoded(image, "JPEG", exif=exif), unscaled(SIDE))
    np.testing.assert_array_equal(broken.pixels, plain.pixels)


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_an_unknown_orientation_does_not_matter(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    colours = noise(3)
    assert_pixels(encoded(Image.fromarray(colours), exif=exif), colours)


# Scale and crop.


def flattened(content: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(content))
    if not image.has_transparency_data:
        return image.convert("RGB")
    layer = image.convert("RGBA")
    white = Image.new("RGBA", layer.size, "white")
    return Image.alpha_composite(white, layer).convert("RGB")


@pytest.mark.parametrize(
    ("resize_px", "interpolation", "most"),
    # Where the crop begins between two of Pillow's rounded steps, two to four of the 150,528
    # values are off by 2: measured.
    [(256, "bilinear", 1), (232, "bilinear", 2), (255, "bicubic", 2)],
)
@pytest.mark.parametrize("name", real_pictures())
def test_scaling_equals_torchvision(
    name: str, resize_px: int, interpolation: Interpolation, most: int
) -> None:
    content = real_pictures()[name]
    mode = transforms.InterpolationMode(interpolation)
    transform = transforms.Compose(
        [transforms.Resize(resize_px, mode, antialias=True), transforms.CenterCrop(224)]
    )
    expected = np.asarray(transform(flattened(content)))
    preprocessing = ImagePreprocessing(resize_px, 224, interpolation, PHOTO.mean, PHOTO.std)
    picture = render_one(content, preprocessing)
    assert np.abs(picture.pixels.astype(int) - expected).max() <= most


@pytest.mark.parametrize("size", [(1, 1), (1, 3000), (3000, 1), (2, 3)])
def test_extreme_shapes_work(size: tuple[int, int]) -> None:
    picture = render_one(encoded(Image.new("RGB", size, (10, 20, 30))), PHOTO)
    assert (picture.width, picture.height) == size
    assert (picture.pixels == (10, 20, 30)).all()
    assert picture.pixels.shape == (224, 224, 3)


def test_fast_is_close_to_exact_on_a_large_jpeg() -> None:
    content = real_pictures()["retina.jpg"]
    exact, fast = render_one(content, PHOTO), render_one(content, PHOTO, fidelity="fast")
    difference = np.abs(exact.pixels.astype(int) - fast.pixels)
    assert 0 < difference.mean() < 3
    assert (fast.width, fast.height) == (exact.width, exact.height) == (1411, 1411)


def test_fast_changes_nothing_but_large_jpegs() -> None:
    for content in (real_pictures()["chelsea.png"], encoded(Image.fromarray(noise(3)), "JPEG")):
        exact, fast = render_one(content, PHOTO), render_one(content, PHOTO, fidelity="fast")
        np.testing.assert_array_equal(fast.pixels, exact.pixels)


# Limits and broken bytes.


def test_no_bytes() -> None:
    assert failure(b"").code == Code.IMAGE_EMPTY


def test_too_many_bytes() -> None:
    content = encoded(Image.fromarray(noise(3)))
    error = failure(content, settings=DecodeSettings(max_bytes=len(content) - 1))
    assert error.code == Code.IMAGE_TOO_LARGE
    assert str(len(content)) in error.message
    render_one(content, PHOTO, settings=DecodeSettings(max_bytes=len(content)))


def test_too_many_pixels() -> None:
    content = encoded(Image.fromarray(noise(3)))
    error = failure(content, settings=DecodeSettings(max_pixels=SIDE * SIDE - 1))
    assert error.code == Code.IMAGE_TOO_LARGE
    render_one(content, PHOTO, settings=DecodeSettings(max_pixels=SIDE * SIDE))


@pytest.mark.parametrize("side", [9_500, 13_000, 20_000])
def test_a_bomb_is_refused_before_it_is_decoded(side: int) -> None:
    content = bomb(side)
    assert len(content) < 100_000
    start = time.process_time()
    assert failure(content).code == Code.IMAGE_TOO_LARGE
    assert time.process_time() - start < 0.2


def test_a_jpeg_of_many_scans_is_refused_before_it_is_decoded() -> None:
    photo = Image.open(io.BytesIO(real_pictures()["retina.jpg"])).resize((4000, 4000))
    content = encoded(photo, "JPEG", progressive=True)
    last = content.rindex(b"\xff\xda")
    # A scan's header and one byte of data, as often as an attacker likes.
    bomb = content[:-2] + content[last : last + 11] * 20_000 + content[-2:]
    start = time.process_time()

    error = failure(bomb)

    assert time.process_time() - start < 0.2
    assert error.code == Code.IMAGE_TOO_LARGE
    assert "scans; the limit is 100" in error.message
    render_one(content, PHOTO)


@pytest.mark.parametrize(
    "content",
    [
        encoded(Image.fromarray(noise(3)), "TIFF"),
        b"<!doctype html><html><body>404 Not Found</body></html>",
        b'<svg xmlns="http://www.w3.org/2000/svg" width="8" height="8"/>',
        b"\0",
    ],
    ids=["tiff", "html", "svg", "zero"],
)
def test_other_formats_are_unsupported(content: bytes) -> None:
    error = failure(content)
    assert error.code == Code.IMAGE_UNSUPPORTED
    assert "JPEG, PNG, WEBP, GIF, BMP" in error.message


@pytest.mark.parametrize("name", ["china.jpg", "chelsea.png"])
def test_truncated_images_are_corrupt(name: str) -> None:
    content = real_pictures()[name]
    assert failure(content[: len(content) // 2]).code == Code.IMAGE_CORRUPT


def test_mutations_raise_nothing_but_item_errors() -> None:
    source = random.Random(0)
    small = [content for content in real_pictures().values() if len(content) < 300_000]
    small += [encoded(Image.fromarray(noise(4)), "WEBP"), encoded(palette_picture()[0], "BMP")]
    codes: set[Code | None] = set()
    for _ in range(1_000):
        try:
            render_one(mutated(source.choice(small), source), PHOTO)
            codes.add(None)
        except ItemError as error:
            codes.add(error.code)
    assert codes >= {None, Code.IMAGE_CORRUPT, Code.IMAGE_UNSUPPORTED}
