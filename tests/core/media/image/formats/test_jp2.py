"""JPEG 2000: pixels, what its boxes say of colours, and what a few bytes could cost."""

from __future__ import annotations

import random
import struct
from typing import Any

import numpy as np
import pytest
from PIL import Image

from embedstream_core.errors import Code, ItemError
from embedstream_core.media.image.decode import open_image, render
from embedstream_core.media.image.opened_image import Pixels
from embedstream_core.media.image.preprocessing import ImagePreprocessing
from embedstream_core.settings import DecodeSettings
from opt_in_formats import assert_cuts_are_corrupt, assert_mutations_are_refused
from pictures import encoded

SIDE = 48
SETTINGS = DecodeSettings(formats=("JP2",))
UNSCALED = ImagePreprocessing(SIDE, SIDE, "nearest", (0, 0, 0), (1, 1, 1))

RGB = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
GREY = RGB[..., 0]
WIDE = np.random.default_rng(1).integers(0, 65536, (SIDE, SIDE), dtype=np.uint16)


def made(values: Any, mode: str | None = None, **options: Any) -> bytes:
    image = Image.fromarray(values)
    return encoded(image.convert(mode) if mode else image, "JPEG2000", **options)


def decoded(content: bytes) -> Pixels:
    (pixels,) = render(open_image(content, SETTINGS), UNSCALED)
    return pixels


def refused(content: bytes) -> ItemError:
    with pytest.raises(ItemError) as caught:
        decoded(content)
    return caught.value


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"no_jp2": True},
        {"tile_size": (16, 32)},
        {"codeblock_size": (8, 8), "precinct_size": (32, 32)},
        {"num_resolutions": 1},
        {"progression": "RPCL"},
        {"mct": 1},
    ],
    ids=str,
)
def test_without_losses_pixels_are_those_of_the_writer(options: dict[str, Any]) -> None:
    np.testing.assert_array_equal(decoded(made(RGB, **options)), RGB)


def test_grey_fills_three_channels() -> None:
    np.testing.assert_array_equal(decoded(made(GREY)), np.stack([GREY] * 3, -1))


@pytest.mark.parametrize("no_jp2", [True, False])
def test_sixteen_bits_keep_the_high_byte(no_jp2: bool) -> None:
    np.testing.assert_array_equal(decoded(made(WIDE, no_jp2=no_jp2)), np.stack([WIDE >> 8] * 3, -1))


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_alpha_lies_over_white(mode: str) -> None:
    image = Image.fromarray(RGB).convert(mode)
    image.putalpha(Image.fromarray(GREY))
    share = GREY[..., None] / 255
    colour = np.asarray(image.convert("RGB"))
    found = decoded(encoded(image, "JPEG2000"))
    assert np.abs(found - (colour * share + 255 * (1 - share))).max() <= 1


def test_luma_and_chroma_become_colours() -> None:
    smooth = np.asarray(Image.fromarray(RGB[:4, :4]).resize((SIDE, SIDE)))
    content = made(smooth, "YCbCr")
    assert b"\0\0\0\x12" in content[content.index(b"colr") :][:12]
    assert np.abs(decoded(content).astype(int) - smooth).max() <= 3


def test_cmyk_is_ink() -> None:
    """Pillow writes no CMYK: the colours of four components are named by hand."""
    inks = np.dstack([RGB, GREY])
    content = made(inks)
    colr, cdef = content.index(b"colr"), content.index(b"cdef") - 4
    (length,) = struct.unpack_from(">I", content, cdef)
    named = content[: colr + 7] + struct.pack(">I", 12) + content[colr + 11 :]
    named = named[:cdef] + struct.pack(">I4s", length, b"free") + named[cdef + 8 :]
    shown = (255 - inks[..., :3].astype(float)) * (255 - inks[..., 3:]) / 255
    assert np.abs(decoded(named) - shown).max() <= 1


def test_colours_that_are_not_said_are_unsupported() -> None:
    rgba = made(np.dstack([RGB, GREY]))
    assert refused(made(np.dstack([RGB, GREY]), no_jp2=True)).code == Code.IMAGE_UNSUPPORTED
    assert refused(rgba.replace(b"cdef", b"free")).code == Code.IMAGE_UNSUPPORTED
    # Multiplied, and red and blue exchanged.
    multiplied = rgba.replace(b"\0\3\0\1\0\0", b"\0\3\0\2\0\0")
    assert refused(multiplied).code == Code.IMAGE_UNSUPPORTED
    swapped = rgba.replace(b"\0\0\0\0\0\1\0\1\0\0\0\2", b"\0\0\0\0\0\2\0\1\0\0\0\1")
    assert refused(swapped).code == Code.IMAGE_UNSUPPORTED
    lab = made(RGB).replace(b"colr\1\0\0\0\0\0\x10", b"colr\1\0\0\0\0\0\x0e")
    assert refused(lab).code == Code.IMAGE_UNSUPPORTED


def test_few_bits_and_signs_are_unsupported() -> None:
    content = made(RGB, no_jp2=True)
    component = content.index(b"\0\3\7\1\1\7\1\1\7\1\1") + 2
    for kind in (3, 0x87, 24):
        changed = content[:component] + bytes([kind, 1, 1]) * 3 + content[component + 9 :]
        assert refused(changed).code == Code.IMAGE_UNSUPPORTED
    halved = content[:component] + bytes([7, 2, 2]) * 3 + content[component + 9 :]
    assert refused(halved).code == Code.IMAGE_UNSUPPORTED


@pytest.mark.parametrize("no_jp2", [True, False])
def test_a_file_that_is_cut_is_corrupt(no_jp2: bool) -> None:
    """OpenJPEG itself shows grey where data are missing."""
    assert_cuts_are_corrupt(made(RGB, no_jp2=no_jp2), SETTINGS)
    assert_cuts_are_corrupt(made(RGB, no_jp2=no_jp2, tile_size=(16, 16)), SETTINGS)


def bomb(
    *,
    side: int = 9000,
    tile: int = 9000,
    layers: int = 1,
    block: int = 4,
    precincts: bytes = b"",
    component: bytes = b"",
) -> bytes:
    """Return a codestream of six levels that ends after its header and an empty tile."""
    size = struct.pack(">H8IH", 0, side, side, 0, 0, tile, tile, 0, 0, 3) + bytes([7, 1, 1]) * 3
    style = bytes([5, block, block, 0, 1]) + precincts
    coding = struct.pack(">BBHB", bool(precincts), 0, layers, 0) + style
    markers = [(0xFF51, size), (0xFF52, coding), (0xFF53, component)]
    header = b"".join(
        struct.pack(">HH", marker, 2 + len(data)) + data for marker, data in markers if data
    )
    part = struct.pack(">HHHIBB", 0xFF90, 10, 0, 14, 0, 1) + b"\xff\x93"
    return b"\xff\x4f" + header + part + b"\xff\xd9"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (bomb(precincts=b"\0" * 6), "code blocks and precincts"),
        (bomb(precincts=b"\xff" + b"\x11" * 5), "code blocks and precincts"),
        (bomb(block=0), "code blocks and precincts"),
        (bomb(tile=100), "8100 tiles"),
        (bomb(layers=65_535, precincts=b"\x77" * 6), "layers of precincts"),
        # How one component is coded counts for all.
        (bomb(component=b"\0\1\5\4\4\0\1" + b"\0" * 6), "code blocks and precincts"),
        (bomb(side=60_000, tile=60_000, block=6), "60000x60000 pixels"),
    ],
    ids=["precincts", "small precincts", "blocks", "tiles", "layers", "component", "pixels"],
)
def test_structures_that_would_fill_the_memory_are_refused(content: bytes, reason: str) -> None:
    assert len(content) < 200
    error = refused(content)
    assert (error.code, reason in error.message) == (Code.IMAGE_TOO_LARGE, True)


def test_many_boxes_or_segments_are_refused() -> None:
    content = made(RGB)
    place = content.index(b"jp2h") - 4
    padded = content[:place] + struct.pack(">I4s", 8, b"free") * 10_001 + content[place:]
    assert refused(padded).code == Code.IMAGE_TOO_LARGE
    stream = bomb()
    comment = struct.pack(">HHH", 0xFF64, 4, 1)
    place = stream.index(b"\xff\x52")
    many = stream[:place] + comment * 100_001 + stream[place:]
    assert refused(many).code == Code.IMAGE_TOO_LARGE


def test_usual_structures_are_not_refused() -> None:
    """The largest image in blocks of 64, and a map in tiles of 256, with twenty layers."""
    assert open_image(bomb(side=9400, tile=9400, layers=20), SETTINGS).size == (9400, 9400)
    with pytest.raises(ItemError, match="the data of a tile are missing"):
        open_image(bomb(side=9400, tile=256, layers=20), SETTINGS)


@pytest.mark.parametrize("no_jp2", [True, False])
def test_mutations_become_failures(no_jp2: bool) -> None:
    assert_mutations_are_refused(made(RGB, no_jp2=no_jp2), SETTINGS, random.Random(0), count=100)


@pytest.mark.long
@pytest.mark.parametrize(
    "options",
    [{}, {"no_jp2": True}, {"tile_size": (16, 16)}, {"precinct_size": (16, 16)}],
    ids=str,
)
def test_many_mutations_become_failures(options: dict[str, Any]) -> None:
    assert_mutations_are_refused(made(RGB, **options), SETTINGS, random.Random(1), count=5000)
