"""Which format an image has, and its header.

Reading a header decodes nothing, not even a PNG whose EXIF may follow its pixels.
"""

from __future__ import annotations

import io
from collections.abc import Callable

from PIL import Image, UnidentifiedImageError

from embedstream_core.errors import Code, ItemError, decode_error
from embedstream_core.media.image.bmp import open_bmp
from embedstream_core.media.image.gif import open_gif
from embedstream_core.media.image.jpeg import open_jpeg
from embedstream_core.media.image.opened_image import OpenedImage, read_orientation
from embedstream_core.media.image.png import open_png
from embedstream_core.media.image.webp import open_webp

__all__ = ["read_header"]

# How a file of each format begins, and what reads its header.
_FORMATS: dict[str, tuple[tuple[bytes, ...], Callable[[bytes], OpenedImage]]] = {
    "JPEG": ((b"\xff\xd8\xff",), open_jpeg),
    "PNG": ((b"\x89PNG\r\n\x1a\n",), open_png),
    "WEBP": ((b"RIFF",), open_webp),
    "GIF": ((b"GIF87a", b"GIF89a"), open_gif),
    "BMP": ((b"BM",), open_bmp),
}


def read_header(content: bytes, formats: tuple[str, ...]) -> OpenedImage:
    """Identify an image's format by its first bytes, and read its header.

    Raises:
        ItemError: none of the formats, of a kind that is not decoded here, or broken.
    """
    matching = (name for name, (starts, _) in _FORMATS.items() if content.startswith(starts))
    found = next(matching, "image")
    try:
        if found in formats:
            return _FORMATS[found][1](content)
        # Pillow reads the headers of all other formats.
        others = [name for name in formats if name not in _FORMATS]
        with Image.open(io.BytesIO(content), formats=others) as image:
            return OpenedImage(
                image.format or "",
                image.size,
                lambda: Image.open(io.BytesIO(content), formats=others),
                read_orientation(image.info),
            )
    except UnidentifiedImageError:
        message = f"the bytes, starting {content[:12]!r}, are none of {', '.join(formats)}"
        raise decode_error(Code.IMAGE_UNSUPPORTED, message) from None
    except NotImplementedError as error:
        message = f"the {found} is unsupported: {error}"
        raise decode_error(Code.IMAGE_UNSUPPORTED, message) from None
    except ValueError as error:
        raise decode_error(Code.IMAGE_CORRUPT, f"the {found} is broken: {error}") from None
    except Image.DecompressionBombError as error:
        raise decode_error(Code.IMAGE_TOO_LARGE, str(error)) from None
    except (ItemError, MemoryError):
        raise
    except Exception as error:
        message = f"the header cannot be read: {type(error).__name__}: {error}"
        raise decode_error(Code.IMAGE_CORRUPT, message) from error
