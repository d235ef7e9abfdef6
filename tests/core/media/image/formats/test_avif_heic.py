"""AVIF and HEIC: pixels, orientation, sequences, and what a few bytes could cost."""

from __future__ import annotations

import io
import random
import struct
import sys
import threading
import time
from typing import Any

import numpy as np
import numpy.typing as npt
import pillow_heif
import psutil
import pytest
from PIL import Image

from embedstream_core.errors import Code, ItemError, MissingExtra
from embedstream_core.media.image.decode import open_image, render
from embedstream_core.media.image.opened_image import Pixels
from embedstream_core.media.image.preprocessing import ImagePreprocessing
from embedstream_core.media.image.readers import require_decoders
from embedstream_core.settings import DecodeSettings
from opt_in_formats import assert_cuts_are_corrupt, assert_mutations_are_refused, turned
from pictures import encoded, exif_orientation

pillow_heif.register_heif_opener()

WIDTH, HEIGHT = 96, 64
SETTINGS = DecodeSettings(formats=("AVIF", "HEIC"))
SQUARE = ImagePreprocessing(HEIGHT, HEIGHT, "bilinear", (0, 0, 0), (1, 1, 1))

NOISE = np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8)
IMAGE = Image.fromarray(NOISE).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)
STORED = np.asarray(IMAGE)

# With few losses, so that pixels can be compared.
OPTIONS: dict[str, dict[str, Any]] = {
    "AVIF": {"quality": 95, "subsampling": "4:4:4", "speed": 10},
    "HEIF": {"quality": 95, "chroma": 444},
}
LEVELS = 12

both = pytest.mark.parametrize("format_", OPTIONS)


def made(image: Image.Image, format_: str, **options: Any) -> bytes:
    return encoded(image, format_, **OPTIONS[format_], **options)


def decoded(content: bytes, preprocessing: ImagePreprocessing = SQUARE) -> Pixels:
    (pixels,) = render(open_image(content, SETTINGS), preprocessing)
    return pixels


def middle(pixels: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The square that `SQUARE` cuts."""
    top, left = ((side - HEIGHT) // 2 for side in pixels.shape[:2])
    return pixels[top : top + HEIGHT, left : left + HEIGHT]


def assert_near(found: Pixels, expected: Any) -> None:
    assert np.abs(found.astype(float) - expected).max() <= LEVELS


def refused(content: bytes, settings: DecodeSettings = SETTINGS) -> ItemError:
    with pytest.raises(ItemError) as caught:
        render(open_image(content, settings), SQUARE)
    return caught.value


@both
def test_pixels_are_those_of_the_writer(format_: str) -> None:
    content = made(IMAGE, format_)
    opened = open_image(content, SETTINGS)
    assert (opened.format, opened.size) == ("HEIC" if format_ == "HEIF" else "AVIF", IMAGE.size)
    assert_near(decoded(content), middle(STORED))


@both
@pytest.mark.parametrize("size", [(1, 1), (33, 17), (201, 101)])
def test_odd_sizes(format_: str, size: tuple[int, int]) -> None:
    image = IMAGE.resize(size)
    opened = open_image(made(image, format_), SETTINGS)
    assert opened.size == size
    assert opened.decode().size == size


@both
def test_alpha_lies_over_white(format_: str) -> None:
    image = IMAGE.copy()
    image.putalpha(Image.linear_gradient("L").resize(image.size))
    share = np.asarray(image)[..., 3:] / 255
    expected = STORED * share + 255 * (1 - share)
    assert_near(decoded(made(image, format_)), middle(expected))


@both
def test_grey_fills_three_channels(format_: str) -> None:
    image = IMAGE.convert("L")
    assert_near(decoded(made(image, format_)), middle(np.stack([np.asarray(image)] * 3, -1)))


def test_ten_bits_are_scaled_to_eight() -> None:
    image = Image.fromarray(STORED[..., 0].astype(np.uint16) * 257)
    content = encoded(image, "HEIF", quality=95)
    assert_near(decoded(content), middle(np.stack([STORED[..., 0]] * 3, -1)))
    wide = pillow_heif.from_bytes("RGB;16", IMAGE.size, (STORED.astype("<u2") * 257).tobytes())
    file = io.BytesIO()
    wide.save(file, **OPTIONS["HEIF"])
    assert_near(decoded(file.getvalue()), middle(STORED))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_avif_is_turned_as_its_container_says(orientation: int) -> None:
    content = made(IMAGE, "AVIF", exif=exif_orientation(3, bytes([orientation, 0])))
    opened = open_image(content, SETTINGS)
    expected = turned(STORED, orientation)
    assert (opened.width, opened.height) == expected.shape[1::-1]
    assert_near(decoded(content), middle(expected))


def test_exif_without_a_turn_of_the_container_says_nothing() -> None:
    """As in browsers: the container alone turns an image (ISO/IEC 23000-22, 7.3.6.7)."""
    content = made(IMAGE, "AVIF", exif=exif_orientation(3, b"\6\0"))
    still = content.replace(b"irot\3", b"irot\0")
    assert still != content
    assert_near(decoded(still), middle(STORED))


@pytest.mark.parametrize("turns", range(4))
def test_a_heic_is_turned_as_its_container_says(turns: int) -> None:
    """A turn and a filler take the place of its colours: libheif writes no turn."""
    content = made(IMAGE, "HEIF")
    colr = content.index(b"colr") - 4
    assert struct.unpack_from(">I", content, colr) == (19,)
    turn = struct.pack(">I4sB", 9, b"irot", turns) + struct.pack(">I4sH", 10, b"free", 0)
    content = content[:colr] + turn + content[colr + 19 :]
    # There is one property more before its size and its depth, so the numbers of these grow.
    numbers = content.index(b"ipma") + 4 + 8 + 3
    assert content[numbers : numbers + 4] == b"\x81\2\3\4"
    content = content[:numbers] + b"\x81\x82\4\5" + content[numbers + 4 :]
    expected = np.rot90(STORED, turns)
    opened = open_image(content, SETTINGS)
    assert (opened.width, opened.height) == expected.shape[1::-1]
    assert_near(decoded(content), middle(expected))


@pytest.mark.parametrize("size", [((80, 1), (48, 1)), ((161, 2), (97, 2))])
def test_a_heic_is_cropped_as_its_container_says(size: Any) -> None:
    """A crop and a filler take the place of a profile."""
    content = made(IMAGE, "HEIF", icc_profile=bytes(100))
    colr = content.index(b"colrprof") - 4
    (length,) = struct.unpack_from(">I", content, colr)
    crop = struct.pack(">8I", *size[0], *size[1], 0, 1, 0, 1)
    taken = box(b"clap", crop) + box(b"free", bytes(length - 40 - 8))
    content = content[:colr] + taken + content[colr + length :]
    # The properties behind it have numbers that are one larger.
    numbers = content.index(b"ipma") + 4 + 8 + 2
    count = content[numbers]
    found = list(content[numbers + 1 : numbers + 1 + count])
    assert found[0] & 127 == 1
    moved = bytes(one + 1 if one & 127 > 2 else one for one in found)
    content = content[: numbers + 1] + moved + content[numbers + 1 + count :]
    opened = open_image(content, SETTINGS)
    width, height = (round(part / whole + 0.01) for part, whole in size)
    assert (opened.width, opened.height) == (width, height)
    left, top = (WIDTH - width) // 2, (HEIGHT - height) // 2
    shown = np.asarray(opened.decode().convert("RGB"))
    # The middle of an odd size lies between two pixels.
    assert np.abs(shown - STORED[top : top + height, left : left + width].astype(float)).mean() < 6


def test_a_grid_of_tiles_is_one_image() -> None:
    image = IMAGE.resize((300, 200), Image.Resampling.BICUBIC)
    content = made(image, "HEIF", tile_size=128)
    opened = open_image(content, SETTINGS)
    assert opened.size == (300, 200)
    whole = ImagePreprocessing(200, 200, "bilinear", (0, 0, 0), (1, 1, 1))
    assert_near(decoded(content, whole), np.asarray(image)[:, 50:250])


def test_the_still_image_of_a_sequence_is_decoded() -> None:
    others = [Image.new("RGB", IMAGE.size, colour) for colour in ("red", "blue")]
    content = made(IMAGE, "AVIF", save_all=True, append_images=others)
    assert content[8:12] == b"avis"
    assert_near(decoded(content), middle(STORED))
    alone = content.replace(b"meta", b"free", 1)
    assert refused(alone).code == Code.IMAGE_UNSUPPORTED


def test_several_images_are_represented_by_the_primary_one() -> None:
    others = [Image.new("RGB", IMAGE.size, colour) for colour in ("red", "blue")]
    content = made(IMAGE, "HEIF", save_all=True, append_images=others, primary_index=1)
    assert_near(decoded(content), np.full((HEIGHT, HEIGHT, 3), (255, 0, 0)))


@both
def test_a_file_that_is_cut_is_corrupt(format_: str) -> None:
    assert_cuts_are_corrupt(made(IMAGE, format_), SETTINGS)


def test_a_picture_that_is_larger_than_its_container_says_is_refused() -> None:
    small, large = (struct.pack(">4sIII", b"ispe", 0, side, side) for side in (16, 1024))
    for format_ in OPTIONS:
        content = encoded(Image.new("RGB", (1024, 1024)), format_)
        lying = content.replace(large, small)
        assert lying != content
        limits = DecodeSettings(formats=SETTINGS.formats, max_pixels=100_000)
        error = refused(lying, limits)
        assert error.code == Code.IMAGE_TOO_LARGE
        assert "1048576 pixels as coded" in error.message


def test_many_frames_in_one_image_are_refused() -> None:
    content = encoded(Image.new("RGB", (1024, 1024)), "AVIF", speed=10)
    start, length = content.index(b"mdat") + 4, len(content) - content.index(b"mdat") - 4
    # Two units without a frame come first: of two bytes, and of a length in its second byte.
    frame = content[start + 4 + content[start + 3] :]
    assert frame[0] >> 3 & 15 == 6
    place = content.index(struct.pack(">II", start, length))
    content = (
        content[: place + 4] + struct.pack(">I", length + 200 * len(frame)) + content[place + 8 :]
    )
    content = content[: start - 8] + bytes(4) + content[start - 4 :] + 200 * frame
    assert len(content) < 100_000
    error = refused(content)
    assert (error.code, "201 scans" in error.message) == (Code.IMAGE_TOO_LARGE, True)


def box(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I4s", 8 + len(body), kind) + body


def item_places(entry: bytes, count: int) -> bytes:
    """Return a file whose items have no width for the places of their data."""
    places = box(b"iloc", b"\1\0\0\0\0\0" + struct.pack(">H", count) + entry * count)
    kinds = box(b"iinf", bytes(4) + b"\0\1" + box(b"infe", b"\2\0\0\0\0\1\0\0av01\0"))
    meta = box(b"meta", bytes(4) + box(b"pitm", bytes(5) + b"\1") + kinds + places)
    return box(b"ftyp", b"avif\0\0\0\0avif") + meta


LONG_READS = {
    "parts that take no bytes": (item_places(b"\0\1\0\0\0\0\xff\xff", 900), "overlap"),
    "data that items share": (item_places(b"\0\1\0\0\0\0\0\1", 900), "overlap"),
    "boxes": (box(b"ftyp", b"avif\0\0\0\0avif") + box(b"free", b"") * 30_000, "boxes and parts"),
}


@pytest.mark.parametrize(("content", "reason"), LONG_READS.values(), ids=LONG_READS.keys())
def test_what_would_take_long_to_read_is_refused(content: bytes, reason: str) -> None:
    assert reason in refused(content).message


def test_many_units_without_a_picture_are_refused() -> None:
    content = encoded(IMAGE, "AVIF", speed=10)
    start = content.index(b"mdat") + 4
    length = len(content) - start
    place = content.index(struct.pack(">II", start, length))
    # Temporal delimiters, of two bytes.
    padding = b"\x12\0" * 30_000
    longer = struct.pack(">I", length + len(padding))
    content = content[: place + 4] + longer + content[place + 8 :]
    content = content[: start - 8] + bytes(4) + content[start - 4 :] + padding
    assert "units of data" in refused(content).message


def test_parameters_within_the_data_are_refused() -> None:
    """libde265 would follow them, whatever the container says."""
    content = made(IMAGE, "HEIF")
    start = content.index(b"mdat") + 4
    # The header of the first unit, behind its length, becomes that of a sequence's parameters.
    content = content[: start + 4] + bytes([33 << 1]) + content[start + 5 :]
    error = refused(content)
    assert (error.code, "parameters" in error.message) == (Code.IMAGE_UNSUPPORTED, True)


def test_other_codecs_are_unsupported() -> None:
    heic = made(IMAGE, "HEIF").replace(b"infe\2\0\0\0\0\1\0\0hvc1", b"infe\2\0\0\0\0\1\0\0jpeg")
    assert "b'jpeg'" in refused(heic).message
    avif = made(IMAGE, "AVIF").replace(b"ftypavif", b"ftypheic")
    assert "b'av01'" in refused(avif).message


@both
def test_mutations_become_failures(format_: str) -> None:
    assert_mutations_are_refused(made(IMAGE, format_), SETTINGS, random.Random(0), count=100)


@pytest.mark.long
@both
def test_many_mutations_become_failures(format_: str) -> None:
    for content in (
        made(IMAGE, format_),
        made(IMAGE.convert("RGBA"), format_),
        made(IMAGE, format_, save_all=True, append_images=[IMAGE]),
    ):
        assert_mutations_are_refused(content, SETTINGS, random.Random(1), count=5000)


@both
def test_decoding_starts_few_threads(format_: str) -> None:
    """One at most, whatever the number of cores: the pipeline has as many decoders as cores."""
    content = made(IMAGE.resize((600, 400)), format_)
    decoded(content)
    opened, most, is_done = open_image(content, SETTINGS), [0], threading.Event()
    process = psutil.Process()

    def count() -> None:
        while not is_done.is_set():
            most[0] = max(most[0], process.num_threads())
            time.sleep(0.001)

    counter = threading.Thread(target=count)
    counter.start()
    time.sleep(0.01)
    before = most[0]
    render(opened, SQUARE)
    is_done.set()
    counter.join()
    assert most[0] <= before + 1


def test_a_missing_package_is_named_at_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    content = made(IMAGE, "HEIF")
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    message = r"HEIC in decode.formats needs an extra package: pip install 'embedstream\[heif\]'"
    with pytest.raises(MissingExtra, match=message):
        require_decoders(("JPEG", "HEIC"))
    require_decoders(("JPEG", "AVIF", "TIFF", "JP2"))
    # A worker without it is set up wrongly; the image is not to blame.
    with pytest.raises(MissingExtra):
        decoded(content)
