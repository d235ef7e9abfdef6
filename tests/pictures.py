"""Real pictures that come with scikit-image and scikit-learn, and what tests make of them."""

from __future__ import annotations

import io
import random
from functools import cache
from pathlib import Path
from typing import Any

import skimage
import sklearn
from PIL import Image

__all__ = ["encoded", "mutated", "real_pictures"]


@cache
def real_pictures() -> dict[str, bytes]:
    """Every one by file name, as its publisher encoded it."""
    folder = Path(skimage.__file__).parent / "data"
    photos = Path(sklearn.__file__).parent / "datasets" / "images"
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
