"""JPEGs by their segments: scans, frames, and metadata that does not affect the image."""

from __future__ import annotations

import io
import struct
import time

import numpy as np
import pytest
from PIL import Image

from embedstream_core.errors import Code, ItemError
from embedstream_core.media.image.decode import open_image
from embedstream_core.media.image.opened_image import Pixels
from embedstream_core.media.image.preprocessing import ImagePreprocessing
from embedstream_core.settings import DecodeSettings
from pictures import encoded, exif_orientation, real_pictures
from rendered import render_one

AS_STORED = ImagePreprocessing(64, 64, "nearest", (0, 0, 0), (1, 1, 1))
PHOTO = Image.open(io.BytesIO(real_pictures()["china.jpg"])).resize((64, 64))
SEQUENTIAL = encoded(PHOTO, "JPEG")
PROGRESSIVE = encoded(PHOTO, "JPEG", progressive=True)


def pixels(content: bytes) -> Pixels:
    return render_one(content, AS_STORED).pixels


def failure(content: bytes) -> ItemError:
    with pytest.raises(ItemError) as caught:
        pixels(content)
    return caught.value


def segment(marker: int, data: bytes) -> bytes:
    return bytes([0xFF, marker]) + struct.pack(">H", len(data) + 2) + data


def with_segment(content: bytes, marker: int, data: bytes) -> bytes:
    return content[:2] + segment(marker, data) + content[2:]


def assert_same_image(content: bytes, like: bytes) -> None:
    expected = np.asarray(Image.open(io.BytesIO(like)).convert("RGB"))
    np.testing.assert_array_equal(pixels(content), expected)


SCAN = segment(0xDA, b"\1\1\0\0\0\0") + b"\0"


@pytest.mark.parametrize(
    "content",
    [
        PROGRESSIVE + SCAN * 1000,
        PROGRESSIVE + np.random.default_rng(3).bytes(10 << 20),
        with_segment(PROGRESSIVE, 0xE1, b"thumbnail" + SCAN * 1000),
        with_segment(PROGRESSIVE, 0xFE, SCAN * 1000),
    ],
    ids=["behind the end", "noise behind the end", "in a thumbnail", "in a comment"],
)
def test_only_scans_of_the_image_count(content: bytes) -> None:
    start = time.process_time()
    assert_same_image(content, PROGRESSIVE)
    assert time.process_time() - start < 0.5


def test_scans_are_counted() -> None:
    scans = open_image(PROGRESSIVE, DecodeSettings()).scans
    # The number in libjpeg's default script for three colours.
    assert scans == 10
    assert open_image(SEQUENTIAL, DecodeSettings()).scans == 1
    exactly = DecodeSettings(max_scans=scans)
    assert open_image(PROGRESSIVE, exactly).scans == scans
    with pytest.raises(ItemError, match="scans; the limit is 9"):
        open_image(PROGRESSIVE, DecodeSettings(max_scans=scans - 1))


def test_scans_of_a_sequential_jpeg_are_counted_where_it_may_have_more() -> None:
    start = SEQUENTIAL.index(b"\xff\xda")
    bomb = SEQUENTIAL[:start] + SCAN * 200 + b"\xff\xd9"
    assert failure(bomb).code == Code.IMAGE_TOO_LARGE
    # A JPEG whose first scan has all colours ends with that scan, whatever follows.
    assert_same_image(SEQUENTIAL[:-2] + b"\xff\xd9" + SCAN * 200, SEQUENTIAL)


@pytest.mark.parametrize(
    "hostile",
    [b"\xff" * (8 << 20), b"\xff\0" * (4 << 20), b"\xff\xd0" * (4 << 20), b"\0" * (8 << 20)],
)
def test_counting_takes_linear_time(hostile: bytes) -> None:
    start = time.process_time()
    open_image(PROGRESSIVE[:-2] + hostile, DecodeSettings())
    assert time.process_time() - start < 1


@pytest.mark.parametrize("place", [2, -2])
def test_many_segments_are_refused_in_time(place: int) -> None:
    start = time.process_time()
    bomb = PROGRESSIVE[:place] + segment(0xE3, b"") * (8 << 20) + PROGRESSIVE[place:]
    with pytest.raises(ItemError, match="over 100000 segments") as caught:
        open_image(bomb, DecodeSettings(max_bytes=len(bomb)))
    assert caught.value.code == Code.IMAGE_TOO_LARGE
    assert time.process_time() - start < 2


@pytest.mark.parametrize(
    ("marker", "data"),
    [
        (0xE1, b"Exif\0\0"),
        (0xE1, b"Exif\0\0II*\0\xff\xff\xff\xff"),
        # A resolution that is an empty text, where Pillow expects two numbers.
        (0xE1, b"Exif\0\0II*\0\x08\0\0\0\2\0\x1a\1\2\0\0\0\0\0\0\0\0\0\x28\1\3\0\1\0\0\0\2\0\0\0"),
        (0xE2, b"MPF\0II*\0\x08\0\0\0\xff\xff"),
        (0xE2, b"ICC_PROFILE\0"),
        (0xED, b"Photoshop 3.0\x008BIM\4\4"),
        # Cut short before they name the colours.
        (0xE0, b"JFIF\0"),
        (0xEE, b"Adobe"),
        (0xFE, b""),
    ],
)
def test_broken_metadata_does_not_affect_the_image(marker: int, data: bytes) -> None:
    assert_same_image(with_segment(SEQUENTIAL, marker, data), SEQUENTIAL)


def test_a_segment_with_a_wrong_length_does_not_affect_the_image() -> None:
    # Its zeros do not belong to any segment.
    broken = with_segment(SEQUENTIAL, 0xED, b"Photoshop")[:13] + bytes(9) + SEQUENTIAL[2:]
    assert_same_image(broken, SEQUENTIAL)


def as_rational(value: int) -> bytes:
    return struct.pack("<II", value, 1)


@pytest.mark.parametrize(
    ("kind", "value", "count", "turns"),
    [
        (3, b"\6\0", 1, True),
        (4, b"\6\0\0\0", 1, True),
        (1, b"\6", 1, False),
        (5, as_rational(6), 1, True),
        (5, struct.pack("<II", 6, 0), 1, False),
        (11, struct.pack("<f", 6), 1, True),
        (11, struct.pack("<f", float("nan")), 1, False),
        (12, struct.pack("<d", 6.5), 1, False),
        (2, b"6\0", 2, False),
        (7, b"\6", 1, False),
        (3, b"\6\0\6\0", 2, True),
        (3, b"", 0, False),
        (99, b"\6\0", 1, False),
    ],
)
def test_an_orientation_of_any_type_is_read_or_ignored(
    kind: int, value: bytes, count: int, turns: bool
) -> None:
    content = encoded(PHOTO, "JPEG", exif=exif_orientation(kind, value, count=count))
    expected = np.asarray(Image.open(io.BytesIO(content)))
    np.testing.assert_array_equal(pixels(content), np.rot90(expected, -1) if turns else expected)


def test_an_orientation_of_xmp_is_applied() -> None:
    xmp = b'http://ns.adobe.com/xap/1.0/\0<rdf:Description tiff:Orientation="6"/>'
    expected = np.rot90(np.asarray(Image.open(io.BytesIO(SEQUENTIAL))), -1)
    np.testing.assert_array_equal(pixels(with_segment(SEQUENTIAL, 0xE1, xmp)), expected)


def with_frame(offset: int, value: int) -> bytes:
    content = bytearray(SEQUENTIAL)
    content[content.index(b"\xff\xc0") + offset] = value
    return bytes(content)


@pytest.mark.parametrize(
    "content",
    # 12 bits, two colours, hierarchical, arithmetically coded and lossless, JPEG-LS.
    [
        with_frame(4, 12),
        with_frame(9, 2),
        with_frame(1, 0xC5),
        with_frame(1, 0xCB),
        with_frame(1, 0xF7),
    ],
)
def test_frames_that_are_not_decoded_are_unsupported(content: bytes) -> None:
    assert failure(content).code == Code.IMAGE_UNSUPPORTED


@pytest.mark.parametrize(
    "content",
    [
        SEQUENTIAL[:3],
        SEQUENTIAL[:100],
        SEQUENTIAL[:2] + SEQUENTIAL[SEQUENTIAL.index(b"\xff\xda") :],
        SEQUENTIAL[: SEQUENTIAL.index(b"\xff\xda") + 100],
        with_frame(6, 0)[: SEQUENTIAL.index(b"\xff\xc0")] + SEQUENTIAL[-2:],
    ],
)
def test_broken_jpegs_are_corrupt(content: bytes) -> None:
    assert failure(content).code == Code.IMAGE_CORRUPT


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_other_colours_are_pillows(mode: str) -> None:
    content = encoded(PHOTO.convert(mode), "JPEG")
    assert_same_image(content, content)
