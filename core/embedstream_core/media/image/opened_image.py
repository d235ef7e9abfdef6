"""An image before and after it is decoded."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image

__all__ = ["OpenedImage", "Pixels", "read_orientation"]

Pixels = npt.NDArray[np.uint8]
"""RGB, of shape (height, width, 3), or several of one size, of shape (images, height, width, 3)."""


@dataclass(frozen=True, slots=True)
class OpenedImage:
    """An image of which only the header was read.

    `size` is as stored. `decode` returns a Pillow image of that size, decoded or not yet loaded; it
    raises whatever Pillow raises. `scans` is the number of passes that the decoder makes.
    `coded_pixels` are those of its largest part as coded, such as a tile, where that may be larger
    than the image. `profile` is its ICC profile, empty if that is broken; `unconverted` describes
    colours that only a profile could convert to sRGB, where the file has none.
    """

    format: str
    size: tuple[int, int]
    decode: Callable[[], Image.Image]
    orientation: int = 1
    scans: int = 1
    coded_pixels: int = 0
    profile: bytes | None = None
    unconverted: str = ""

    @property
    def width(self) -> int:
        """The width as displayed, in pixels."""
        # Orientations 5 to 8 turn the image by a quarter (EXIF 2.3, tag 0x0112).
        return self.size[1] if self.orientation >= 5 else self.size[0]

    @property
    def height(self) -> int:
        """The height as displayed, in pixels."""
        return self.size[0] if self.orientation >= 5 else self.size[1]

    @property
    def elements(self) -> int:
        """The number of pixels, of the image or of its largest part as coded."""
        return max(self.size[0] * self.size[1], self.coded_pixels)


def read_orientation(info: Mapping[Any, Any]) -> int:
    """Return the orientation in EXIF or XMP, under the names that Pillow uses; 1 without one."""
    holder = Image.Image()
    holder.info = {key: value for key, value in info.items() if value}
    if not holder.info:
        return 1
    try:
        value = holder.getexif().get(ExifTags.Base.Orientation, 1)
        # 6.0 and 6/1 too, which Pillow takes for 6.
        return int(value) if value in range(1, 9) else 1
    except Exception:
        # Broken EXIF says nothing about the pixels: show the image as it is stored.
        return 1
