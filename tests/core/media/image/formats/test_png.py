"""PNGs by their chunks: broken critical ones are refused, broken ancillary ones are ignored."""

from __future__ import annotations

import io
import random
import struct
import time
import zlib
from functools import partial

import numpy as np
import pytest
from PIL import Image

from embedstream_core.errors import Code, ItemError
from embedstream_core.media.image.decode import open_image, render
from embedstream_core.media.image.opened_image import Pixels
from embedstream_core.media.image.preprocessing import ImagePreprocessing
from embedstream_core.media.sandbox import SandboxedDecoder
from embedstream_core.settings import DecodeSettings, Isolation
from pictures import encoded, exif_orientation, png_chunk, png_of, real_pictures
from rendered import Rendered, render_one

SIDE = 8
AS_STORED = ImagePreprocessing(SIDE, SIDE, "nearest", (0, 0, 0), (1, 1, 1))
COLOURS = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
ROWS = [row.tobytes() for row in COLOURS]
ORIENTED = exif_orientation(3, b"\6\0")
TURNED = np.rot90(COLOURS, -1)
XMP = b'<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'


def decoded(content: bytes) -> Rendered:
    return render_one(content, AS_STORED)


def pixels(content: bytes) -> Pixels:
    return decoded(content).pixels


def failure(content: bytes) -> ItemError:
    with pytest.raises(ItemError) as caught:
        decoded(content)
    return caught.value


@pytest.mark.parametrize(
    "chunk",
    [
        png_chunk(b"zTXt", b"Comment\0\0" + zlib.compress(b"a" * 2**21)),
        png_chunk(b"tEXt", b"Comment\0" + b"a" * 2**21),
        png_chunk(b"iTXt", b"Comment\0\1\0\0\0" + zlib.compress(b"a" * 2**21)),
        png_chunk(b"zTXt", b"Comment\0\7" + b"unknown method"),
        png_chunk(b"tEXt", b"no end of the keyword"),
        png_chunk(b"iCCP", b"icc\0\0" + zlib.compress(b"x" * 100), checksum=1),
        png_chunk(b"iCCP", b"icc\0\7" + b"unknown method"),
        png_chunk(b"iCCP", b"icc\0\0" + zlib.compress(b"x" * 2**21)),
        png_chunk(b"pHYs", b"\0"),
        png_chunk(b"gAMA", b"\0"),
        png_chunk(b"cHRM", b"\0"),
        png_chunk(b"sRGB", b""),
        png_chunk(b"tRNS", b"\0"),
        png_chunk(b"tRNS", ROWS[0][:6], checksum=1),
        png_chunk(b"fcTL", b"\0" * 26),
        png_chunk(b"acTL", b"\0"),
        png_chunk(b"eXIf", b"junk"),
        png_chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0junk"),
        png_chunk(b"tEXt", b"Raw profile type exif\0\nexif\n10\nno hex"),
        png_chunk(b"prVt", b"private", checksum=1),
        png_chunk(b"PLTE", b"\1\2\3"),
    ],
    ids=lambda chunk: f"{chunk[4:8].decode()} {len(chunk)}",
)
def test_broken_ancillary_chunks_are_ignored(chunk: bytes) -> None:
    np.testing.assert_array_equal(pixels(png_of(ROWS, SIDE, before=[chunk])), COLOURS)
    np.testing.assert_array_equal(pixels(png_of(ROWS, SIDE, after=[chunk])), COLOURS)


def with_wrong_checksum(content: bytes, kind: bytes) -> bytes:
    start = content.index(kind)
    end = start + 4 + int.from_bytes(content[start - 4 : start])
    return content[:end] + bytes(byte ^ 1 for byte in content[end : end + 4]) + content[end + 4 :]


PALETTE = png_of(
    [bytes(SIDE)] * SIDE, SIDE, colour_type=3, before=[png_chunk(b"PLTE", bytes([1, 2, 3]))]
)


@pytest.mark.parametrize("kind", [b"IHDR", b"PLTE", b"IDAT"])
def test_a_critical_chunk_with_a_wrong_checksum_is_corrupt(kind: bytes) -> None:
    assert (pixels(PALETTE) == (1, 2, 3)).all()
    error = failure(with_wrong_checksum(PALETTE, kind))
    assert error.code == Code.IMAGE_CORRUPT
    assert f"the checksum of its chunk {kind.decode()} is wrong" in error.message


SOUND = png_of(ROWS, SIDE)


@pytest.mark.parametrize(
    "content",
    [
        SOUND[:8],
        SOUND[:20],
        SOUND[:33],
        SOUND[:60],
        SOUND[:8] + SOUND[33:],
        SOUND[:-12] + b"\0\0\0\5IDAT",
        SOUND[:-12] + b"\0\0\0\5tEXta",
        png_of(ROWS, 0),
        png_of(ROWS, SIDE, depth=4),
        png_of(ROWS, SIDE, colour_type=5),
        png_of(ROWS, SIDE, colour_type=3),
        png_of([bytes(SIDE)] * SIDE, SIDE, colour_type=3, before=[png_chunk(b"PLTE", b"1234")]),
        png_of([bytes(SIDE)] * SIDE, SIDE, colour_type=3, after=[png_chunk(b"PLTE", b"123")]),
        png_of(ROWS, SIDE, before=[png_chunk(b"\0\1\2\3", b"")]),
        png_of(ROWS, SIDE, before=[SOUND[8:33]]),
    ],
)
def test_a_broken_png_is_corrupt(content: bytes) -> None:
    assert failure(content).code == Code.IMAGE_CORRUPT


def test_a_png_without_its_end_is_an_image() -> None:
    np.testing.assert_array_equal(pixels(SOUND[:-12]), COLOURS)
    np.testing.assert_array_equal(pixels(with_wrong_checksum(SOUND, b"IEND")), COLOURS)
    np.testing.assert_array_equal(pixels(SOUND[:-12] + b"\0\0\0\5IEND"), COLOURS)
    np.testing.assert_array_equal(pixels(SOUND + b"what follows"), COLOURS)


def as_tall_as(content: bytes, height: int, *, interlace: int = 0) -> bytes:
    """Return the same data with another header."""
    header = content[16:20] + struct.pack(">I", height) + content[24:28] + bytes([interlace])
    return content[:8] + png_chunk(b"IHDR", header) + content[33:]


@pytest.mark.parametrize("missing", [1, SIDE])
@pytest.mark.parametrize("mode", ["1", "L", "I;16", "P", "LA", "RGB", "RGBA"])
def test_missing_rows_are_not_taken_for_black(mode: str, missing: int) -> None:
    content = encoded(Image.new(mode, (SIDE, SIDE)))
    assert (pixels(content) == pixels(content)[0, 0]).all()
    assert failure(as_tall_as(content, SIDE + missing)).code == Code.IMAGE_CORRUPT
    # With as many rows as the header says, or more, it is whole.
    assert pixels(as_tall_as(content, SIDE - 1)).shape == (SIDE, SIDE, 3)


# Adam7 has seven passes, of which small images lack some.
@pytest.mark.parametrize("width", range(1, 10))
@pytest.mark.parametrize("height", range(1, 10))
def test_missing_passes_are_not_taken_for_black(width: int, height: int) -> None:
    def interlaced(size: int) -> bytes:
        fields = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 1)
        data = png_chunk(b"IDAT", zlib.compress(bytes(size)))
        return SOUND[:8] + png_chunk(b"IHDR", fields) + data

    starts = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2)]
    rows = [
        len(range(left, width, across))
        for left, top, across, down in [*starts, (0, 1, 1, 2)]
        for _ in range(top, height, down)
    ]
    size = sum(1 + row for row in rows if row)
    assert (pixels(interlaced(size)) == 0).all()
    assert failure(interlaced(size - 1)).code == Code.IMAGE_CORRUPT


def test_an_iphones_png_is_unsupported() -> None:
    content = SOUND[:8] + png_chunk(b"CgBI", b"\x50\0\x20\6") + SOUND[8:]
    error = failure(content)
    assert error.code == Code.IMAGE_UNSUPPORTED
    assert "CgBI" in error.message


def test_an_unknown_critical_chunk_is_unsupported() -> None:
    error = failure(png_of(ROWS, SIDE, before=[png_chunk(b"ZZZZ", b"")]))
    assert error.code == Code.IMAGE_UNSUPPORTED
    assert "ZZZZ" in error.message


def broken_ones() -> list[bytes]:
    """Return photographs with a bit flipped, 4 KiB zeroed, or 4 KiB missing in its data."""
    content = real_pictures()["chelsea.png"]
    source = random.Random(0)
    broken = []
    for index in range(60):
        data = bytearray(content)
        at = source.randrange(content.index(b"IDAT") + 4, len(content) - 5_000)
        match index % 3:
            case 0:
                data[at] ^= 1 << source.randrange(8)
            case 1:
                data[at : at + 4096] = bytes(4096)
            case 2:
                del data[at : at + 4096]
        broken.append(bytes(data))
    return broken


def test_broken_data_are_refused_on_either_path() -> None:
    isolation = Isolation(memory_bytes=2**30)
    isolated = SandboxedDecoder({"image": (AS_STORED,)}, DecodeSettings(), isolation=isolation)
    try:
        for content in broken_ones():
            for decode in (decoded, partial(isolated.decode, modality="image")):
                with pytest.raises(ItemError) as caught:
                    decode(content)
                assert caught.value.code == Code.IMAGE_CORRUPT
    finally:
        isolated.close()


def test_an_image_that_was_refused_once_is_refused_again() -> None:
    data = zlib.compress(b"".join(b"\0" + row for row in ROWS))
    content = SOUND[:33] + png_chunk(b"IDAT", data[: len(data) // 2]) + png_chunk(b"IEND", b"")
    opened = open_image(content, DecodeSettings())
    for _ in range(2):
        with pytest.raises(ItemError, match="truncated"):
            render(opened, AS_STORED)


# Transparency: a row of pixels, the colour in tRNS, and which of them are white.


def bits(values: list[int], depth: int) -> bytes:
    packed = 0
    for value in values:
        packed = packed << depth | value
    return packed.to_bytes(len(values) * depth // 8)


@pytest.mark.parametrize(
    ("depth", "values", "transparent", "greys"),
    [
        (1, [0, 1] * 4, 0, [255, 255] * 4),
        (1, [0, 1] * 4, 1, [0, 255] * 4),
        (2, [0, 1, 2, 3] * 2, 2, [0, 85, 255, 255] * 2),
        (4, [0, 3, 7, 15] * 2, 3, [0, 255, 119, 255] * 2),
        (4, [0, 3, 7, 15] * 2, 51, [0, 255, 119, 255] * 2),
        (8, [0, 3, 7, 200] * 2, 7, [0, 3, 255, 200] * 2),
        (8, [0, 3, 7, 200] * 2, 0x107, [0, 3, 255, 200] * 2),
        (16, [0, 0x1234, 0x1235, 0xFFFF] * 2, 0x1234, [0, 255, 0x12, 255] * 2),
    ],
)
def test_a_transparent_grey_is_white(
    depth: int, values: list[int], transparent: int, greys: list[int]
) -> None:
    chunk = png_chunk(b"tRNS", struct.pack(">H", transparent))
    rows = [bits(values, depth)] * SIDE
    found = pixels(png_of(rows, SIDE, depth=depth, colour_type=0, before=[chunk]))
    np.testing.assert_array_equal(
        found, np.array(greys)[None, :, None].repeat(SIDE, 0).repeat(3, 2)
    )


@pytest.mark.parametrize(
    ("depth", "row", "transparent", "expected"),
    [
        (8, [1, 2, 3, 1, 2, 4], [1, 2, 3], [255, 255, 255, 1, 2, 4]),
        (8, [1, 2, 3, 1, 2, 4], [0x101, 2, 3], [255, 255, 255, 1, 2, 4]),
        (16, [40000, 1, 2, 40001, 1, 2], [40000, 1, 2], [255, 255, 255, 156, 0, 0]),
        (16, [40000, 1, 2, 40000, 1, 258], [40000, 1, 2], [255, 255, 255, 156, 0, 1]),
    ],
)
def test_a_transparent_colour_is_white(
    depth: int, row: list[int], transparent: list[int], expected: list[int]
) -> None:
    rows = [bits(row * 4, depth)] * SIDE
    chunk = png_chunk(b"tRNS", struct.pack(">HHH", *transparent))
    found = pixels(png_of(rows, SIDE, depth=depth, before=[chunk]))
    np.testing.assert_array_equal(found[0].ravel(), expected * 4)


def test_a_palettes_transparency_is_its_own() -> None:
    rows = [bits([0, 1, 2, 3] * 2, 4)] * SIDE
    chunks = [
        png_chunk(b"PLTE", bytes([10, 20, 30, 40, 50, 60, 70, 80, 90])),
        png_chunk(b"tRNS", bytes([255, 0, 51])),
    ]
    found = pixels(png_of(rows, SIDE, depth=4, colour_type=3, before=chunks))
    # The third is one fifth itself and four fifths white; the fourth has no colour.
    third = [round(value / 5 + 204) for value in (70, 80, 90)]
    expected = [10, 20, 30, 255, 255, 255, *third, 0, 0, 0]
    assert np.abs(found[0, :4].ravel().astype(int) - expected).max() <= 1


@pytest.mark.parametrize(("colour_type", "channels"), [(4, 2), (6, 4)])
def test_alpha_of_sixteen_bits_lies_over_white(colour_type: int, channels: int) -> None:
    values = [0x4000] * (channels - 1) + [0x8080]
    rows = [bits(values * SIDE, 16)] * SIDE
    found = pixels(png_of(rows, SIDE, depth=16, colour_type=colour_type))
    share = 0x80 / 255
    assert np.abs(found.astype(int) - (0x40 * share + 255 * (1 - share))).max() <= 1


# Orientation, wherever it is in the file.


@pytest.mark.parametrize(
    "chunk",
    [
        png_chunk(b"eXIf", ORIENTED[6:]),
        png_chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + XMP),
        png_chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(XMP)),
        png_chunk(
            b"zTXt",
            b"Raw profile type exif\0\0"
            + zlib.compress(b"\nexif\n%8d\n%s\n" % (len(ORIENTED), ORIENTED.hex().encode())),
        ),
    ],
    ids=["eXIf", "XMP", "compressed XMP", "raw profile"],
)
def test_orientation_is_read_from_any_chunk(chunk: bytes) -> None:
    np.testing.assert_array_equal(pixels(png_of(ROWS, SIDE, before=[chunk])), TURNED)
    np.testing.assert_array_equal(pixels(png_of(ROWS, SIDE, after=[chunk])), TURNED)


@pytest.mark.parametrize(
    ("chunk", "code"),
    [
        (png_chunk(b"prVt", b"") * 2_000_000, Code.IMAGE_TOO_LARGE),
        (png_chunk(b"IDAT", b"") * 2_000_000, Code.IMAGE_TOO_LARGE),
        (
            png_chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(bytes(2**20)))
            * 9_000,
            None,
        ),
    ],
    ids=["private", "data", "compressed"],
)
def test_many_chunks_take_linear_time(chunk: bytes, code: Code | None) -> None:
    content = png_of(ROWS, SIDE, before=[chunk])
    start = time.process_time()
    try:
        open_image(content, DecodeSettings())
        found = None
    except ItemError as error:
        found = error.code
    assert found == code
    # Two seconds on the slowest machine; anything that is not linear takes minutes.
    assert time.process_time() - start < 10


def test_data_in_chunks_of_one_byte_are_an_image() -> None:
    content = real_pictures()["chelsea.png"]
    packed = zlib.compress(b"".join(b"\0" + row.tobytes() for row in COLOURS))
    split = b"".join(png_chunk(b"IDAT", packed[at : at + 1]) for at in range(len(packed)))
    np.testing.assert_array_equal(pixels(SOUND[:33] + split), COLOURS)
    # A photograph's 320,000.
    whole = np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))
    packed = zlib.compress(b"".join(b"\0" + row.tobytes() for row in whole))
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", *whole.shape[1::-1], 8, 2, 0, 0, 0))
    split = b"".join(png_chunk(b"IDAT", packed[at : at + 1]) for at in range(len(packed)))
    decoded = open_image(SOUND[:8] + header + split, DecodeSettings()).decode()
    np.testing.assert_array_equal(np.asarray(decoded), whole)


def test_an_apng_is_its_still_image() -> None:
    frames = [Image.fromarray(COLOURS), Image.new("RGB", (SIDE, SIDE), "red")]
    content = encoded(frames[0], save_all=True, append_images=frames[1:])
    assert getattr(Image.open(io.BytesIO(content)), "n_frames", 1) == 2
    np.testing.assert_array_equal(pixels(content), COLOURS)
