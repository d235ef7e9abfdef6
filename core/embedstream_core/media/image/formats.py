"""Which format an image has, and its header.

Reading a header decodes nothing, not even a PNG whose EXIF may follow its pixels.
"""

from __future__ import annotations

from collections.abc import Callable

from PIL import Image

from embedstream_core.errors import Code, ItemError, build_decode_error
from embedstream_core.media.headers import read_by_format
from embedstream_core.media.image.bmp import open_bmp
from embedstream_core.media.image.gif import open_gif
from embedstream_core.media.image.jpeg import open_jpeg
from embedstream_core.media.image.opened_image import OpenedImage
from embedstream_core.media.image.png import open_png
from embedstream_core.media.image.webp import open_webp

__all__ = ["READERS", "read_header"]

READERS: dict[str, tuple[bytes, Callable[[bytes], OpenedImage]]] = {
    "JPEG": (rb"\xff\xd8\xff", open_jpeg),
    "PNG": (rb"\x89PNG\r\n\x1a\n", open_png),
    "WEBP": (rb"RIFF....WEBP", open_webp),
    "GIF": (rb"GIF8[79]a", open_gif),
    "BMP": (rb"BM", open_bmp),
}
"""How a file of each format begins, as a regular expression, and what reads its header."""


def read_header(content: bytes, formats: tuple[str, ...]) -> OpenedImage:
    """Identify an image's format by its first bytes, and read its header.

    Raises:
        ItemError: none of the formats, of a kind that is not decoded here, or broken.
    """
    readers = {name: READERS[name] for name in formats}
    try:
        return read_by_format(content, readers, modality="image")
    except Image.DecompressionBombError as error:
        raise build_decode_error(Code.IMAGE_TOO_LARGE, str(error)) from None
    except (ItemError, MemoryError):
        raise
    except Exception as error:
        message = f"the header cannot be read: {type(error).__name__}: {error}"
        raise build_decode_error(Code.IMAGE_CORRUPT, message) from error
