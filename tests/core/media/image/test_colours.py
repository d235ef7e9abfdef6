"""Colours of ICC profiles, compared with the formulas of colorimetry."""

from __future__ import annotations

import io
import struct
import zlib
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import tifffile
from PIL import Image, ImageCms

from colour_profiles import (
    ADOBE_PRIMARIES,
    cmyk_profile,
    convert_lab,
    convert_rgb,
    encode_srgb,
    gray_profile,
    rgb_profile,
)
from embedstream_core.errors import Code, ItemError
from embedstream_core.media.image import colours
from embedstream_core.media.image.decode import open_image, render
from embedstream_core.media.image.fast_jpeg import render_quickly
from embedstream_core.media.image.opened_image import Pixels
from embedstream_core.media.image.preprocessing import ImagePreprocessing
from embedstream_core.settings import IMAGE_FORMATS, DecodeSettings
from pictures import encoded, png_chunk, png_of

SIDE = 16
SRGB = DecodeSettings(formats=IMAGE_FORMATS, color="srgb")
STORED = DecodeSettings(formats=IMAGE_FORMATS)
UNSCALED = ImagePreprocessing(SIDE, SIDE, "nearest", (0, 0, 0), (1, 1, 1))

GAMMA = 2.19921875
ADOBE = rgb_profile(ADOBE_PRIMARIES, GAMMA)
P3_PRIMARIES = ((0.68, 0.32), (0.265, 0.69), (0.15, 0.06))
P3 = rgb_profile(P3_PRIMARIES, 2.2)
OWN = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()

NOISE = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
GREY = NOISE[..., 0]

LOSSLESS: dict[str, dict[str, Any]] = {
    "PNG": {},
    "WEBP": {"lossless": True},
    "TIFF": {},
    "JPEG2000": {},
    "AVIF": {"quality": 100, "subsampling": "4:4:4"},
}


def decoded(content: bytes, settings: DecodeSettings = SRGB) -> Pixels:
    (pixels,) = render(open_image(content, settings), UNSCALED)
    return pixels


def assert_near(found: Pixels, expected: npt.NDArray[Any], levels: float) -> None:
    assert np.abs(found - expected.astype(np.float64)).max() <= levels


def with_profile(image: Image.Image, format_: str, profile: bytes, **options: Any) -> bytes:
    """Encode an image; Pillow writes no profile into a JPEG 2000."""
    content = encoded(image, format_, icc_profile=profile, **options)
    if format_ != "JPEG2000":
        return content
    place = content.index(b"colr") - 4
    box = struct.pack(">I4sBBB", 11 + len(profile), b"colr", 2, 0, 0) + profile
    parent = content.index(b"jp2h") - 4
    length = struct.unpack_from(">I", content, parent)[0] + len(box) - 15
    start = content[:parent] + struct.pack(">I", length) + content[parent + 4 : place]
    return start + box + content[place + 15 :]


@pytest.mark.parametrize("format_", LOSSLESS)
@pytest.mark.parametrize(
    ("profile", "primaries", "gamma"),
    [(ADOBE, ADOBE_PRIMARIES, GAMMA), (P3, P3_PRIMARIES, 2.2)],
    ids=["Adobe RGB", "P3"],
)
def test_rgb_is_converted(format_: str, profile: bytes, primaries: Any, gamma: float) -> None:
    content = with_profile(Image.fromarray(NOISE), format_, profile, **LOSSLESS[format_])
    stored = decoded(content, STORED)
    assert_near(stored, NOISE, 3 if format_ == "AVIF" else 0)
    assert_near(decoded(content), convert_rgb(stored, primaries, gamma), 1.5)
    assert np.abs(decoded(content).astype(int) - stored).max() > 20


def test_a_heics_profile_is_read() -> None:
    heif = pytest.importorskip("pillow_heif")
    heif.register_heif_opener()
    content = encoded(Image.fromarray(NOISE), "HEIF", icc_profile=P3, quality=90)
    stored = decoded(content, STORED)
    assert_near(decoded(content), convert_rgb(stored, P3_PRIMARIES, 2.2), 1.5)


def test_adobe_rgb_by_the_published_matrices() -> None:
    """To XYZ of D65 (Adobe RGB (1998), 4.3.5.3), and from there to sRGB (IEC 61966-2-1)."""
    to_xyz = [[0.57667, 0.18556, 0.18823], [0.29734, 0.62736, 0.07529], [0.02703, 0.07069, 0.99134]]
    to_rgb = [[3.2406, -1.5372, -0.4986], [-0.9689, 1.8758, 0.0415], [0.0557, -0.2040, 1.0570]]
    linear = (NOISE / 255) ** GAMMA @ np.transpose(to_xyz) @ np.transpose(to_rgb)
    linear = np.clip(linear, 0.0031308, 1)
    expected = 255 * (1.055 * linear ** (1 / 2.4) - 0.055)
    found = decoded(with_profile(Image.fromarray(NOISE), "PNG", ADOBE))
    is_curved = expected > 255 * 0.041
    assert np.abs(found - expected)[is_curved].max() <= 1.5
    assert is_curved.mean() > 0.7


def test_grey_is_converted_by_a_grey_profile_and_by_an_rgb_one() -> None:
    expected = encode_srgb(np.multiply.outer((GREY / 255) ** 1.5, [0.9642, 1, 0.8249]))
    content = with_profile(Image.fromarray(GREY), "PNG", gray_profile(1.5))
    assert_near(decoded(content), expected, 2)
    expected = convert_rgb(np.stack([GREY] * 3, -1), ADOBE_PRIMARIES, GAMMA)
    assert_near(decoded(with_profile(Image.fromarray(GREY), "PNG", ADOBE)), expected, 1.5)


def test_transparency_is_laid_over_white_after_the_conversion() -> None:
    image = Image.fromarray(NOISE)
    image.putalpha(Image.fromarray(GREY))
    share = (GREY / 255)[..., None]
    converted = convert_rgb(NOISE, ADOBE_PRIMARIES, GAMMA)
    content = with_profile(image, "PNG", ADOBE)
    assert_near(decoded(content), share * converted + 255 * (1 - share), 2.5)
    grey = Image.fromarray(GREY).convert("LA")
    grey.putalpha(0)
    assert (decoded(with_profile(grey, "PNG", gray_profile(1.8))) == 255).all()


def test_a_palettes_colours_are_converted() -> None:
    image = Image.fromarray(NOISE).quantize(16)
    expected = convert_rgb(np.asarray(image.convert("RGB")), ADOBE_PRIMARIES, GAMMA)
    assert_near(decoded(with_profile(image, "PNG", ADOBE)), expected, 1.5)


@pytest.mark.parametrize("format_", ["TIFF", "JPEG"])
def test_cmyk_is_converted_by_its_profile(format_: str) -> None:
    """At the corners of the table, where nothing is interpolated."""
    corners = np.random.default_rng(1).integers(90, 166, (2, 2, 2, 2, 3), dtype=np.uint8)
    # littlecms makes paper white, and the darkest colour black: here they are already.
    corners[0, 0, 0, 0] = 255, 128, 128
    corners[1, 1, 1, 1] = corners[0, 0, 0, 1] = 0, 128, 128
    profile = cmyk_profile(corners)
    for inks in ((0, 0, 0, 0), (1, 0, 0, 0), (0, 1, 1, 0), (0, 0, 0, 1), (1, 1, 1, 1)):
        image = Image.new("CMYK", (SIDE, SIDE), tuple(255 * ink for ink in inks))
        lightness, a, b = corners[inks].astype(float)
        lab = np.array([lightness / 2.55, a - 128, b - 128])
        content = encoded(image, format_, icc_profile=profile, quality=100)
        assert_near(decoded(content), convert_lab(lab), 3)


def test_lab_is_converted_with_and_without_the_setting() -> None:
    source = np.random.default_rng(2)
    # Around the middle, where sRGB has all of the colours. The last two have signs.
    lightness = source.integers(110, 150, (SIDE, SIDE, 1))
    colour = source.integers(-16, 16, (SIDE, SIDE, 2))
    stored = np.concatenate([lightness, colour & 255], axis=-1).astype(np.uint8)
    file = io.BytesIO()
    tifffile.imwrite(file, stored, photometric="cielab")
    content = file.getvalue()
    expected = convert_lab(np.concatenate([lightness / 2.55, colour], axis=-1))
    for settings in (STORED, SRGB):
        assert_near(decoded(content, settings), expected, 3)


def test_a_profile_of_srgb_changes_nothing() -> None:
    for format_, options in (("PNG", {}), ("JPEG", {"quality": 90})):
        content = with_profile(Image.fromarray(NOISE), format_, OWN, **options)
        np.testing.assert_array_equal(decoded(content), decoded(content, STORED))
    assert colours.is_srgb(OWN)
    assert not colours.is_srgb(ADOBE)


def test_the_fast_path_of_jpegs_converts_too() -> None:
    image = Image.fromarray(NOISE).resize((400, 300), Image.Resampling.BICUBIC)
    wanted = ImagePreprocessing(256, 224, "bilinear", (0, 0, 0), (1, 1, 1))
    for profile, changes in ((ADOBE, True), (OWN, False)):
        content = encoded(image, "JPEG", icc_profile=profile, quality=95)
        found = [
            render_quickly(content, open_image(content, settings), wanted)[0].astype(int)
            for settings in (SRGB, STORED)
        ]
        (slow,) = render(open_image(content, SRGB), wanted)
        assert np.abs(found[0] - slow).max() <= 1
        assert (np.abs(found[0] - found[1]).max() > 5) == changes


BROKEN = {
    "empty": b"",
    "text": b"no profile at all" * 20,
    "cut": ADOBE[:200],
    "of a printer": cmyk_profile(np.zeros((2, 2, 2, 2, 3), np.uint8)),
    "of grey": gray_profile(2.2),
}


@pytest.mark.parametrize("profile", BROKEN.values(), ids=BROKEN.keys())
def test_a_broken_profile_or_one_of_other_colours_is_corrupt(profile: bytes) -> None:
    chunk = png_chunk(b"iCCP", b"name\0\0" + zlib.compress(profile))
    content = png_of([bytes(3 * SIDE)] * SIDE, SIDE, before=[chunk])
    with pytest.raises(ItemError, match="colour profile") as caught:
        decoded(content)
    assert caught.value.code == Code.IMAGE_CORRUPT
    assert not decoded(content, STORED).any()


def test_a_damaged_profile_is_corrupt() -> None:
    body = b"name\0\0" + zlib.compress(ADOBE)
    for chunk in (png_chunk(b"iCCP", body, checksum=1), png_chunk(b"iCCP", body[:60])):
        with pytest.raises(ItemError, match="colour profile"):
            decoded(png_of([bytes(3 * SIDE)] * SIDE, SIDE, before=[chunk]))
    content = encoded(Image.fromarray(NOISE), "JPEG", icc_profile=ADOBE)
    # Its only part says that it is the first of two.
    lonely = content.replace(b"ICC_PROFILE\0\1\1", b"ICC_PROFILE\0\1\2")
    with pytest.raises(ItemError, match="colour profile"):
        decoded(lonely)


def test_a_profile_in_parts_is_joined() -> None:
    padded = ADOBE + bytes(100_000)
    content = encoded(Image.new("RGB", (SIDE, SIDE), (200, 100, 50)), "JPEG", icc_profile=padded)
    assert content.count(b"ICC_PROFILE\0") == 2
    opened = open_image(content, SRGB)
    assert opened.profile == padded


def test_an_enormous_profile_is_refused() -> None:
    profile = zlib.compress(bytes(2 * colours.MAX_PROFILE_BYTES))
    content = png_of([bytes(3)], 1, before=[png_chunk(b"iCCP", b"name\0\0" + profile)])
    assert len(content) < 10_000
    with pytest.raises(ItemError, match="over 4194304 bytes") as caught:
        decoded(content)
    assert caught.value.code == Code.IMAGE_TOO_LARGE


def test_colours_that_codes_name_are_refused_unless_they_are_srgbs() -> None:
    rows = [bytes(3 * SIDE)] * SIDE
    srgb, wide = (png_chunk(b"cICP", bytes([code, 13, 0, 1])) for code in (1, 9))
    assert not decoded(png_of(rows, SIDE, before=[srgb])).any()
    with pytest.raises(ItemError, match="cannot be converted to sRGB") as caught:
        decoded(png_of(rows, SIDE, before=[wide]))
    assert caught.value.code == Code.IMAGE_UNSUPPORTED
    assert not decoded(png_of(rows, SIDE, before=[wide]), STORED).any()
    avif = encoded(Image.fromarray(NOISE), "AVIF")
    wide_avif = avif.replace(b"colrnclx\0\1", b"colrnclx\0\x09")
    assert wide_avif != avif
    with pytest.raises(ItemError, match="primaries 9"):
        decoded(wide_avif)
    decoded(wide_avif, STORED)


def test_transforms_are_kept_and_bounded() -> None:
    for step in range(40):
        profile = rgb_profile(ADOBE_PRIMARIES, 1.5 + step / 64)
        colours.convert_to_srgb(Image.fromarray(NOISE), profile)
    assert len(colours._transforms) == 16
    kept = list(colours._transforms.values())
    colours.convert_to_srgb(Image.fromarray(NOISE), profile)
    assert list(colours._transforms.values()) == kept


def test_threads_share_a_transform() -> None:
    images = [Image.fromarray(np.roll(NOISE, step, 0)).resize((64, 64)) for step in range(16)]
    convert = partial(colours.convert_to_srgb, profile=ADOBE)
    expected = [np.asarray(convert(image)) for image in images]
    with ThreadPoolExecutor(8) as pool:
        for found, one in zip(pool.map(convert, images * 8), expected * 8, strict=True):
            np.testing.assert_array_equal(np.asarray(found), one)
