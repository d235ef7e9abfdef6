"""TIFFs of every kind that is decoded, written by tifffile or Pillow, and the kinds refused."""

from __future__ import annotations

import io
import random
import struct
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import tifffile
from PIL import Image, TiffImagePlugin

from embedstream_core.errors import Code, ItemError
from embedstream_core.media.image.decode import open_image, render
from embedstream_core.media.image.opened_image import Pixels
from embedstream_core.media.image.preprocessing import ImagePreprocessing
from embedstream_core.settings import DecodeSettings
from opt_in_formats import assert_cuts_are_corrupt, assert_mutations_are_refused, turned
from pictures import encoded

SIDE = 40
SETTINGS = DecodeSettings(formats=("TIFF",))
UNSCALED = ImagePreprocessing(SIDE, SIDE, "nearest", (0, 0, 0), (1, 1, 1))

SOURCE = np.random.default_rng(0)
RGB = SOURCE.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
GREY = RGB[..., 0]
ALPHA = RGB[::-1, :, 1]
WIDE = SOURCE.integers(0, 65536, (SIDE, SIDE, 3), dtype=np.uint16)
CMYK = SOURCE.integers(0, 256, (SIDE, SIDE, 4), dtype=np.uint8)
BITS = GREY > 127
SMOOTH = np.asarray(Image.fromarray(RGB[:4, :4]).resize((SIDE, SIDE), Image.Resampling.BICUBIC))
COLOURS = SOURCE.integers(0, 256, (3, 256), dtype=np.uint16) * 257

Numbers = npt.NDArray[Any]


def written(values: Numbers, photometric: str = "rgb", **options: Any) -> bytes:
    file = io.BytesIO()
    tifffile.imwrite(file, values, photometric=photometric, **options)
    return file.getvalue()


def three(grey: Numbers) -> Numbers:
    return np.stack([grey] * 3, axis=-1)


def over_white(colour: Numbers, alpha: Numbers) -> Numbers:
    share = alpha[..., None] / 255
    blended: Numbers = colour * share + 255 * (1 - share)
    return blended


def without_ink(cmyk: Numbers) -> Numbers:
    inks = cmyk.astype(float)
    shown: Numbers = (255 - inks[..., :3]) * (255 - inks[..., 3:]) / 255
    return shown


def saved(values: Numbers, mode: str | None = None, **options: Any) -> bytes:
    image = Image.fromarray(values)
    return encoded(image.convert(mode) if mode else image, "TIFF", **options)


def decoded(content: bytes) -> Pixels:
    (pixels,) = render(open_image(content, SETTINGS), UNSCALED)
    return pixels


WITH_ALPHA = np.dstack([RGB, ALPHA])
PREMULTIPLIED = np.dstack([(RGB.astype(int) * ALPHA[..., None] // 255).astype(np.uint8), ALPHA])

DECODED: dict[str, tuple[bytes, Numbers, float]] = {
    "rgb": (written(RGB), RGB, 0),
    "big-endian": (written(RGB, byteorder=">"), RGB, 0),
    "BigTIFF": (written(RGB, bigtiff=True), RGB, 0),
    "strips": (written(RGB, rowsperstrip=7), RGB, 0),
    "tiles": (written(RGB, tile=(16, 16)), RGB, 0),
    "a tile that is larger": (written(RGB, tile=(64, 48)), RGB, 0),
    "planes": (written(np.moveaxis(RGB, -1, 0), planarconfig="separate"), RGB, 0),
    "planes in tiles": (
        written(np.moveaxis(RGB, -1, 0), planarconfig="separate", tile=(16, 32)),
        RGB,
        0,
    ),
    "planes, Deflate": (
        written(np.moveaxis(RGB, -1, 0), planarconfig="separate", compression="zlib"),
        RGB,
        0,
    ),
    "planes of 16 bits, Deflate": (
        written(np.moveaxis(WIDE, -1, 0), planarconfig="separate", compression="zlib"),
        WIDE >> 8,
        0,
    ),
    "Deflate": (written(RGB, compression="zlib"), RGB, 0),
    "Deflate in tiles": (written(RGB, compression="zlib", tile=(16, 16)), RGB, 0),
    "differences": (written(RGB, compression="zlib", predictor=True), RGB, 0),
    "differences of 16 bits": (written(WIDE, compression="zlib", predictor=True), WIDE >> 8, 0),
    "LZW": (saved(RGB, compression="tiff_lzw"), RGB, 0),
    "PackBits": (saved(RGB, compression="packbits"), RGB, 0),
    "JPEG": (saved(SMOOTH, compression="jpeg", quality=95), SMOOTH, 12),
    "grey": (written(GREY, "minisblack"), three(GREY), 0),
    "white is zero": (written(GREY, "miniswhite"), three(255 - GREY), 0),
    "grey of 16 bits": (written(WIDE[..., 0], "minisblack"), three(WIDE[..., 0] >> 8), 0),
    "grey of 16 bits, big-endian": (
        written(WIDE[..., 0], "minisblack", byteorder=">"),
        three(WIDE[..., 0] >> 8),
        0,
    ),
    "grey of 16 bits, Deflate": (
        written(WIDE[..., 0], "minisblack", byteorder=">", compression="zlib"),
        three(WIDE[..., 0] >> 8),
        0,
    ),
    "rgb of 16 bits": (written(WIDE), WIDE >> 8, 0),
    "rgb of 16 bits, big-endian": (written(WIDE, byteorder=">"), WIDE >> 8, 0),
    "a bit": (written(BITS, "minisblack"), three(255 * BITS), 0),
    **{
        f"a bit, {name}": (saved(BITS, compression=name), three(255 * BITS), 0)
        for name in ("tiff_ccitt", "group3", "group4")
    },
    "a palette": (
        written(GREY, "palette", colormap=COLOURS),
        np.moveaxis(COLOURS[:, GREY] >> 8, 0, -1),
        0,
    ),
    "an old palette of bytes": (
        written(GREY, "palette", colormap=COLOURS >> 8),
        np.moveaxis(COLOURS[:, GREY] >> 8, 0, -1),
        0,
    ),
    "alpha": (written(WITH_ALPHA, extrasamples=["unassalpha"]), over_white(RGB, ALPHA), 1),
    "alpha, multiplied": (
        written(PREMULTIPLIED, extrasamples=["assocalpha"]),
        PREMULTIPLIED[..., :3] + 255.0 - ALPHA[..., None],
        3,
    ),
    "a channel that means nothing": (written(WITH_ALPHA, extrasamples=["unspecified"]), RGB, 0),
    "alpha of 16 bits": (
        written(np.dstack([WIDE, WIDE[..., :1]]), extrasamples=["unassalpha"]),
        over_white(WIDE >> 8, WIDE[..., 0] >> 8),
        1,
    ),
    "grey and alpha": (
        written(np.dstack([GREY, ALPHA]), "minisblack", extrasamples=["unassalpha"]),
        three(over_white(GREY[..., None], ALPHA)[..., 0]),
        1,
    ),
    "grey and alpha, multiplied": (
        written(PREMULTIPLIED[..., [0, 3]], "minisblack", extrasamples=["assocalpha"]),
        three(PREMULTIPLIED[..., 0] + 255.0 - ALPHA),
        3,
    ),
    "CMYK": (written(CMYK, "separated"), without_ink(CMYK), 1),
    "CMYK of 16 bits": (
        written(CMYK.astype(np.uint16) * 257, "separated"),
        without_ink(CMYK),
        1,
    ),
    "the first of three pages": (
        encoded(
            Image.fromarray(RGB),
            "TIFF",
            save_all=True,
            append_images=[Image.fromarray(GREY), Image.new("RGB", (9, 9))],
        ),
        RGB,
        0,
    ),
}


@pytest.mark.parametrize(("content", "expected", "levels"), DECODED.values(), ids=DECODED.keys())
def test_pixels_are_those_of_the_writer(content: bytes, expected: Numbers, levels: float) -> None:
    pixels = decoded(content)
    assert pixels.shape == expected.shape
    assert np.abs(pixels - expected.astype(float)).max() <= levels


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("compression", [None, "tiff_lzw"])
def test_the_orientation_is_applied_once(orientation: int, compression: str | None) -> None:
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags[274] = orientation
    content = saved(SMOOTH[:30], tiffinfo=tags, compression=compression)
    opened = open_image(content, SETTINGS)
    expected = turned(SMOOTH[:30], orientation)
    assert (opened.width, opened.height) == (expected.shape[1], expected.shape[0])
    (pixels,) = render(opened, ImagePreprocessing(30, 30, "bilinear", (0, 0, 0), (1, 1, 1)))
    first = 5 if expected.shape[0] > 30 else 0, 5 if expected.shape[1] > 30 else 0
    cut = expected[first[0] : first[0] + 30, first[1] : first[1] + 30]
    np.testing.assert_array_equal(pixels, cut)


def with_tag(content: bytes, tag: int, value: int) -> bytes:
    """Overwrite a short number in the first directory of a little-endian file."""
    (start,) = struct.unpack_from("<I", content, 4)
    (count,) = struct.unpack_from("<H", content, start)
    for index in range(count):
        place = start + 2 + 12 * index
        if struct.unpack_from("<H", content, place)[0] == tag:
            return content[: place + 8] + struct.pack("<H", value) + content[place + 10 :]
    raise AssertionError(f"no tag {tag}")


REFUSED = {
    "float": (written(RGB.astype(np.float32)), "unsigned whole numbers|samples of"),
    "grey float": (written(GREY.astype(np.float32), "minisblack"), "samples of"),
    "signed": (written(GREY.astype(np.int8), "minisblack"), "no unsigned whole numbers"),
    "32 bits": (written(GREY.astype(np.uint32), "minisblack"), "samples of"),
    "white is zero in 16 bits": (written(WIDE[..., 0], "miniswhite"), "samples of"),
    "planes of 16 bits": (written(np.moveaxis(WIDE, -1, 0), planarconfig="separate"), "planes"),
    "five channels": (written(np.dstack([RGB, RGB[..., :2]])), "samples of"),
    "a camera's raw": (with_tag(written(GREY, "minisblack"), 262, 32803), "camera's raw"),
    "YCbCr without JPEG": (with_tag(written(RGB), 262, 6), "YCbCr without JPEG"),
    "old JPEG": (with_tag(written(RGB), 259, 6), "compression is 6"),
    "Zstandard": (with_tag(written(RGB), 259, 50000), "compression is 50000"),
    "JPEG XL": (with_tag(written(RGB), 259, 50002), "compression is 50002"),
    "a small copy": (written(RGB, subfiletype=1), "small copy"),
    "inks": (with_tag(written(CMYK, "separated", extratags=[(332, 3, 1, 2)]), 332, 2), "inks"),
    "bits in reverse": (saved(GREY, tiffinfo={266: 2}), "reverse"),
    "BigTIFF, big-endian": (written(RGB, bigtiff=True, byteorder=">"), "big-endian BigTIFF"),
}


@pytest.mark.parametrize(("content", "reason"), REFUSED.values(), ids=REFUSED.keys())
def test_what_would_be_decoded_to_other_colours_is_unsupported(content: bytes, reason: str) -> None:
    with pytest.raises(ItemError, match=reason) as caught:
        open_image(content, SETTINGS)
    assert caught.value.code == Code.IMAGE_UNSUPPORTED


def test_a_file_that_is_cut_is_corrupt() -> None:
    for name in ("rgb", "LZW", "JPEG", "tiles", "BigTIFF", "a bit, group4"):
        assert_cuts_are_corrupt(DECODED[name][0], SETTINGS)


def test_tiles_count_by_their_own_size() -> None:
    """Sixteen thousand pixels squared for an image of one, in a file of 400 bytes."""
    content = with_tag(with_tag(written(RGB, tile=(64, 48)), 322, 65520), 323, 65520)
    with pytest.raises(ItemError, match="as coded") as caught:
        open_image(content, SETTINGS)
    assert caught.value.code == Code.IMAGE_TOO_LARGE


def test_many_strips_are_too_large() -> None:
    tall = written(np.zeros((100_001, 1), np.uint8), "minisblack", rowsperstrip=1)
    with pytest.raises(ItemError, match="100001 strips") as caught:
        open_image(tall, DecodeSettings(formats=("TIFF",)))
    assert caught.value.code == Code.IMAGE_TOO_LARGE


def test_a_tag_that_only_pillow_would_read_is_corrupt() -> None:
    """It says that there are planes, as a signed number."""
    content = encoded(Image.new("RGB", (8, 8)), "TIFF")
    entry = struct.pack("<HHIH", 284, 3, 1, 1)
    assert content.count(entry) == 1
    other = content.replace(entry, struct.pack("<HHIH", 284, 8, 1, 2))
    assert Image.open(io.BytesIO(other)).tag_v2[284] == 2  # type: ignore[attr-defined]
    with pytest.raises(ItemError, match="its tag 284 is not an unsigned") as caught:
        open_image(other, SETTINGS)
    assert caught.value.code == Code.IMAGE_CORRUPT


def test_a_fax_of_many_rows_is_too_large() -> None:
    """Each row that is broken makes a line in the worker's log."""
    for compression in ("tiff_ccitt", "group3", "group4"):
        image = Image.new("1", (8, 30_001), 1)
        with pytest.raises(ItemError, match="30001 rows of a fax") as caught:
            open_image(encoded(image, "TIFF", compression=compression), SETTINGS)
        assert caught.value.code == Code.IMAGE_TOO_LARGE


def test_a_tag_of_many_values_is_too_large() -> None:
    content = written(np.zeros((4, 300_000), np.uint8), "minisblack")
    (start,) = struct.unpack_from("<I", content, 4)
    bits = content.index(struct.pack("<HHI", 258, 3, 1), start)
    many = content[: bits + 4] + struct.pack("<II", 200_000, 8) + content[bits + 12 :]
    with pytest.raises(ItemError, match="200000 strips, tiles or other values") as caught:
        open_image(many, SETTINGS)
    assert caught.value.code == Code.IMAGE_TOO_LARGE


def test_pixels_are_limited_by_the_header() -> None:
    content = with_tag(with_tag(written(RGB), 256, 60_000), 257, 60_000)
    with pytest.raises(ItemError) as caught:
        open_image(content, SETTINGS)
    assert caught.value.code in (Code.IMAGE_TOO_LARGE, Code.IMAGE_CORRUPT)


@pytest.mark.parametrize("options", [{"rowsperstrip": 8}, {"tile": (16, 16)}], ids=str)
def test_an_error_in_deflate_is_corrupt(options: dict[str, Any]) -> None:
    """Every bit of the compressed pixels counts, also where libtiff does not read the checksum."""
    content = written(SMOOTH, compression="adobe_deflate", **options)
    with tifffile.TiffFile(io.BytesIO(content)) as file:
        page = file.pages.first
        places = list(zip(page.dataoffsets, page.databytecounts, strict=True))
    source = random.Random(0)
    for start, length in places * 10:
        # From the method of compression, which has two bytes, to the checksum, which has four.
        changed = bytearray(content)
        changed[source.randrange(start + 2, start + length - 4)] ^= 1 << source.randrange(8)
        with pytest.raises(ItemError) as caught:
            decoded(bytes(changed))
        assert caught.value.code == Code.IMAGE_CORRUPT


def test_strips_may_share_their_data_but_not_all_of_them_much() -> None:
    """Otherwise, a file of 30 MB had 100,000 strips of 30 MB, which take minutes to decompress."""
    same = written(np.zeros((64, 8), np.uint8), "minisblack", rowsperstrip=8)
    with tifffile.TiffFile(io.BytesIO(same)) as file:
        first = file.pages.first.dataoffsets[0]
        table = file.pages.first.tags[273]
    kind = {3: "H", 4: "I"}[table.dtype]
    shared = struct.pack(f"<8{kind}", *[first] * 8)
    content = same[: table.valueoffset] + shared + same[table.valueoffset + len(shared) :]
    assert not decoded(content).any()
    many = written(np.zeros((80, 2**20), np.uint8), "minisblack", rowsperstrip=1)
    with tifffile.TiffFile(io.BytesIO(many)) as file:
        table, first = file.pages.first.tags[273], file.pages.first.dataoffsets[0]
    shared = struct.pack("<80I", *[first] * 80)
    cut = many[: table.valueoffset] + shared + many[table.valueoffset + len(shared) : first + 2**20]
    with pytest.raises(ItemError, match="most of them shared") as caught:
        open_image(cut, SETTINGS)
    assert caught.value.code == Code.IMAGE_TOO_LARGE


@pytest.mark.parametrize("name", ["rgb", "tiles", "LZW", "JPEG", "a bit, group4", "BigTIFF"])
def test_mutations_become_failures(name: str) -> None:
    assert_mutations_are_refused(DECODED[name][0], SETTINGS, random.Random(0), count=60)


@pytest.mark.long
@pytest.mark.parametrize("name", DECODED)
def test_many_mutations_become_failures(name: str) -> None:
    assert_mutations_are_refused(DECODED[name][0], SETTINGS, random.Random(1), count=2000)
