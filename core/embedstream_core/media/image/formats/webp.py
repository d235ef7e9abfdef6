"""WebP: its size and orientation, without libwebp, which takes the memory of two images to open."""

from __future__ import annotations

import io
from typing import Any

from PIL import Image, WebPImagePlugin

from embedstream_core.media.image.opened_image import OpenedImage, read_orientation

__all__ = ["open_webp"]

_ANIMATION = 0x02


def open_webp(content: bytes) -> OpenedImage:
    """Read the header of a WebP; no pixel is decoded.

    Raises:
        ValueError: its first chunk is not one that a WebP begins with.
    """
    kind, body = content[12:16], content[20:30]
    if kind == b"VP8 " and body[3:6] == b"\x9d\x01\x2a":
        bits = int.from_bytes(body[6:10], "little")
        size = bits & 0x3FFF, bits >> 16 & 0x3FFF
    elif kind == b"VP8L" and body[:1] == b"\x2f":
        bits = int.from_bytes(body[1:5], "little")
        size = (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    elif kind == b"VP8X":
        size = int.from_bytes(body[4:7], "little") + 1, int.from_bytes(body[7:10], "little") + 1
    else:
        raise ValueError(f"it begins with {kind!r}")
    info: dict[str, Any] = {}
    position = 12 if kind == b"VP8X" else len(content)
    while position + 8 <= len(content):
        name, start = content[position : position + 4], position + 8
        length = int.from_bytes(content[position + 4 : start], "little")
        if name in (b"EXIF", b"XMP ", b"ICCP"):
            info.setdefault(name.decode().strip().lower(), content[start : start + length])
        # Chunks begin at even positions.
        position = start + length + length % 2

    def decode() -> Image.Image:
        image = WebPImagePlugin.WebPImageFile(io.BytesIO(content))
        # Pillow does not call an animation of one frame animated.
        if kind == b"VP8X" and content[20] & _ANIMATION:
            # What the first frame does not cover is transparent, even if no frame is.
            image.rawmode = image._mode = "RGBA"
        return image

    profile = info.pop("iccp", None)
    return OpenedImage("WEBP", size, decode, read_orientation(info), profile=profile)
