"""Real pictures that come with scikit-image and scikit-learn."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import skimage
import sklearn

__all__ = ["real_pictures"]


@cache
def real_pictures() -> dict[str, bytes]:
    """Every one by file name, as its publisher encoded it."""
    folder = Path(skimage.__file__).parent / "data"
    photos = Path(sklearn.__file__).parent / "datasets" / "images"
    found = [path for path in folder.iterdir() if path.suffix in (".png", ".jpg", ".gif")]
    found += [photos / "china.jpg", photos / "flower.jpg"]
    return {path.name: path.read_bytes() for path in sorted(found)}
