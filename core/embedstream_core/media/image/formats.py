"""What an image is, from its header alone, and its picture as Pillow decodes it.

The header decodes nothing: not a PNG for EXIF that may follow its pixels, and not a WebP, of which
libwebp takes two whole pictures' memory where it is opened.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import (
    GifImagePlugin,
    Image,
    JpegImagePlugin,
    PngImagePlugin,
    UnidentifiedImageError,
    WebPImagePlugin,
)

from embedstream_core.errors import Code, ItemError, decode_error
from embedstream_core.media.image import bmp, jpeg_segments, png_chunks

__all__ = ["OpenedImage", "read_header"]

_EXIF_ORIENTATION = 0x0112
_WEBP_ANIMATION = 0x02


@dataclass(frozen=True, slots=True)
class OpenedImage:
    """An image of which only the header was read.

    `size` is as stored, `width` and `height` are as displayed. `scans` is how often the decoder
    goes over the picture. `decode` gives a Pillow image of that size, decoded or to be loaded; it
    raises whatever Pillow does.
    """

    format: str
    size: tuple[int, int]
    decode: Callable[[], Image.Image]
    orientation: int = 1
    scans: int = 1

    @property
    def width(self) -> int:
        """In pixels, as displayed."""
        return self._displayed[0]

    @property
    def height(self) -> int:
        """In pixels, as displayed."""
        return self._displayed[1]

    @property
    def _displayed(self) -> tuple[int, int]:
        # Orientations 5 to 8 turn the picture by a quarter (EXIF 2.3, tag 0x0112).
        return self.size[::-1] if self.orientation >= 5 else self.size


def read_header(content: bytes, *, formats: tuple[str, ...], most_scans: int) -> OpenedImage:
    """Identify an image's format by how it begins, and read its header.

    Scans are counted to `most_scans` + 1.

    Raises:
        ItemError: none of the formats, of a kind that is not decoded here, or broken.
    """
    begins = (name for name, start in _BEGINNINGS.items() if content.startswith(start))
    found = next(begins, None)
    if found == "WEBP" and content[8:12] != b"WEBP":
        found = None
    try:
        if found in formats and found == "JPEG":
            return _read_jpeg(content, most_scans)
        if found in formats:
            return _READERS[found](content)
        return _read_other(content, [name for name in formats if name not in _BEGINNINGS])
    except UnidentifiedImageError:
        raise decode_error(
            Code.IMAGE_UNSUPPORTED,
            f"the bytes, starting {content[:12]!r}, are none of {', '.join(formats)}",
        ) from None
    except Image.DecompressionBombError as error:
        raise decode_error(Code.IMAGE_TOO_LARGE, str(error)) from None
    except (ItemError, MemoryError):
        raise
    except Exception as error:
        raise decode_error(
            Code.IMAGE_CORRUPT, f"the header cannot be read: {type(error).__name__}: {error}"
        ) from error


def _read_jpeg(content: bytes, most_scans: int) -> OpenedImage:
    jpeg = jpeg_segments.read_jpeg(content, most_scans=most_scans)
    info = {"exif": jpeg.exif, "xmp": jpeg.xmp}
    return OpenedImage(
        "JPEG",
        (jpeg.width, jpeg.height),
        # By its own class: Image.open would read an index of further pictures, and fail by it.
        lambda: JpegImagePlugin.JpegImageFile(io.BytesIO(jpeg.content())),
        _orientation(info),
        jpeg.scans,
    )


def _read_png(content: bytes) -> OpenedImage:
    png = png_chunks.read_png(content)
    return OpenedImage(
        "PNG", (png.width, png.height), lambda: _decode_png(png), _orientation(png.info)
    )


def _decode_png(png: png_chunks.Png) -> Image.Image:
    image = PngImagePlugin.PngImageFile(io.BytesIO(png.content()))
    image.load()
    # Where the compressed data end too early, Pillow leaves the rest at zero. What is missing is
    # the last row, unless interlaced.
    bottom = image.crop((0, image.height - 1, *image.size))
    if (png.is_interlaced or not np.asarray(bottom).any()) and not png.has_all_rows():
        raise ValueError("its data end before its last row")
    if not png.transparent:
        return image
    if image.mode == "RGB" and png.depth == 16:
        return _with_transparent(image, png)
    # Pillow spreads fewer bits over 0 to 255, but not those of the transparent colour.
    spread = 1 if png.depth >= 8 else 255 // ((1 << png.depth) - 1)
    colour = tuple(spread * value for value in png.transparent)
    image.info["transparency"] = colour if len(colour) > 1 else colour[0]
    return image


def _with_transparent(image: Image.Image, png: png_chunks.Png) -> Image.Image:
    """Find the transparent colour of 16 bits a channel, of which Pillow keeps the high byte."""
    low = PngImagePlugin.PngImageFile(io.BytesIO(png.content()))
    # Read as if the low byte were the high one.
    low.tile = [tile._replace(args="RGB;16L") for tile in low.tile]
    colour = np.array(png.transparent)
    hidden = (np.asarray(image) == colour >> 8) & (np.asarray(low) == colour & 255)
    alpha = np.where(hidden.all(axis=-1), 0, 255).astype(np.uint8)
    image.putalpha(Image.fromarray(alpha))
    return image


def _read_gif(content: bytes) -> OpenedImage:
    image = GifImagePlugin.GifImageFile(io.BytesIO(content))
    return OpenedImage("GIF", image.size, lambda: _decode_gif(content))


def _decode_gif(content: bytes) -> Image.Image:
    image = GifImagePlugin.GifImageFile(io.BytesIO(content))
    place = image.tile[0].extents
    if place is None or place == (0, 0, *image.size):
        return image
    # Pillow fills the rest of the screen with the palette's first colour.
    screen = Image.new("RGBA", image.size)
    screen.paste(image.convert("RGBA").crop(place), place)
    return screen


def _read_webp(content: bytes) -> OpenedImage:
    kind, body = content[12:16], content[20:30]
    if kind == b"VP8 " and body[3:6] == b"\x9d\x01\x2a":
        size = int.from_bytes(body[6:8], "little"), int.from_bytes(body[8:10], "little")
        size = size[0] & 0x3FFF, size[1] & 0x3FFF
    elif kind == b"VP8L" and body[:1] == b"\x2f":
        bits = int.from_bytes(body[1:5], "little")
        size = (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    elif kind == b"VP8X":
        size = int.from_bytes(body[4:7], "little") + 1, int.from_bytes(body[7:10], "little") + 1
    else:
        raise decode_error(Code.IMAGE_CORRUPT, f"the WebP is broken: it begins with {kind!r}")
    info: dict[str, Any] = {}
    for name, start, end in _riff_chunks(content) if kind == b"VP8X" else ():
        if name in (b"EXIF", b"XMP "):
            info.setdefault(name.decode().strip().lower(), content[start:end])
    return OpenedImage("WEBP", size, lambda: _decode_webp(content), _orientation(info))


def _riff_chunks(content: bytes) -> Iterator[tuple[bytes, int, int]]:
    position = 12
    while position + 8 <= len(content):
        start = position + 8
        end = start + int.from_bytes(content[position + 4 : start], "little")
        yield content[position : position + 4], start, end
        # Chunks begin at even places.
        position = end + (end - start) % 2


def _decode_webp(content: bytes) -> Image.Image:
    image = WebPImagePlugin.WebPImageFile(io.BytesIO(content))
    # Also of one frame alone, which Pillow does not call animated.
    if content[12:16] == b"VP8X" and content[20] & _WEBP_ANIMATION:
        # What a first frame leaves free is transparent, also where no frame is.
        image.rawmode = image._mode = "RGBA"
    return image


def _read_bmp(content: bytes) -> OpenedImage:
    header = bmp.read_bmp(content)
    return OpenedImage(
        "BMP", (header.width, header.height), lambda: bmp.decode_bmp(content, header)
    )


def _read_other(content: bytes, formats: list[str]) -> OpenedImage:
    """Leave a format that is none of the usual ones to Pillow."""
    with Image.open(io.BytesIO(content), formats=formats) as image:
        size, name = image.size, image.format or ""
        orientation = _orientation(image.info)
    return OpenedImage(
        name, size, lambda: Image.open(io.BytesIO(content), formats=formats), orientation
    )


_BEGINNINGS: dict[str, tuple[bytes, ...]] = {
    "JPEG": (jpeg_segments.SIGNATURE,),
    "PNG": (png_chunks.SIGNATURE,),
    "WEBP": (b"RIFF",),
    "GIF": (b"GIF87a", b"GIF89a"),
    "BMP": (bmp.SIGNATURE,),
}

_READERS: dict[str, Callable[[bytes], OpenedImage]] = {
    "PNG": _read_png,
    "WEBP": _read_webp,
    "GIF": _read_gif,
    "BMP": _read_bmp,
}


def _orientation(info: Mapping[Any, Any]) -> int:
    """Return the orientation that EXIF or XMP gives, as Pillow finds it; 1 without one."""
    holder = Image.Image()
    holder.info = {key: value for key, value in info.items() if value}
    if not holder.info:
        return 1
    try:
        value = holder.getexif().get(_EXIF_ORIENTATION, 1)
        # Also 6.0 and 6/1, which Pillow takes for 6.
        return int(value) if value in range(1, 9) else 1
    except Exception:
        # Broken EXIF says nothing about the pixels: show the picture as it is stored.
        return 1
