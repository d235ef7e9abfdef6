"""GIF and WebP, how a format is identified, and the memory of a header and of many images."""

from __future__ import annotations

import io
import struct
import subprocess
import sys

import numpy as np
import pillow_heif
import pytest
from PIL import Image

from embedstream_core.errors import Code, ItemError
from embedstream_core.media.detect import detect_type
from embedstream_core.media.image.decode import open_image, render
from embedstream_core.media.image.modality import IMAGE
from embedstream_core.media.image.opened_image import Pixels
from embedstream_core.media.image.preprocessing import ImagePreprocessing
from embedstream_core.records import Media
from embedstream_core.settings import FORMATS, IMAGE_FORMATS, DecodeSettings
from pictures import encoded, exif_orientation
from rendered import render_one

pillow_heif.register_heif_opener()

SIDE = 8
AS_STORED = ImagePreprocessing(SIDE, SIDE, "nearest", (0, 0, 0), (1, 1, 1))
RED, GREEN, WHITE = (200, 30, 10), (0, 255, 0), (255, 255, 255)


def pixels(content: bytes) -> Pixels:
    return render_one(content, AS_STORED).pixels


def failure(content: bytes, *, formats: tuple[str, ...] | None = None) -> ItemError:
    limits = DecodeSettings(formats=formats) if formats else DecodeSettings()
    with pytest.raises(ItemError) as caught:
        render(open_image(content, limits), AS_STORED)
    return caught.value


def framed(inner: Pixels, colour: tuple[int, int, int] = WHITE) -> Pixels:
    """Return a small image in the middle of a screen."""
    screen = np.full((SIDE, SIDE, 3), colour, np.uint8)
    screen[2:6, 2:6] = inner
    return screen


# GIF.


def gif(
    *, background: int, local: bool, transparent: int | None = None, index: int = 1, side: int = 4
) -> bytes:
    """Return a frame of one colour at 2, 2 on a screen of 8 by 8 with four colours."""
    table = bytes([0, 0, 0, *RED, *GREEN, *WHITE])
    flags = 0x81
    screen = struct.pack("<HHBBB", SIDE, SIDE, 0 if local else flags, background, 0)
    control = b"" if transparent is None else b"!\xf9\x04\x01\0\0" + bytes([transparent, 0])
    place = 2 if side < SIDE else 0
    frame = struct.pack("<HHHHB", place, place, side, side, flags if local else 0)
    # Codes of four bits, cleared before they grow: LZW without compression.
    codes = [code for _ in range(side * side) for code in (8, index)] + [9]
    data = bytes(
        low | high << 4 for low, high in zip(codes[::2], [*codes[1:], 0][::2], strict=False)
    )
    blocks = bytes([len(data)]) + data + b"\0"
    tables = (b"", table) if local else (table, b"")
    parts = (b"GIF89a", screen, tables[0], control, b",", frame, tables[1], b"\x03", blocks, b";")
    return b"".join(parts)


@pytest.mark.parametrize("background", [0, 1, 2])
@pytest.mark.parametrize("local", [True, False])
@pytest.mark.parametrize("transparent", [None, 0, 2])
def test_the_part_that_a_first_frame_leaves_uncovered_is_white(
    background: int, local: bool, transparent: int | None
) -> None:
    content = gif(background=background, local=local, transparent=transparent)
    np.testing.assert_array_equal(pixels(content), framed(np.full((4, 4, 3), RED, np.uint8)))


def test_a_transparent_frame_is_white() -> None:
    content = gif(background=2, local=True, transparent=1)
    assert (pixels(content) == 255).all()


def test_a_frame_over_the_whole_screen_is_itself() -> None:
    for transparent in (None, 0):
        content = gif(background=2, local=False, transparent=transparent, side=SIDE)
        assert (pixels(content) == RED).all()


# WebP.


def riff_chunk(kind: bytes, data: bytes) -> bytes:
    return kind + struct.pack("<I", len(data)) + data + b"\0" * (len(data) % 2)


def webp_of_frame(inner: Image.Image, place: int, *, flags: int = 2, frames: int = 2) -> bytes:
    """Return an animation whose first frame is smaller than its canvas of 8 by 8."""
    bitstream = encoded(inner, "WEBP", lossless=True)[12:]

    def three(value: int) -> bytes:
        return value.to_bytes(3, "little")

    size = three(inner.width - 1) + three(inner.height - 1)
    head = three(place // 2) * 2 + size + three(100) + b"\0"
    frame = riff_chunk(b"ANMF", head + bitstream)
    canvas = riff_chunk(b"VP8X", bytes([flags, 0, 0, 0]) + three(SIDE - 1) * 2)
    chunks = canvas + riff_chunk(b"ANIM", bytes([0, 255, 0, 255, 0, 0])) + frame * frames
    return b"RIFF" + struct.pack("<I", 4 + len(chunks)) + b"WEBP" + chunks


@pytest.mark.parametrize("frames", [1, 2])
@pytest.mark.parametrize("flags", [0x02, 0x12])
def test_the_part_that_a_first_webp_frame_leaves_uncovered_is_white(
    flags: int, frames: int
) -> None:
    content = webp_of_frame(Image.new("RGB", (4, 4), RED), 2, flags=flags, frames=frames)
    assert Image.open(io.BytesIO(content)).size == (SIDE, SIDE)
    np.testing.assert_array_equal(pixels(content), framed(np.full((4, 4, 3), RED, np.uint8)))


@pytest.mark.parametrize("size", [(1, 1), (300, 451), (16383, 1)])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"lossless": True},
        {"exif": exif_orientation(3, b"\1\0")},
        {"lossless": True, "xmp": b"x"},
    ],
    ids=str,
)
def test_a_webps_size_is_what_libwebp_reads(
    size: tuple[int, int], options: dict[str, object]
) -> None:
    content = encoded(Image.new("RGB", size), "WEBP", **options)
    opened = open_image(content, DecodeSettings())
    assert (opened.format, opened.size) == ("WEBP", size)
    assert opened.decode().size == size


@pytest.mark.parametrize("lossless", [True, False])
def test_a_webps_orientation_is_applied(lossless: bool) -> None:
    image = Image.new("RGB", (30, 20), RED)
    content = encoded(image, "WEBP", lossless=lossless, exif=exif_orientation(3, b"\6\0"))
    opened = open_image(content, DecodeSettings())
    assert (opened.width, opened.height, opened.orientation) == (20, 30, 6)


# Codes.


@pytest.mark.parametrize("format_", ["JPEG", "PNG", "WEBP", "GIF", "BMP"])
def test_an_image_that_is_cut_short_is_corrupt(format_: str) -> None:
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8))
    content = encoded(image, format_)
    for length in (20, 30, 60, len(content) // 2):
        assert failure(content[:length]).code == Code.IMAGE_CORRUPT, length


@pytest.mark.parametrize("format_", ["JPEG", "PNG", "WEBP", "GIF", "BMP"])
def test_a_format_that_is_not_allowed_is_unsupported(format_: str) -> None:
    content = encoded(Image.new("RGB", (8, 8)), format_)
    others = tuple(name for name in DecodeSettings().formats if name != format_)
    error = failure(content, formats=others)
    assert error.code == Code.IMAGE_UNSUPPORTED
    assert ", ".join(others) in error.message
    render(open_image(content, DecodeSettings(formats=(format_,))), AS_STORED)


@pytest.mark.parametrize("format_", ["AVIF", "TIFF", "HEIC", "JP2"])
def test_a_format_that_must_be_allowed_is_named(format_: str) -> None:
    """By default, and with all of the others."""
    pillow_name = {"HEIC": "HEIF", "JP2": "JPEG2000"}.get(format_, format_)
    content = encoded(Image.new("RGB", (32, 32)), pillow_name)
    others = tuple(name for name in IMAGE_FORMATS if name != format_)
    for formats in (FORMATS, others):
        error = failure(content, formats=formats)
        assert error.code == Code.IMAGE_UNSUPPORTED
        assert f"format {format_}; decode.formats has {', '.join(formats)}" in error.message
    opened = open_image(content, DecodeSettings(formats=(format_,)))
    assert IMAGE.describe(opened) == Media(f"image/{format_.lower()}", width=32, height=32)
    assert detect_type(content) == f"image/{format_.lower()}"


def test_an_avif_of_a_general_brand_is_no_heic() -> None:
    avif = encoded(Image.new("RGB", (32, 32)), "AVIF")
    general = avif.replace(b"ftypavif", b"ftypmif1")
    assert detect_type(general) == "image/avif"
    assert open_image(general, DecodeSettings(formats=IMAGE_FORMATS)).format == "AVIF"


@pytest.mark.parametrize(
    "content", [b"RIFF\4\0\0\0WAVEfmt ", b"GIF88a", b"\x89PNG", b"\xff\xd8", b"\x8aMNG\r\n\x1a\n"]
)
def test_bytes_that_only_resemble_an_image_are_unsupported(content: bytes) -> None:
    assert failure(content).code == Code.IMAGE_UNSUPPORTED


# Memory. Each test measures a process of its own, which makes no images itself.

MEASURED = """
import re, sys
from pathlib import Path
import torch
from embedstream_core.media.image.decode import DecodeSettings, ImagePreprocessing, open_image
from embedstream_core.engine.engine import Engine
from embedstream_core.models.loaded import LoadedModel
from embedstream_core.pipeline.pipeline import Pipeline, PipelineLimits
from embedstream_core.records import Embedding, Item

class Mean(torch.nn.Module):
    def forward(self, pictures):
        return pictures.mean((2, 3)) + 1

def field(name):
    status = Path("/proc/self/status").read_text()
    return int(re.search(rf"{name}:\\s+(\\d+)", status)[1]) // 1024

def peak(action):
    Path("/proc/self/clear_refs").write_text("5")
    before = field("VmRSS")
    action()
    return field("VmHWM") - before

wanted = ImagePreprocessing(256, 224, "bilinear", (0, 0, 0), (1, 1, 1))
loaded = LoadedModel(Mean(), (wanted,))
engine = Engine.start(loaded, device=torch.device("cpu"), precision="float32", cpu_threads=1)
limits = PipelineLimits(fetch_threads=16, decode_threads=1, pixels=16_000_000)

def embed(contents):
    pipeline = Pipeline([engine], fetch=lambda uri: b"", limits=limits)
    items = [Item(str(number), content=content) for number, content in enumerate(contents)]
    (outcomes,) = pipeline.run([items])
    assert all(isinstance(outcome, Embedding) for (outcome,) in outcomes), outcomes

small, large = (Path(name).read_bytes() for name in sys.argv[1:3])
embed([small])
header = peak(lambda: open_image(large, DecodeSettings()))
one = peak(lambda: embed([large]))
# Other bytes each time, so that no two images are equal.
many = peak(lambda: embed([large + bytes([number]) for number in range(12)]))
print(header, one, many)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="it reads /proc")
@pytest.mark.parametrize("format_", ["JPEG", "PNG", "WEBP"])
def test_a_header_takes_no_memory_and_many_images_take_that_of_one(
    format_: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp(format_)
    for side in (200, 4000):
        (folder / str(side)).write_bytes(encoded(Image.new("RGB", (side, side), RED), format_))
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, folder / "200", folder / "4000"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    header, one, many = map(int, done.stdout.split())
    # Megabytes: one image takes 48, and 12 of them would take 576.
    assert header < 10
    assert many < 2 * one + 150
