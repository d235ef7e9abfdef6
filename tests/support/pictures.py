"""Real pictures that come with scikit-image and scikit-learn, and what tests make of them."""

from __future__ import annotations

import io
import random
import struct
import zlib
from collections.abc import Sequence
from functools import cache
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

from PIL import Image

__all__ = ["encoded", "exif_orientation", "mutated", "png_chunk", "png_of", "real_pictures"]


@cache
def real_pictures() -> dict[str, bytes]:
    """Every one by file name, as its publisher encoded it."""
    # Importing scikit-learn takes longer than most tests.
    folder = Path(str(distribution("scikit-image").locate_file("skimage/data")))
    photos = Path(str(distribution("scikit-learn").locate_file("sklearn/datasets/images")))
    found = [path for path in folder.iterdir() if path.suffix in (".png", ".jpg", ".gif")]
    found += [photos / "china.jpg", photos / "flower.jpg"]
    return {path.name: path.read_bytes() for path in sorted(found)}


def encoded(image: Image.Image, format_: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, format_, **options)
    return file.getvalue()


def mutated(content: bytes, source: random.Random) -> bytes:
    """Up to 20 bytes overwritten, mostly near the header; at times cut short or cut into."""
    data = bytearray(content)
    for _ in range(source.randint(1, 20)):
        end = source.choice([64, 1024, len(data)])
        data[source.randrange(min(end, len(data)))] = source.randrange(256)
    if source.random() < 0.3:
        del data[source.randrange(len(data)) :]
    if source.random() < 0.2:
        start = source.randrange(len(data) + 1)
        del data[start : start + source.randint(1, 500)]
    return bytes(data)


def png_chunk(kind: bytes, data: bytes, *, checksum: int | None = None) -> bytes:
    if checksum is None:
        checksum = zlib.crc32(kind + data)
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", checksum)


def png_of(
    rows: Sequence[bytes],
    width: int,
    *,
    depth: int = 8,
    colour_type: int = 2,
    before: Sequence[bytes] = (),
    after: Sequence[bytes] = (),
) -> bytes:
    """A PNG made by hand: Pillow writes only sound ones. Its chunks stand around the data."""
    header = struct.pack(">IIBBBBB", width, len(rows), depth, colour_type, 0, 0, 0)
    data = zlib.compress(b"".join(b"\0" + row for row in rows))
    chunks = [
        png_chunk(b"IHDR", header),
        *before,
        png_chunk(b"IDAT", data),
        *after,
        png_chunk(b"IEND", b""),
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def exif_orientation(kind: int, value: bytes, *, count: int = 1) -> bytes:
    """EXIF of one entry, the orientation, of a type of TIFF's."""
    place = value.ljust(4, b"\0") if len(value) <= 4 else struct.pack("<I", 26)
    entry = struct.pack("<HHI", 0x0112, kind, count) + place
    outside = value if len(value) > 4 else b""
    return b"Exif\0\0II*\0\x08\0\0\0\x01\0" + entry + bytes(4) + outside
